r"""Stochastic interpolants: one velocity and one score, a flow and every diffusion beside it.

For each path $x_t = \alpha x_0 + \beta x_1 + \gamma z$ the flow $\dot x = v(t, x)$ and the diffusions
$dx = [v + \epsilon s]\,dt + \sqrt{2\epsilon}\,dW$ have the same law at every t, whatever $\epsilon(t) \ge 0$. Checked in two ways.

1. *Exact fields.* Between Gaussian mixtures v and s are closed. Samples for every path and $\epsilon \in \{0, \tfrac12, 2\}$, constant
   and decaying, are held against the target by the energy distance, beside what two exact samples score.
2. *Learned fields.* v and s are learned by their own losses on the straight path. The flow's exact likelihood gives
   $KL(p_1 | \hat p_1)$, which the diffusion bounds by its Fisher divergence,
   $KL \le \frac{1}{4\epsilon} \int_0^1 E|\hat v - v + \epsilon(\hat s - s)|^2\,dt$: both are measured, and the law of the diffusion
   is held against the target as well. The exact fields make every error visible.

**See** Albergo, Boffi and Vanden-Eijnden, Stochastic interpolants: a unifying framework for flows and diffusions (2023),
corollary 2.18 (the family of diffusions), theorem 2.23 and lemma 2.22 (the bound).
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import matching, nn, train
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.integrate import SRA1
from physml.recipes._distances import floor_distance, mean_distance
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Albergo, Boffi and Vanden-Eijnden, Stochastic interpolants (2023)",
    claim="flow and diffusions of every path reach the target for every epsilon; the KL of a learned model and its bound",
    time="2 min, smoke 20 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    samples: int = 1000
    repeats: int = 12  # independent batches over which a distance is averaged
    ode_steps: int = 100
    sde_steps: int = 250  # of SRA1: the bias of 400 Euler steps shows for the steep VP path at epsilon 2
    paths: tuple[str, ...] = ("linear", "trigonometric", "vp", "sub-vp", "ve", "edm", "bridge")
    epsilons: tuple[float, ...] = (0.5, 2.0)
    train_steps: int = 4000
    batch_size: int = 512
    width: int = 96
    learned_epsilon: float = 0.5
    # the bounds of the claims
    floor_ratio: float = 2.0
    kl: float = 0.02

    def __post_init__(self):
        unknown = set(self.paths) - set(PATHS)
        if unknown or not self.paths:
            raise ValueError(f"config.paths must be some of {', '.join(PATHS)}; got {', '.join(self.paths) or 'none'}")
        if min(self.epsilons, default=1.0) <= 0 or self.learned_epsilon <= 0:
            raise ValueError(f"epsilons must be positive, got {self.epsilons} and {self.learned_epsilon}")
        for name in ("samples", "repeats", "ode_steps", "sde_steps", "train_steps", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} must be at least 1, got {getattr(self, name)}")


PATHS = {
    "linear": matching.linear(),
    "trigonometric": matching.trigonometric(),
    "vp": matching.variance_preserving(),
    "sub-vp": matching.sub_variance_preserving(),
    "ve": matching.variance_exploding(0.01, 20.0),
    "edm": matching.edm(0.01, 20.0),
    "bridge": matching.brownian_bridge(1.0),
}
PAPER = Config()
SMOKE = Config(
    samples=300, repeats=6, ode_steps=40, sde_steps=100, paths=("linear", "bridge"), epsilons=(1.0,), train_steps=1500, batch_size=256, width=48, kl=0.15
)  # fmt: skip

STANDARD = (np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
SOURCE = (
    np.array([0.3, 0.7]),
    np.array([[-2.0, 0.0], [2.0, 1.0]]),
    np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, 0.0], [0.0, 0.6]]]),
)
TARGET = (
    np.array([0.2, 0.5, 0.3]),
    np.array([[0.0, 2.0], [-1.5, -1.0], [1.8, -0.8]]),
    np.array([[[0.4, 0.0], [0.0, 0.1]], [[0.1, 0.05], [0.05, 0.3]], [[0.2, -0.1], [-0.1, 0.2]]]),
)  # fmt: skip


def _law(mixture):
    return tuple(jnp.asarray(part, jnp.float32) for part in mixture)


def _epsilons(config):
    """Name and (value, decay) of every schedule epsilon(t) = value (1 - decay t); None is the flow."""
    out: dict[str, Any] = {"0": None}
    for e in config.epsilons:
        out |= {f"{e:g}": (e, 0.0), f"{e:g}(1 - t)": (e, 1.0)}
    return out


@partial(jax.jit, static_argnames=("path", "n", "steps"))
def _exact_samples(path, epsilon, n, steps, key):
    source = _law(SOURCE if path == "bridge" else STANDARD)
    v, s, _ = matching.exact_fields(PATHS[path], source, _law(TARGET))
    start, noise = jax.random.split(key)
    x0 = jax.vmap(PATHS[path].start)(matching.mixture_sample(source, n, key=start))
    if epsilon is None:
        return jax.vmap(lambda x: matching.sample(v, x, steps=steps))(x0)
    schedule = lambda t: epsilon[0] * (1.0 - epsilon[1] * t)
    return matching.sample_sde_batch(v, s, x0, epsilon=schedule, steps=steps, key=noise, method=SRA1())


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Exact fields on every path, then learned ones on the straight path."""
    exact_key, floor_key, learn_key = jax.random.split(key, 3)
    exact = lambda key: matching.mixture_sample(_law(TARGET), config.samples, key=key)
    floor = floor_distance(exact, key=jax.random.fold_in(floor_key, 1))
    fresh = jnp.stack([exact(k) for k in jax.random.split(floor_key, config.repeats)])

    claims, numbers, arrays = [], {"energy_distance_floor": floor}, {}
    epsilons = _epsilons(config)
    with progress_bar(len(config.paths) * len(epsilons), "interpolants", "law", show=progress) as bar:
        for i, path in enumerate(config.paths):
            for j, (name, epsilon) in enumerate(epsilons.items()):
                steps = config.ode_steps if epsilon is None else config.sde_steps
                draw = jax.random.fold_in(jax.random.fold_in(exact_key, i), j)
                x = _exact_samples(path, epsilon, config.repeats * config.samples, steps, draw)
                distance = mean_distance(x, fresh)
                source = f"{config.floor_ratio:g} x two exact samples"
                claims.append(
                    at_most(f"{path}, epsilon {name}: energy distance", distance, config.floor_ratio * floor, source)
                )
                numbers[f"energy_distance_{path}_{name}"] = distance
                arrays[f"samples_{path}_{name}"] = np.asarray(x[: config.samples])
                bar.update()
    arrays["target"] = np.asarray(fresh[0])
    more = _learned(config, learn_key, fresh, floor, progress)
    claims += more[0]
    return Result(tuple(claims), numbers | more[1], arrays | more[2])


def _both_losses(net, key, n):
    k0, k1, k2, k3 = jax.random.split(key, 4)
    x0, x1 = jax.random.normal(k0, (n, 2)), matching.mixture_sample(_law(TARGET), n, key=k1)
    path = PATHS["linear"]
    return matching.match(net[0], path, x0, x1, key=k2) + matching.match(net[1], path, x0, x1, key=k3, target="score")


def _learned(config, key, fresh, floor, progress):
    path, law = PATHS["linear"], _law(TARGET)
    keys = jax.random.split(key, 6)
    loss = lambda net, _, *, key: _both_losses(net, key, config.batch_size)
    nets = tuple(nn.MLP(2, width=config.width, depth=3, key=k) for k in keys[:2])
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, config.train_steps))
    fit = train.fit(
        loss, nets, None, optimizer=optimizer, steps=config.train_steps, ema_decay=0.999, key=keys[2], progress=progress
    )
    v_hat, s_hat = fit.ema
    v, s, _ = matching.exact_fields(path, None, law)
    epsilon = config.learned_epsilon

    @jax.jit
    def measure(x1, key):
        normal = lambda x: jax.scipy.stats.norm.logpdf(x).sum()
        log_hat = jax.vmap(lambda x: matching.log_prob(v_hat, x, normal, steps=50))(x1)
        log_ratio = jax.vmap(lambda x: matching.mixture_log_prob(law, x))(x1) - log_hat
        k0, k1 = jax.random.split(key)
        t = (jnp.arange(len(x1), dtype=x1.dtype) + jax.random.uniform(k0)) / len(x1)
        x0 = jax.random.normal(k1, x1.shape)
        # The bound stops short of t = 1, where the score of a learned model is not defined; so does the diffusion.
        t = 0.995 * t

        def gap(t, x0, x1):
            x = path.at(t, x0, x1, x0).x
            return jnp.sum((v_hat(t, x, None) - v(t, x) + epsilon * (s_hat(t, x, None) - s(t, x))) ** 2)

        return log_ratio, jax.vmap(gap)(t, x0, x1) / (4 * epsilon)

    x1 = matching.mixture_sample(law, 4 * config.samples, key=keys[3])
    log_ratio, gap = (np.asarray(a, np.float64) for a in measure(x1, keys[4]))
    x0 = jax.random.normal(keys[5], (config.repeats * config.samples, 2))
    sde = matching.sample_sde_batch(v_hat, s_hat, x0, epsilon=epsilon, steps=config.sde_steps, key=keys[4])
    distance = mean_distance(sde, fresh)
    stderr = lambda a: a.std(ddof=1) / np.sqrt(len(a))
    kl, bound = log_ratio.mean(), gap.mean()
    claims = [
        at_most("learned flow: KL to the target, exact likelihood", kl, config.kl, "nats", stderr(log_ratio)),
        at_least("the same is not negative, in standard errors", kl / stderr(log_ratio), -5.0, "Gibbs' inequality"),
        at_most("learned diffusion: the bound on its KL", bound, 5 * config.kl, "nats; 5 x what is asked of the flow", stderr(gap)),
        at_most("learned diffusion: energy distance", distance, 1.5 * config.floor_ratio * floor, "beside two exact samples"),
    ]  # fmt: skip
    numbers = {"kl_flow": kl, "kl_bound_diffusion": bound, "energy_distance_learned": distance}
    return (
        claims,
        numbers,
        {"learned": np.asarray(sde[: config.samples]), "log_ratio": log_ratio, "loss": fit.history.loss},
    )


def plot(result: Result) -> Any:
    """Energy distances of every law beside the floor, three clouds, and the likelihood ratio of the learned flow."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.9), layout="constrained", width_ratios=(1.6, 1, 1, 1.1))
    floor = numbers["energy_distance_floor"]
    laws = {k.removeprefix("energy_distance_"): v for k, v in numbers.items() if k.startswith("energy_distance_")}
    laws = {k: v for k, v in laws.items() if "_" in k}
    paths = list(dict.fromkeys(k.split("_")[0] for k in laws))
    epsilons = list(dict.fromkeys(k.split("_")[1] for k in laws))
    for j, epsilon in enumerate(epsilons):
        heights = [laws[f"{path}_{epsilon}"] / floor for path in paths]
        axes[0].plot(np.arange(len(paths)) + 0.12 * (j - 2), heights, "o", label=rf"$\epsilon = {epsilon}$")
    axes[0].axhline(1.0, color="k", lw=1)
    axes[0].set_xticks(range(len(paths)), paths, rotation=30)
    axes[0].set(ylabel="energy distance / floor", ylim=(0, None), title="exact fields, every path and diffusion")
    axes[0].legend(fontsize=8, ncols=3)
    shown = [
        (f"samples_{paths[-1]}_{epsilons[-2]}", f"{paths[-1]}, epsilon {epsilons[-2]}"),
        ("learned", "learned diffusion, linear"),
    ]
    for axis, (name, title) in zip(axes[1:3], shown, strict=True):
        axis.plot(*arrays["target"].T, ".", color="0.8", ms=3, label="target")
        axis.plot(*arrays[name].T, ".", color="C0", ms=2, label="samples")
        axis.set(title=title, aspect="equal", xlim=(-3.5, 4), ylim=(-3, 3.5))
        axis.legend(fontsize=8, loc="upper right", markerscale=3)
    axes[3].hist(arrays["log_ratio"], bins=60, range=(-1, 1), color="C0", alpha=0.6, density=True)
    axes[3].axvline(0, color="k", lw=1)
    axes[3].set(
        xlabel=r"$\ln p_1(x) - \ln \hat p_1(x)$", ylabel="density",
        title=f"learned flow: KL {numbers['kl_flow']:.4f}, bound {numbers['kl_bound_diffusion']:.3f}",
    )  # fmt: skip
    return figure
