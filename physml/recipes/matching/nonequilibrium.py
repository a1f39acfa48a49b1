r"""Diffusion as nonequilibrium thermodynamics: the work of a chain, its bound, and four ways to noise.

1. *Work.* For Gaussian data the chain of Gaussian steps has a law of its own, known by a recursion of covariances. The
   weights of its trajectories give $\ln E\,w = \ln p(x)$, Jarzynski's equality, and $E\ln w < \ln p(x)$ by the dissipation.
2. *Dissipation.* For a mixture and its exact denoiser the gap of the bound falls with the number of steps as 1/n.
3. *Learned.* On the spiral of the paper, whose density is a line integral, a preconditioned denoiser is trained on the VP,
   sub-VP, VE and EDM paths. Each is sampled by Heun's flow and by its ancestral chain, held against the data by the
   energy distance, and its bound against the true entropy.

**See** Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli, Deep unsupervised learning using nonequilibrium
thermodynamics (2015); Ho, Jain and Abbeel (2020); Song et al. (2021); Karras et al. (2022).
"""

import dataclasses
import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import data, matching, nn, train
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.recipes._distances import floor_distance, mean_distance
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Sohl-Dickstein et al., Deep unsupervised learning using nonequilibrium thermodynamics (2015)",
    claim="Jarzynski's equality for the chain, dissipation as 1/n, and learned VP, sub-VP, VE and EDM models of the spiral",
    time="4 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    trajectories: int = 20_000  # of the work, for each of a few points
    step_counts: tuple[int, ...] = (16, 32, 64, 128, 256)
    bound_points: int = 4000
    paths: tuple[str, ...] = ("vp", "sub-vp", "ve", "edm")
    train_steps: int = 6000
    batch_size: int = 512
    width: int = 128
    samples: int = 1000
    repeats: int = 12
    heun_steps: int = 50
    chain_steps: int = 250
    # the bounds of the claims
    floor_ratio: float = 2.0
    nats: float = 0.15

    def __post_init__(self):
        unknown = set(self.paths) - set(PATHS)
        if unknown or not self.paths:
            raise ValueError(f"config.paths must be some of {', '.join(PATHS)}; got {', '.join(self.paths) or 'none'}")
        if len(self.step_counts) < 2 or min(self.step_counts) < 1:
            raise ValueError(f"config.step_counts must be two or more positive numbers, got {self.step_counts}")


PATHS = {
    "vp": matching.variance_preserving(),
    "sub-vp": matching.sub_variance_preserving(),
    "ve": matching.variance_exploding(0.02, 20.0),
    "edm": matching.edm(0.02, 20.0),
}
PAPER = Config()
SMOKE = Config(
    trajectories=4000, step_counts=(16, 64), bound_points=1000, paths=("vp",), train_steps=1200, width=64, samples=400,
    repeats=4, heun_steps=30, chain_steps=100, floor_ratio=8.0, nats=1.5,
)  # fmt: skip

COVARIANCE = np.array([[1.5, 0.6], [0.6, 0.4]])
MIXTURE = (np.array([0.4, 0.6]), np.array([[-1.0, 0.3], [0.8, -0.5]]), np.array([np.diag([0.05, 0.2]), np.diag([0.2, 0.03])]))  # fmt: skip
NOISE, TURNS = 0.12, 1.5


def _law(parts):
    return tuple(jnp.asarray(part, jnp.float32) for part in parts)


def _spiral(key, n):
    return data.swiss_roll(key, n, noise=NOISE, turns=TURNS)


def _spiral_log_prob(x):
    """The density of the spiral: the Gaussian noise averaged over the curve, by 2000 points."""
    r = (jnp.arange(2000, dtype=x.dtype) + 0.5) / 2000 * (2 / 3) + 1 / 3
    angle = 2 * math.pi * TURNS * r
    curve = 3 * r[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    square = jnp.sum((x[None, :] - curve) ** 2, axis=1) / NOISE**2
    return jax.nn.logsumexp(-0.5 * square) - math.log(2000) - math.log(2 * math.pi * NOISE**2)


def _gaussian_chain_law(chain, gain):
    """Covariance of the chain's last state when the denoiser is linear, D(t_k, x) = gain[k] x."""

    def step(cov, k):
        a, b, _ = chain.posterior(k)
        m = a * jnp.eye(2) + b * gain[k]
        return m @ cov @ m.T + chain.variances[k] * jnp.eye(2), None

    return jax.lax.scan(step, chain.prior * jnp.eye(2), jnp.arange(chain.steps))[0]


@partial(jax.jit, static_argnames="n")
def _work(n, key):
    """ln w at three points for Gaussian data, and the exact log-density of the chain there."""
    path, cov = matching.trigonometric(), jnp.asarray(COVARIANCE, jnp.float32)
    denoiser = matching.exact_fields(path, None, (jnp.ones(1), jnp.zeros((1, 2)), cov[None])).denoiser
    chain = matching.gaussian_chain(path, 16)
    fit_key, key = jax.random.split(key)
    x1 = jax.random.normal(fit_key, (4096, 2)) @ jnp.linalg.cholesky(cov).T
    chain = matching.calibrate(chain, denoiser, x1, key=fit_key)
    gain = jax.vmap(lambda t: jax.jacfwd(lambda x: denoiser(t, x))(jnp.zeros(2)))(chain.times[:-1])
    law = _gaussian_chain_law(chain, gain)
    points = jnp.array([[0.0, 0.0], [1.5, 0.5], [-1.0, -0.8]])
    exact = jax.vmap(lambda x: jax.scipy.stats.multivariate_normal.logpdf(x, jnp.zeros(2), law))(points)
    one = lambda x, key: matching.log_weight(chain, denoiser, x, key=key)
    many = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(many)(points, jax.random.split(key, (3, n))), exact


@partial(jax.jit, static_argnames=("steps", "n"))
def _dissipation(steps, n, key):
    """ln p(x) - ln w at n points of the mixture, by a chain of so many steps with the exact denoiser."""
    path, law = matching.trigonometric(), _law(MIXTURE)
    denoiser = matching.exact_fields(path, None, law).denoiser
    keys = jax.random.split(key, 4)
    chain = matching.gaussian_chain(path, steps)
    chain = matching.calibrate(chain, denoiser, matching.mixture_sample(law, 4096, key=keys[0]), key=keys[1])
    x1 = matching.mixture_sample(law, n, key=keys[2])
    one = lambda x, key: matching.mixture_log_prob(law, x) - matching.log_weight(chain, denoiser, x, key=key)
    return jax.vmap(one)(x1, jax.random.split(keys[3], n))


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """The work, the dissipation, then a learned model for each path."""
    work_key, gap_key, learn_key = jax.random.split(key, 3)
    log_w, exact = (np.asarray(a, np.float64) for a in _work(config.trajectories, work_key))
    top = log_w.max(axis=1, keepdims=True)
    w = np.exp(log_w - top)
    equality = top[:, 0] + np.log(w.mean(axis=1)) - exact
    equality_error = w.std(axis=1) / w.mean(axis=1) / math.sqrt(w.shape[1])
    dissipated = exact - log_w.mean(axis=1)
    z = np.abs(equality) / equality_error

    gaps = [np.asarray(_dissipation(n, config.bound_points, gap_key), np.float64) for n in config.step_counts]
    means, errors = [g.mean() for g in gaps], [g.std() / math.sqrt(len(g)) for g in gaps]
    slope = np.polyfit(np.log(config.step_counts), np.log(means), 1)[0]
    claims = [
        at_most("Jarzynski's equality, worst of three points", z.max(), 5.0, "standard errors from the exact density of the chain"),
        at_least("dissipated work, least of three points", dissipated.min(), 5 * (log_w.std(axis=1) / math.sqrt(w.shape[1])).max(), "nats; 5 standard errors above zero"),
        close_to("slope of the dissipation over the number of steps", slope, -1.0, 0.2, "1/n: what a Gaussian step misses is of second order"),
    ]  # fmt: skip
    numbers = {"jarzynski_z": z.max(), "dissipated": dissipated.mean(), "slope": slope}
    numbers |= {f"gap_{n}": m for n, m in zip(config.step_counts, means, strict=True)}
    arrays = {
        "log_w": log_w[1], "exact": exact[1:2], "steps": np.array(config.step_counts), "gaps": np.array(means),
        "gap_errors": np.array(errors),
    }  # fmt: skip

    exact_sample = lambda key: _spiral(key, config.samples)
    floor_key, fresh_key, learn_key = jax.random.split(learn_key, 3)
    floor = floor_distance(exact_sample, key=floor_key)
    fresh = jnp.stack([exact_sample(k) for k in jax.random.split(fresh_key, config.repeats)])
    numbers["floor"], arrays["data"] = floor, np.asarray(fresh[0])
    with progress_bar(len(config.paths), "nonequilibrium", "path", show=progress) as bar:
        for i, name in enumerate(config.paths):
            found = _learned(config, name, fresh, jax.random.fold_in(learn_key, i))
            bound, error = found["bound"]
            for sampler in ("heun", "ancestral"):
                value = mean_distance(found[sampler], fresh)
                claims.append(
                    at_most(
                        f"{name}, {sampler}: energy distance",
                        value,
                        config.floor_ratio * floor,
                        f"{config.floor_ratio:g} x two exact samples",
                    )
                )
                numbers[f"{name}_{sampler}"] = value
                arrays[f"{sampler}_{name}"] = np.asarray(found[sampler][: config.samples])
            claims += [
                at_most(f"{name}: bound above the true entropy", bound, config.nats, "nats", error),
                at_least(f"{name}: the same in standard errors", bound / error, -5.0, "a bound cannot lie below"),
            ]  # fmt: skip
            numbers[f"{name}_bound"] = bound
            bar.update()
    return Result(tuple(claims), numbers, arrays)


SCALE = 1.6  # the root mean square of the spiral


def _loss(model, batch, *, key):
    noise_key, match_key = jax.random.split(key)
    x0 = jax.random.normal(noise_key, batch.shape)
    return matching.match(model, model.path, x0, batch, key=match_key, target="denoiser", weight=model.weight)


def _learned(config, name, fresh, key):
    """Train on one path; samples by two samplers, and the bound's excess over the entropy of the spiral."""
    path, keys = PATHS[name], jax.random.split(key, 6)
    net = nn.MLP(2, width=config.width, depth=3, key=keys[0])
    model = matching.Preconditioned(net, path, SCALE)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, config.train_steps))
    sampler = lambda key: _spiral(key, config.batch_size)
    fit = train.fit(
        _loss, model, sampler, optimizer=optimizer, steps=config.train_steps, ema_decay=0.999, key=keys[1],
        progress=False,
    )  # fmt: skip
    return _judge(fit.ema, config, fresh, keys[2])


@eqx.filter_jit
def _judge(model, config, fresh, key):
    path, n = model.path, config.repeats * config.samples
    keys = jax.random.split(key, 6)
    start = jax.vmap(path.start)(jax.random.normal(keys[0], (n, 2)))
    velocity = matching.convert(model, path, "denoiser", "velocity")
    heun = jax.vmap(lambda x: matching.sample(velocity, x, steps=config.heun_steps))(start)
    chain = matching.gaussian_chain(path, config.chain_steps, scale=SCALE)
    # Seen data calibrate, fresh ones are judged.
    chain = matching.calibrate(chain, model, _spiral(keys[1], 4096), key=keys[2])
    draw = jax.vmap(lambda x, key: matching.ancestral(chain, model, x, key=key).x)
    out = draw(start, jax.random.split(keys[3], n))
    x1 = fresh.reshape(-1, 2)[: config.bound_points]
    weight = jax.vmap(lambda x, key: matching.log_weight(chain, model, x, key=key))
    # The chain ends on data with the noise of the path's last level, which VE and EDM keep.
    excess = jax.vmap(_spiral_log_prob)(x1) - weight(x1, jax.random.split(keys[4], len(x1)))
    return {"heun": heun, "ancestral": out, "bound": (jnp.mean(excess), jnp.std(excess) / math.sqrt(len(x1)))}


def plot(result: Result) -> Any:
    """Work, dissipation over the number of steps, and the spiral by each path's chain."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    names = [k.removeprefix("ancestral_") for k in arrays if k.startswith("ancestral_")]
    figure, axes = plt.subplots(1, 2 + len(names), figsize=(3.4 * (2 + len(names)), 3.5), layout="constrained")
    axes[0].hist(-arrays["log_w"], bins=80, density=True, color="C0", alpha=0.6)
    axes[0].axvline(-arrays["log_w"].mean(), color="C0", label="mean: the bound")
    axes[0].axvline(-arrays["exact"][0], color="k", label=r"$-\ln p(x)$")
    axes[0].set(xlabel="work of a trajectory, nats", ylabel="density", title="Gaussian data, 16 steps")
    axes[0].legend(fontsize=8)
    axes[1].errorbar(arrays["steps"], arrays["gaps"], arrays["gap_errors"], fmt="o", label="exact denoiser")
    axes[1].loglog(arrays["steps"], arrays["gaps"][0] * arrays["steps"][0] / arrays["steps"], "k:", label="1/n")
    axes[1].set(xlabel="steps", ylabel="dissipation, nats", title=f"slope {numbers['slope']:.2f}")
    axes[1].set_xticks(arrays["steps"], [str(n) for n in arrays["steps"]])
    axes[1].minorticks_off()
    axes[1].legend(fontsize=8)
    for axis, name in zip(axes[2:], names, strict=True):
        axis.plot(*arrays["data"].T, ".", color="0.8", ms=2, label="data")
        axis.plot(*arrays[f"ancestral_{name}"].T, ".", color="C0", ms=2, label="chain")
        ratio = numbers[f"{name}_ancestral"] / numbers["floor"]
        axis.set(title=f"{name}: {ratio:.2f} x floor, bound +{numbers[f'{name}_bound']:.3f}", aspect="equal")
    axes[2].legend(fontsize=8, markerscale=4)
    return figure
