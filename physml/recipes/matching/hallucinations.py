r"""Hallucinations: samples between the modes, where no datum lies, and the spread of predictions that gives them away.

A diffusion model of 25 narrow Gaussians puts samples between neighbouring modes: there the exact denoiser $E[x_1|x_t]$ jumps
from one mode to the next, and a smooth network interpolates. While a sample settles on a mode its prediction stays; on its
way to nowhere it moves. The variance of $D(t, x_t)$ along the last steps tells the two apart, without knowing the data.

Beside the learned model stands the exact one, the same chain with the closed-form denoiser: it hallucinates nothing, so what
is seen is learned and not an effect of the sampler.

**See** Aithal, Maini, Lipton and Kolter, Understanding hallucinations in diffusion models through mode interpolation (2024),
eq. 4 and section 5: more than 95% removed, 96% of the samples in support kept.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import data, matching, nn, train
from physml.core.types import Key
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Aithal, Maini, Lipton and Kolter, Understanding hallucinations in diffusion models (2024)",
    claim="a learned model of 25 Gaussians samples between modes, the exact one does not; the spread of predictions filters",
    time="2 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    points: int = 100_000  # of the training set
    spacing: float = 1.0
    std: float = 0.05
    width: int = 128
    train_steps: int = 4000
    batch_size: int = 1024
    samples: int = 60_000
    chain_steps: int = 400
    window: tuple[float, float] = (0.78, 0.88)  # of times over which the spread is taken: noise of 2 to 0.6 std
    radius: float = 5.0  # standard deviations from the nearest mode beyond which a sample is out of support
    # the bounds of the claims
    removed: float = 0.95
    kept: float = 0.96

    def __post_init__(self):
        if not 0.0 <= self.window[0] < self.window[1] <= 1.0:
            raise ValueError(f"config.window must be two increasing times in [0, 1], got {self.window}")
        for name in ("points", "width", "train_steps", "batch_size", "samples", "chain_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} must be at least 1, got {getattr(self, name)}")


PAPER = Config()
# Half trained: more hallucinations, which settle in more places and are harder to tell.
SMOKE = Config(points=10_000, train_steps=1000, batch_size=256, width=64, samples=4000, chain_steps=100, removed=0.2)
PATH = matching.edm(0.005, 10.0, 5.0)


class Waves(eqx.Module):
    """A perceptron of x and of waves in x: modes narrower than a twentieth of their distance need them."""

    net: nn.MLP

    def __init__(self, width, *, key):
        self.net = nn.MLP(18, out_dim=2, width=width, depth=3, key=key)

    def __call__(self, t, x, args=None):
        angle = jnp.outer(jnp.array([2.0, 4.0, 8.0, 16.0], x.dtype), x).ravel()
        return self.net(t, jnp.concatenate([x, jnp.sin(angle), jnp.cos(angle)]), args)


def _loss(model, batch, *, key):
    noise_key, match_key = jax.random.split(key)
    x0 = jax.random.normal(noise_key, batch.shape)
    return matching.match(model, PATH, x0, batch, key=match_key, target="denoiser", weight=model.weight)


@eqx.filter_jit
def _draw(denoiser, config, key):
    chain = matching.gaussian_chain(PATH, config.chain_steps)
    start_key, noise_key = jax.random.split(key)
    x0 = jax.vmap(PATH.start)(jax.random.normal(start_key, (config.samples, 2)))
    one = lambda x, key: matching.ancestral(chain, denoiser, x, key=key, window=config.window)
    return jax.vmap(one)(x0, jax.random.split(noise_key, config.samples))


def _distance(x, config):
    """Distance to the nearest mode, in standard deviations."""
    means = data.grid_gaussians_mixture(spacing=config.spacing, std=config.std).means
    return np.sqrt(np.asarray(jnp.min(matching.squared_distances(x, means), axis=1))) / config.std


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Train on noise prediction, sample the chain, and filter by the spread."""
    keys = jax.random.split(key, 5)
    scale = config.spacing * np.sqrt(2.0)
    points = data.grid_gaussians(keys[0], config.points, spacing=config.spacing, std=config.std) / scale
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, config.train_steps))
    net = matching.Preconditioned(Waves(config.width, key=keys[1]), PATH)
    fit = train.fit(
        _loss, net, points, optimizer=optimizer, steps=config.train_steps, batch_size=config.batch_size, ema_decay=0.999,
        key=keys[2], progress=progress,
    )  # fmt: skip
    learned = fit.ema
    mixture = data.grid_gaussians_mixture(spacing=config.spacing, std=config.std)
    scaled = (mixture.weights, mixture.means / scale, mixture.covs / scale**2)
    exact = matching.exact_fields(PATH, None, scaled).denoiser

    found = _draw(learned, config, keys[3])
    truth = _draw(exact, config, keys[4])
    x, far = np.asarray(found.x) * scale, _distance(found.x * scale, config)
    exact_far = _distance(truth.x * scale, config)
    out, spread = far > config.radius, np.asarray(found.spread)
    share, exact_share = out.mean(), (exact_far > config.radius).mean()
    # The threshold keeps the asked share of samples in support; half of the samples set it, the other half judge.
    half = len(out) // 2
    threshold = np.quantile(spread[:half][~out[:half]], config.kept + 0.01)
    judged, flagged = out[half:], spread[half:] > threshold
    removed, kept = flagged[judged].mean() if judged.any() else np.nan, (~flagged[~judged]).mean()
    count = max(int(judged.sum()), 1)
    area = _auc(spread[half:], judged)
    claims = (
        at_least("samples out of support, learned", share, 20 / config.samples, f"more than {config.radius:g} standard deviations from every mode; 20 samples"),
        at_most("samples out of support, exact denoiser", exact_share, 0.05 * share, "5% of the learned model's"),
        at_least("hallucinations removed by the filter", removed, config.removed, "Aithal et al., section 5", np.sqrt(max(removed * (1 - removed), 1e-9) / count)),
        at_least("samples in support kept", kept, config.kept, "Aithal et al., section 5", np.sqrt(kept * (1 - kept) / len(judged))),
    )  # fmt: skip
    numbers = {"hallucinated": share, "exact": exact_share, "removed": removed, "kept": kept, "area": area}
    arrays = {
        "x": x,
        "out": out,
        "spread": spread,
        "threshold": np.array([threshold]),
        "data": np.asarray(points[:4000]) * scale,
    }
    return Result(claims, numbers, arrays | _jump(learned, exact, scale, config))


def _auc(score, label):
    """Probability that a hallucination has the larger spread."""
    if label.all() or not label.any():
        return float("nan")
    rank = np.empty(len(score))
    rank[np.argsort(score)] = np.arange(1, len(score) + 1)
    positive = label.sum()
    return (rank[label].sum() - positive * (positive + 1) / 2) / (positive * (len(label) - positive))


def _jump(learned, exact, scale, config):
    """Both denoisers along the line between two modes, at a time late in the chain."""
    t, line = 0.75, jnp.linspace(-0.1, 1.1, 200) * config.spacing / scale
    (_, b, _), _ = PATH.coefficients(t)
    x = b * jnp.stack([line, jnp.zeros_like(line)], axis=1)
    value = lambda field: np.asarray(jax.vmap(lambda x: field(t, x, None))(x)[:, 0]) * scale
    return {"line": np.asarray(line) * scale, "learned": value(learned), "exact": value(exact)}


def plot(result: Result) -> Any:
    """Samples coloured by verdict, the spread of both kinds, and the denoisers between two modes."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), layout="constrained")
    out, spread, threshold = arrays["out"], arrays["spread"], arrays["threshold"][0]
    kept = spread <= threshold
    for axis, keep, title in (
        (axes[0], slice(None), f"learned: {100 * numbers['hallucinated']:.1f}% between modes"),
        (axes[1], kept, f"after the filter: {100 * numbers['removed']:.1f}% of these removed"),
    ):
        x, bad = arrays["x"][keep], out[keep]
        axis.plot(*x[~bad].T, ".", color="C0", ms=1)
        axis.plot(*x[bad].T, ".", color="C3", ms=2)
        axis.set(title=title, aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    bins = np.geomspace(max(spread.min(), 1e-12), spread.max(), 60)
    axes[2].hist(spread[~out], bins, density=False, alpha=0.6, label="in support")
    axes[2].hist(spread[out], bins, density=False, alpha=0.6, color="C3", label="between modes")
    axes[2].axvline(threshold, color="k", lw=1)
    axes[2].set(
        xscale="log",
        yscale="log",
        xlabel="spread of the predictions",
        ylabel="samples",
        title=f"area under the curve {numbers['area']:.3f}",
    )
    axes[2].legend(fontsize=8)
    axes[3].plot(arrays["line"], arrays["exact"], "k", label="exact")
    axes[3].plot(arrays["line"], arrays["learned"], "C0", label="learned")
    axes[3].set(xlabel=r"$x_t/\beta$ between two modes", ylabel=r"$E[x_1 | x_t]$", title="t = 0.75")
    axes[3].legend(fontsize=8)
    return figure
