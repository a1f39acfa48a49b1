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

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml import data, matching, nn
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting
from physml.recipes.matching._fit import denoiser_loss, fit

INFO = RecipeInfo(
    paper="Aithal, Maini, Lipton and Kolter, Understanding hallucinations in diffusion models (2024)",
    claim="a learned model of 25 Gaussians samples between modes, the exact one does not; the spread of predictions filters",
    time="2 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    points: int = 100_000  # of the training set
    spacing: float = 1.0
    std: float = 0.05
    width: int = 128
    train_steps: int = 4000
    batch_size: int = 1024
    samples: int = 60_000
    chain_steps: int = 400
    # Times over which the spread is taken: noise of 2 to 0.6 std.
    window: tuple[float, float] = setting((0.78, 0.88), least=0.0, most=1.0)
    radius: float = 5.0  # standard deviations from the nearest mode beyond which a sample is out of support
    # the bounds of the claims
    removed: float = 0.95
    kept: float = 0.96

    def rules(self):
        return ((self.window[0] < self.window[1], "window must be two increasing times in [0, 1]"),)


PAPER = Config()
# Half trained: more hallucinations, which settle in more places and are harder to tell.
SMOKE = Config(points=10_000, train_steps=1000, batch_size=256, width=64, samples=4000, chain_steps=100, removed=0.2)
PATH = matching.edm(0.005, 10.0, 5.0)

SABOTAGE = Sabotage(
    "the spread is taken while the noise still hides which mode a sample goes to", matching, "ancestral",
    lambda exact: lambda *rest, window, **options: exact(*rest, window=(0.3, 0.4), **options),
)  # fmt: skip


class Waves(eqx.Module):
    """A perceptron of x and of waves in x: modes narrower than a twentieth of their distance need them."""

    net: nn.MLP

    def __init__(self, width, *, key):
        self.net = nn.MLP(18, out_dim=2, width=width, depth=3, key=key)

    def __call__(self, t, x, args=None):
        angle = jnp.outer(jnp.array([2.0, 4.0, 8.0, 16.0], x.dtype), x).ravel()
        return self.net(t, jnp.concatenate([x, jnp.sin(angle), jnp.cos(angle)]), args)


@eqx.filter_jit
def _draw(denoiser, config, key):
    chain = matching.gaussian_chain(PATH, config.chain_steps)
    start_key, noise_key = jax.random.split(key)
    x0 = jax.vmap(PATH.start)(jax.random.normal(start_key, (config.samples, 2)))
    one = lambda x, key: matching.ancestral(chain, denoiser, x, key=key, window=config.window)
    return jax.vmap(one)(x0, jax.random.split(noise_key, config.samples))


@experiment
def run(study, config, key):
    keys = jax.random.split(key, 5)
    scale = config.spacing * np.sqrt(2.0)
    points = data.grid_gaussians(config.points, key=keys[0], spacing=config.spacing, std=config.std) / scale
    learned = fit(
        denoiser_loss, matching.Preconditioned(Waves(config.width, key=keys[1]), PATH), points, rate=2e-3,
        steps=config.train_steps, batch_size=config.batch_size, key=keys[2], progress=study.progress,
    ).ema  # fmt: skip
    mixture = data.grid_gaussians_mixture(spacing=config.spacing, std=config.std)
    scaled = (mixture.weights, mixture.means / scale, mixture.covs / scale**2)
    exact = matching.exact_fields(PATH, None, scaled).denoiser

    def sampled(denoiser, key):
        """Samples, the spread of their predictions, and whether they are out of support."""
        found = _draw(denoiser, config, key)
        nearest = jnp.min(matching.squared_distances(found.x * scale, mixture.means), axis=1)
        return np.asarray(found.x) * scale, np.asarray(found.spread), np.sqrt(nearest) / config.std > config.radius

    x, spread, out = sampled(learned, keys[3])
    share, exact_share = out.mean(), sampled(exact, keys[4])[2].mean()
    # The threshold keeps the asked share of samples in support; half of the samples set it, the other half judge.
    half = len(out) // 2
    threshold = np.quantile(spread[:half][~out[:half]], config.kept + 0.01)
    judged, flagged = out[half:], spread[half:] > threshold
    removed, kept = flagged[judged].mean() if judged.any() else np.nan, (~flagged[~judged]).mean()
    paper = "Aithal et al., section 5"
    beyond = f"more than {config.radius:g} standard deviations from every mode; 20 samples"
    study.at_least("samples out of support, learned", share, 20 / config.samples, beyond)
    study.at_most("samples out of support, exact denoiser", exact_share, 0.05 * share, "5% of the learned model's")
    error = np.sqrt(max(removed * (1 - removed), 1e-9) / max(judged.sum(), 1))
    study.at_least("hallucinations removed by the filter", removed, config.removed, paper, error=error)
    error = np.sqrt(kept * (1 - kept) / len(judged))
    study.at_least("samples in support kept", kept, config.kept, paper, error=error)
    study.measure(area=_area(spread[half:], judged))

    # Both denoisers along the line between two modes, at a time late in the chain.
    line = jnp.linspace(-0.1, 1.1, 200) * config.spacing / scale
    (_, b, _), _ = PATH.coefficients(0.75)
    between = b * jnp.stack([line, jnp.zeros_like(line)], axis=1)
    jump = [jax.vmap(lambda x, d=d: d(0.75, x, None))(between)[:, 0] * scale for d in (exact, learned)]
    study.keep(x=x, out=out, spread=spread, threshold=threshold, line=line * scale, jump=jump)


def _area(score, label):
    """Probability that a hallucination has the larger spread: the area under the curve of right over wrong alarms."""
    if label.all() or not label.any():
        return np.nan
    rank = np.argsort(np.argsort(score)) + 1
    positive = label.sum()
    return (rank[label].sum() - positive * (positive + 1) / 2) / (positive * (len(label) - positive))


def plot(result):
    """Samples coloured by verdict, the spread of both kinds, and the denoisers between two modes."""
    d = result.data
    figure, (every, filtered, spread, jump) = draw.panels(1, 4)
    share, removed = (result.claims[i].value for i in (0, 2))
    for axis, keep, title in (
        (every, d.spread > -1, f"learned: {100 * share:.1f}% between modes"),
        (filtered, d.spread <= d.threshold, f"after the filter: {100 * removed:.1f}% of these removed"),
    ):
        draw.cloud(axis, d.x[keep & ~d.out], size=1.0)
        draw.cloud(axis, d.x[keep & d.out], title, reach=2.6, color="C3", alpha=1)
    edges = np.geomspace(max(d.spread.min(), 1e-12), d.spread.max(), 60)
    draw.histogram(spread, d.spread[~d.out], edges, density=False, label="in support")
    draw.histogram(spread, d.spread[d.out], edges, density=False, color="C3", label="between modes")
    spread.axvline(d.threshold, color="k", lw=1)
    title = f"area under the curve {result.metrics['area']:.3f}"
    draw.label(spread, title, "spread of the predictions", "samples", log="xy")
    draw.theory(jump, d.line, d.jump[0], label="exact")
    jump.plot(d.line, d.jump[1], label="learned")
    draw.label(jump, "t = 0.75", r"$x_t/\beta$ between two modes", r"$E[x_1 | x_t]$")
    return figure
