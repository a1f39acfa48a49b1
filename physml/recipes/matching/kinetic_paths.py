r"""Kinetic-optimal paths: less energy than the straight path on finite data, and the straight path in the limit.

For finite data sets the data separation function is estimated, the optimal path follows, and its energy

$$K = \frac1d \int_0^1 E|v(t, x_t)|^2\, dt$$

is held against the straight (Cond-OT) path, the variance-preserving path and the bound of Benamou and Brenier,
$K \ge W_2^2(N(0, I), data)/d$. The energies come from the metric; the optimum's is measured again along its own flow
with exact velocities, which knows nothing of the metric. With n points in d dimensions and $n/\sqrt d \to 0$ the separation is
complete and the straight path becomes optimal.

**See** Shaul, Chen, Nickel, Le and Lipman, On kinetic optimal probability paths for generative models (2023).
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml import data, matching, metrics
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Shaul, Chen, Nickel, Le and Lipman, On kinetic optimal probability paths (2023)",
    claim="the path from the data separation function spends less than the straight and the VP path on finite data",
    time="1 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    points: int = 512  # of the sets in the plane
    sets: tuple[str, ...] = ("8 gaussians", "checkerboard", "digits")
    digits: int = 1000
    angles: int = 65
    samples: int = 8192  # pairs for each angle
    checks: int = 16384  # pairs in the direct measurement of an energy
    bound_points: int = 1000  # samples a side in the transport bound
    dimensions: tuple[int, ...] = (4, 16, 64, 256, 1024)
    few: int = 16  # points of the sets of growing dimension
    # the bounds of the claims
    agreement: float = 0.03

    def __post_init__(self):
        unknown = set(self.sets) - set(_SETS)
        if unknown or not self.sets:
            raise ValueError(f"config.sets must be some of {', '.join(_SETS)}; got {', '.join(self.sets) or 'none'}")
        if min(self.dimensions, default=0) < 1 or len(self.dimensions) < 2:
            raise ValueError(f"config.dimensions must be two or more positive numbers, got {self.dimensions}")


def _digits(key, config):
    x = jnp.asarray(data.digits().train_x)
    x = x[jax.random.permutation(key, len(x))[: config.digits]]
    return x.reshape(len(x), -1) / 8.0 - 1.0


_SETS = {
    "8 gaussians": lambda key, config: data.eight_gaussians(key, config.points, scale=1.35, variance=0.01),
    "checkerboard": lambda key, config: data.checkerboard(key, config.points) / 1.15,
    "digits": _digits,
}
PAPER = Config()
SMOKE = Config(points=64, sets=("8 gaussians",), angles=33, samples=2048, checks=2048, bound_points=400, dimensions=(4, 256), agreement=0.06)  # fmt: skip


@partial(jax.jit, static_argnames="config")
def _metric(points, config, key):
    exact = matching.empirical_denoiser(matching.trigonometric(), points, matching.StudentNoise(math.inf))
    return matching.kinetic_metric(exact, points, key=key, angles=config.angles, samples=config.samples)


@partial(jax.jit, static_argnames="n")
def _measured(metric, points, n, key):
    """The energy of the optimal path to the points by the exact velocity at random (t, x_t), and its standard error."""
    path = metric.optimal()
    denoiser = matching.empirical_denoiser(path, points, matching.StudentNoise(math.inf))
    velocity = matching.convert(denoiser, path, "denoiser", "velocity")
    t_key, which, noise = jax.random.split(key, 3)
    t = (jnp.arange(n, dtype=points.dtype) + jax.random.uniform(t_key, (n,))) / n
    t = path.cut + (1.0 - 2.0 * path.cut) * t
    x1 = points[jax.random.randint(which, (n,), 0, len(points))]
    x0 = jax.random.normal(noise, x1.shape)

    def power(inputs):
        t, x0, x1 = inputs
        return jnp.mean(velocity(t, path.at(t, x0, x1, x0).x, None) ** 2)

    values = (1.0 - 2.0 * path.cut) * jax.lax.map(power, (t, x0, x1), batch_size=256)
    return jnp.mean(values), jnp.std(values) / math.sqrt(n)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Energies on each data set, then few points in growing dimension."""
    paths = {"straight": matching.linear(), "VP": matching.variance_preserving()}
    claims, numbers, arrays = [], {}, {}
    with progress_bar(len(config.sets) + len(config.dimensions), "kinetic_paths", "set", show=progress) as bar:
        for i, name in enumerate(config.sets):
            keys = jax.random.split(jax.random.fold_in(key, i), 5)
            points = _SETS[name](keys[0], config)
            metric = _metric(points, config, keys[1])
            energy = {label: float(metric.energy(path)) for label, path in paths.items()}
            best, dim = float(metric.minimum), points.shape[1]
            measured, error = (float(a) for a in _measured(metric, points, config.checks, keys[2]))
            n = min(config.bound_points, len(points))
            noise = jax.random.normal(keys[3], (n, dim))
            bound = float(metrics.wasserstein2(noise, points[:n])) ** 2 / dim
            claims += [
                at_most(f"{name}: energy of the optimal path", best, 0.99 * min(energy.values()), f"99% of the {min(energy, key=lambda k: energy[k])} path's"),
                at_least(f"{name}: the same", best, bound, "the transport bound of Benamou and Brenier"),
                at_most(f"{name}: metric against the exact velocity", abs(measured / best - 1.0), config.agreement + 5 * error / best, "relative; 5 standard errors more", error / best),
            ]  # fmt: skip
            numbers |= {f"{name}_{k}": v for k, v in energy.items()}
            numbers |= {f"{name}_optimal": best, f"{name}_measured": measured, f"{name}_transport": bound}
            arrays[f"separation_{name}"] = np.asarray(metric.separation)
            arrays[f"angle_{name}"] = np.asarray(metric.angle)
            t = jnp.linspace(0.0, 1.0, 201)
            (a, b, _), _ = jax.vmap(metric.optimal().coefficients)(t)
            arrays[f"path_{name}"] = np.stack([np.asarray(a), np.asarray(b)])
            bar.update()
        gains = []
        for j, dim in enumerate(config.dimensions):
            keys = jax.random.split(jax.random.fold_in(key, 1000 + j), 2)
            points = jax.random.normal(keys[0], (config.few, dim))
            metric = _metric(points, config, keys[1])
            gains.append(float(1.0 - metric.minimum / metric.energy(matching.linear())))
            bar.update()
    arrays["dimensions"], arrays["gains"] = np.array(config.dimensions), np.array(gains)
    numbers |= {f"gain_d{d}": g for d, g in zip(config.dimensions, gains, strict=True)}
    claims += [
        at_most(f"{config.few} points, gain at d = {config.dimensions[-1]}", gains[-1], 0.25 * gains[0], f"a quarter of that at d = {config.dimensions[0]}"),
        at_least("no gain is negative", min(gains), -0.01, "the optimum is a minimum"),
    ]  # fmt: skip
    return Result(tuple(claims), numbers, arrays)


def plot(result: Result) -> Any:
    """Separation functions, optimal schedules, energies beside their bound, and the gain over the dimension."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    names = [k.removeprefix("path_") for k in arrays if k.startswith("path_")]
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.7), layout="constrained")
    for i, name in enumerate(names):
        angle = arrays[f"angle_{name}"]
        axes[0].plot(angle, arrays[f"separation_{name}"], color=f"C{i}", label=name)
        axes[1].plot(*arrays[f"path_{name}"], color=f"C{i}", label=name)
        for marker, kind, label in (
            ("s", "VP", "VP"),
            ("^", "straight", "straight"),
            ("o", "optimal", "optimal"),
            ("x", "measured", "optimal, along the flow"),
        ):
            axes[2].plot(i, numbers[f"{name}_{kind}"], marker, color=f"C{i}", label=label if i == 0 else None)
        axes[2].plot(
            [i - 0.3, i + 0.3],
            [numbers[f"{name}_transport"]] * 2,
            "k-",
            lw=1,
            label="transport bound" if i == 0 else None,
        )
    axes[0].plot(angle, np.sin(angle) ** 2, "k:", label="Gaussian data")
    axes[0].set(xlabel=r"$\theta$, noise to data", ylabel=r"$\lambda$", title="data separation")
    axes[0].legend(fontsize=8)
    axes[1].plot([1, 0], [0, 1], "k:", label="straight")
    axes[1].set(xlabel=r"$\alpha$", ylabel=r"$\beta$", title="optimal schedules")
    axes[1].legend(fontsize=8)
    axes[2].set_xticks(range(len(names)), names)
    axes[2].set(ylabel="energy per dimension", ylim=(0, None), xlim=(-0.6, len(names) - 0.4), title="kinetic energy")
    axes[2].legend(fontsize=8)
    axes[3].semilogx(arrays["dimensions"], 100 * arrays["gains"], "o-")
    axes[3].set(
        xlabel="dimension",
        ylabel="% below the straight path",
        ylim=(0, None),
        title="few points: nothing to gain as d grows",
    )
    return figure
