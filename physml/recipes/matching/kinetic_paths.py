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

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml import data, matching, metrics
from physml.metrics import mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Shaul, Chen, Nickel, Le and Lipman, On kinetic optimal probability paths (2023)",
    claim="the path from the data separation function spends less than the straight and the VP path on finite data",
    time="1 min, smoke 10 s",
)


def _digits(key, config):
    x = jnp.asarray(data.digits().train_x)
    x = x[jax.random.permutation(key, len(x))[: config.digits]]
    return x.reshape(len(x), -1) / 8.0 - 1.0


SETS = {
    "8 gaussians": lambda key, config: data.eight_gaussians(config.points, key=key, scale=1.35, variance=0.01),
    "checkerboard": lambda key, config: data.checkerboard(config.points, key=key) / 1.15,
    "digits": _digits,
}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    points: int = 512  # of the sets in the plane
    sets: tuple[str, ...] = setting(("8 gaussians", "checkerboard", "digits"), choices=SETS)
    digits: int = 1000
    angles: int = 65
    samples: int = 8192  # pairs for each angle
    checks: int = 16384  # pairs in the direct measurement of an energy
    bound_points: int = 1000  # samples a side in the transport bound
    dimensions: tuple[int, ...] = setting((4, 16, 64, 256, 1024), length=2)
    few: int = 16  # points of the sets of growing dimension
    # the bounds of the claims
    agreement: float = 0.03


PAPER = Config()
SMOKE = Config(
    points=64, sets=("8 gaussians",), angles=33, samples=2048, checks=2048, bound_points=400, dimensions=(4, 256),
    agreement=0.06,
)  # fmt: skip

SABOTAGE = Sabotage(
    "the path turns at nine tenths of its cost", matching, "kinetic_metric",
    lambda exact: lambda *rest, **options: eqx.tree_at(
        lambda metric: (metric.slope, metric.phi), exact(*rest, **options), replace_fn=lambda cost: 0.9 * cost
    ),
)  # fmt: skip


@partial(jax.jit, static_argnames="config")
def _metric(points, config, key):
    exact = matching.empirical_denoiser(matching.trigonometric(), points, matching.StudentNoise(math.inf))
    return matching.kinetic_metric(exact, points, key=key, angles=config.angles, samples=config.samples)


@partial(jax.jit, static_argnames="n")
def _energies(path, points, n, key):
    """The energy of a path to the points by the exact velocity at n random (t, x_t)."""
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

    return (1.0 - 2.0 * path.cut) * jax.lax.map(power, (t, x0, x1), batch_size=256)


@experiment
def run(study, config, key):
    study.keep(sets={})
    for i, name in study.each(enumerate(config.sets), "set"):
        _finite_set(study, config, name, jax.random.fold_in(key, i))
    _growing_dimension(study, config, key)


def _finite_set(study, config, name, key):
    """Energies of the paths to one data set."""
    keys = jax.random.split(key, 5)
    points = SETS[name](keys[0], config)
    metric = _metric(points, config, keys[1])
    paths = {"straight": matching.linear(), "VP": matching.variance_preserving()}
    energies = {label: float(metric.energy(path)) for label, path in paths.items()}
    study.metrics |= {f"{name}, {label}": energy for label, energy in energies.items()}
    best, rival = float(metric.minimum), min(energies, key=lambda label: energies[label])
    path = metric.optimal()
    measured = mean_and_error(_energies(path, points, config.checks, keys[2]))
    n, dim = min(config.bound_points, len(points)), points.shape[1]
    bound = float(metrics.wasserstein2(jax.random.normal(keys[3], (n, dim)), points[:n])) ** 2 / dim
    study.at_most(f"{name}: energy of the optimal path", best, 0.99 * energies[rival], f"99% of the {rival} path's")
    study.at_least(f"{name}: the same", best, bound, "the transport bound of Benamou and Brenier")
    gap, error = abs(measured.value / best - 1.0), measured.error / best
    study.at_most(
        f"{name}: metric against the exact velocity", gap, config.agreement + 5 * error,
        "relative; 5 standard errors more", error=error,
    )  # fmt: skip
    (a, b, _), _ = jax.vmap(path.coefficients)(jnp.linspace(0.0, 1.0, 201))
    study.data.sets[name] = metric, (a, b), energies | {"optimal": best, "along its flow": measured.value}, bound


def _growing_dimension(study, config, key):
    """What the optimum gains on the straight path, for few points in more and more dimensions."""
    gains = []
    for j, dim in study.each(enumerate(config.dimensions), "dimension"):
        points_key, metric_key = jax.random.split(jax.random.fold_in(key, 1000 + j))
        metric = _metric(jax.random.normal(points_key, (config.few, dim)), config, metric_key)
        gains.append(float(1.0 - metric.minimum / metric.energy(matching.linear())))
    first, last = config.dimensions[0], config.dimensions[-1]
    quantity = f"{config.few} points, gain at d = {last}"
    study.at_most(quantity, gains[-1], 0.25 * gains[0], f"a quarter of that at d = {first}")
    study.at_least("no gain is negative", min(gains), -0.01, "the optimum is a minimum")
    study.keep(dimensions=config.dimensions, gains=gains)


def plot(result):
    """Separation functions, optimal schedules, energies beside their bound, and the gain over the dimension."""
    d = result.data
    figure, (separation, schedule, energy, gain) = draw.panels(1, 4)
    for i, (name, (metric, path, energies, bound)) in enumerate(d.sets.items()):
        separation.plot(metric.angle, metric.separation, f"C{i}", label=name)
        schedule.plot(*path, f"C{i}", label=name)
        for marker, (label, value) in zip("^sox", energies.items(), strict=True):
            energy.plot(i, value, marker, color=f"C{i}", label=None if i else label)
        energy.hlines(bound, i - 0.3, i + 0.3, "k", lw=1, label=None if i else "transport bound")
    angle = np.linspace(0, np.pi / 2, 100)
    draw.theory(separation, angle, np.sin(angle) ** 2, "k:", label="Gaussian data")
    draw.label(separation, "data separation", r"$\theta$, noise to data", r"$\lambda$")
    draw.theory(schedule, [1, 0], [0, 1], "k:", label="straight")
    draw.label(schedule, "optimal schedules", r"$\alpha$", r"$\beta$")
    energy.set_xticks(range(len(d.sets)), list(d.sets))
    draw.label(energy, "kinetic energy", y="energy per dimension", ylim=(0, None), xlim=(-0.6, len(d.sets) - 0.4))
    gain.plot(d.dimensions, 100 * np.array(d.gains), "o-")
    title = "few points: nothing to gain as d grows"
    draw.label(gain, title, "dimension", "% below the straight path", log="x", ylim=(0, None))
    return figure
