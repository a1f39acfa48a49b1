r"""Entropy production of active matter from a learned score.

For $dx = b\,dt + \sqrt{2D}\,dW$ a network learns the stationary score $s = \nabla\ln p$ by implicit score matching on samples, and
$v = b - Ds$ gives the rate $E[v^T D^{-1} v]$. Three systems, each with a reference that no network enters:

1. *Linear*, $b = -Mx$ with random non-reciprocal M: $\mathrm{Tr}(M^T D^{-1} M S) - \mathrm{Tr}\,M$.
2. *Two active particles on a ring*, $\dot x_i = f(x_i - x_j) + v_0 g_i + \sqrt{2\epsilon}\,\eta_i$, $f = \sin$, each $g_i$ an
   Ornstein-Uhlenbeck process of rate $\gamma$: in $x = x_1 - x_2$ and $g = (g_1 - g_2)/\sqrt2$, the Fokker-Planck equation on a grid.
3. *64 active particles* in a periodic square, a score that is blind to their names. The work of the drift along the paths,
   $E[b^T D^{-1} b + \nabla\cdot b]$, is the same rate without the score.

**See** Boffi and Vanden-Eijnden, Deep learning probability flows and entropy production rates in active matter (2024).
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

from physml import nn, train
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.integrate import Dynamics, ensemble
from physml.particles import Dense, PairSum, Particles
from physml.particles.theory.entropy_production import (
    entropy_production,
    implicit_loss,
    linear_entropy_production,
    probability_velocity,
    work_rate,
)
from physml.particles.theory.fokker_planck import stationary_density
from physml.recipes._result import Info, Result, at_most

INFO = Info(
    paper="Boffi and Vanden-Eijnden, Deep learning probability flows and entropy production rates in active matter (2024)",
    claim="a learned score gives the entropy production of a linear system, of an active ring and of 64 active particles",
    time="2 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    systems: int = 3  # random linear ones
    dim: int = 3
    steps: int = 1500
    batch_size: int = 512
    width: int = 48
    paths: int = 2000  # of the ring
    snapshots: int = 40
    grid: int = 160
    particles: int = 64  # 0 leaves the third system out
    worlds: int = 64  # independent copies of it
    world_steps: int = 1200
    world_batch: int = 32
    # the bounds of the claims
    linear: float = 0.02
    ring: float = 0.05
    world: float = 0.05

    def __post_init__(self):
        for name in ("systems", "steps", "batch_size", "width", "paths", "snapshots", "worlds", "world_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} must be at least 1, got {getattr(self, name)}")
        if self.dim < 2 or self.grid < 16 or self.particles < 0:
            raise ValueError(
                f"expected dim >= 2, grid >= 16, particles >= 0, got {self.dim, self.grid, self.particles}"
            )


PAPER = Config()
SMOKE = Config(
    systems=1, dim=2, steps=300, width=32, paths=400, snapshots=10, grid=48, particles=0, linear=0.08, ring=0.15
)

SPEED, RATE, EPSILON = 1.5, 1.0, 0.3  # v_0, gamma, epsilon of the ring


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """The three systems in turn."""
    keys = jax.random.split(key, 3)
    claims, numbers, arrays = [], {}, {}
    with progress_bar(2 + (config.particles > 0), "entropy_production", "system", show=progress) as bar:
        for part, key in zip((_linear, _ring, _world), keys, strict=True):
            if part is _world and not config.particles:
                continue
            found = part(config, key)
            claims += found.claims
            numbers |= found.metrics
            arrays |= found.arrays
            bar.update()
    return Result(tuple(claims), numbers, arrays)


def _fit(score, loss, data, steps, batch, key, rate=3e-3):
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return train.fit(
        loss, score, data, optimizer=optimizer, steps=steps, batch_size=batch, ema_decay=0.99, key=key, progress=False
    ).ema  # fmt: skip


def _compare(name, found, reference, tolerance, source):
    """Claims and numbers about one learned rate."""
    off = float(found.total / reference - 1)
    error = float(found.error / reference)
    claims = [
        at_most(f"{name}: learned rate off by", abs(off), tolerance, source, error),
        at_most(
            f"{name}: the system's share of it", abs(found.system / found.total), tolerance, "zero in a steady state"
        ),
    ]
    key = name.replace(" ", "_").replace(",", "")
    return claims, {f"{key}_rate": float(found.total), f"{key}_reference": float(reference)}


# ---- linear


def _random_system(key, d):
    """Drift matrix M of eigenvalues well to the right, and D: far from detailed balance."""
    a, b = jax.random.split(key)
    A = jax.random.normal(a, (d, d))
    # A symmetric part of one keeps it stable whatever the rest; the antisymmetric part does not relax.
    return jnp.eye(d) + A - A.T, jnp.exp(0.4 * jax.random.normal(b, (d,)))


def _minus_product(t, x, M):
    return -M @ x


def _linear(config, key):
    claims, numbers, rates = [], {}, []
    for k in range(config.systems):
        draw, init, sample_key, fit_key, fresh_key = jax.random.split(jax.random.fold_in(key, k), 5)
        M, D = _random_system(draw, config.dim)
        exact, S = linear_entropy_production(M, D)
        sample = lambda key, n, S=S: jax.random.normal(key, (n, config.dim)) @ jnp.linalg.cholesky(S).T
        net = nn.MLP(config.dim, width=config.width, depth=2, frequencies=None, key=init)
        data = sample(sample_key, 200 * config.batch_size)
        net = _fit(net, partial(_linear_loss, D), data, config.steps, config.batch_size, fit_key)
        drift = lambda t, x, args=None, M=M: _minus_product(t, x, M)
        found = _rates(drift, net, D, sample(fresh_key, 50_000))
        source = f"Tr(M^T M S / D) - Tr M = {float(exact):.4f}"
        more = _compare(f"linear {k}", found, exact, config.linear, source)
        claims, numbers = claims + more[0], numbers | more[1]
        rates.append((float(exact), float(found.total)))
    return Result(tuple(claims), numbers, {"linear": np.asarray(rates)})


def _linear_loss(D, net, batch, *, key):
    return implicit_loss(net, D, batch)


@eqx.filter_jit
def _rates(drift, score, D, x):
    return entropy_production(drift, score, D, x)


# ---- the ring


def _ring_drift(t, x, args=None):
    """Of the displacement of two particles that repel with sin, and of half the difference of their propulsions."""
    return jnp.stack([2 * jnp.sin(x[0]) + math.sqrt(2) * SPEED * x[1], -RATE * x[1]])


_RING_D = np.asarray([2 * EPSILON, RATE], np.float32)


class RingScore(eqx.Module):
    """A periodic function of the angle; the Gaussian law of a free propulsion is where it starts."""

    net: nn.MLP

    def __call__(self, t, x, args=None):
        return self.net(t, jnp.stack([jnp.cos(x[0]), jnp.sin(x[0]), x[1]])) - jnp.stack([0 * x[0], x[1]])


def _ring_loss(score, batch, *, key):
    return implicit_loss(score, _RING_D, batch)


def _ring(config, key):
    init, start, noise_key, fit_key = jax.random.split(key, 4)
    x0 = jax.random.normal(start, (config.paths, 2)) + jnp.asarray([[math.pi, 0.0]])
    every, dt = 100, 0.005
    ts = dt * jnp.arange(every * (config.snapshots + 20) + 1.0)
    dynamics = Dynamics(_ring_drift, lambda t, x, args: jnp.asarray(np.sqrt(2 * _RING_D), x.dtype))
    xs = ensemble(dynamics, x0, ts, key=noise_key, save_every=every).check().xs[21:]  # ten times to forget the start
    half = config.paths // 2
    seen, fresh = xs[:, :half].reshape(-1, 2), xs[:, half:].reshape(-1, 2)
    score = RingScore(nn.MLP(3, width=config.width, depth=2, out_dim=2, frequencies=None, key=init))
    score = _fit(score, _ring_loss, seen, config.steps, config.batch_size, fit_key)
    found = _rates(_ring_drift, score, _RING_D, fresh)
    numpy_drift = lambda x, g: (2 * np.sin(x) + math.sqrt(2) * SPEED * g, -RATE * g)
    solve = lambda n: stationary_density(
        numpy_drift, (2 * EPSILON, RATE), ((0, 2 * math.pi), (-6, 6)), (n, n), periodic=(True, False)
    )  # fmt: skip
    grid, coarse = solve(config.grid), solve(config.grid // 2)
    reference = grid.entropy_production
    claims, numbers = _compare("ring", found, reference, config.ring, f"Fokker-Planck on {config.grid}^2 cells")
    halved = abs(coarse.entropy_production / reference - 1)
    claims.append(at_most("ring: the grid at half the resolution is off by", halved, config.ring / 5, "convergence"))
    velocity = probability_velocity(_ring_drift, score, _RING_D)
    points = np.stack(np.meshgrid(grid.x, grid.y, indexing="ij"), -1).astype(np.float32)
    v = np.asarray(jax.jit(jax.vmap(jax.vmap(lambda x: velocity(0.0, x))))(jnp.asarray(points)))
    # The rate by places: on the grid from the gradient of the density.
    slopes = np.gradient(np.log(np.maximum(grid.density, 1e-300)), grid.x, grid.y)
    exact = np.stack(
        [b - D * s for b, D, s in zip(numpy_drift(*np.moveaxis(points, -1, 0)), _RING_D, slopes, strict=True)], -1
    )
    local = lambda v: np.sum(v**2 / _RING_D, axis=-1)
    arrays = {"x": grid.x, "g": grid.y, "density": grid.density, "local": local(v), "local_grid": local(exact)}
    return Result(tuple(claims), numbers, arrays)


# ---- 64 particles

_LENGTH, _RANGE, _STRENGTH, _DRIVE, _THERMAL, _DECAY = 10.0, 1.5, 4.0, 1.5, 0.5, 1.0
_WORLD_D = np.asarray([_THERMAL, _THERMAL, _DECAY, _DECAY], np.float32)


def _nearest(gap):
    return gap - _LENGTH * jnp.round(gap / _LENGTH)


def _push(x, y):
    """The force of y on x: r (1 - r^2/R^2)^2, smooth where it ends."""
    gap = _nearest(x - y)
    inside = jnp.maximum(1 - jnp.sum(gap**2) / _RANGE**2, 0)
    return _STRENGTH * gap * inside**2


def _forces(x):
    return len(x) * PairSum(_push, Dense(16))(x, Particles(x))


def _world_drift(t, x, args=None):
    """Of positions and propulsions (N, 4)."""
    place, drive = x[:, :2], x[:, 2:]
    return jnp.concatenate([_forces(place) + _DRIVE * drive, -_DECAY * drive], axis=1)


class WorldScore(eqx.Module):
    """Each particle's score from its propulsion, its force and how that changes along all propulsions, and messages
    of its nearest neighbours; blind to names.
    """

    message: nn.MLP
    readout: nn.MLP
    neighbours: int = eqx.field(static=True)

    def __init__(self, width, key, neighbours=10):
        first, second = jax.random.split(key)
        self.neighbours = neighbours
        self.message = nn.MLP(6, width=width, depth=1, out_dim=width, frequencies=None, key=first)
        self.readout = nn.MLP(width + 6, width=width, depth=2, out_dim=4, frequencies=None, key=second)

    def __call__(self, t, x, args=None):
        place, drive = x[:, :2], x[:, 2:]
        force, change = jax.jvp(_forces, (place,), (drive,))
        r2 = sum(_nearest(c[:, None] - c[None, :]) ** 2 for c in place.T)
        k = min(self.neighbours + 1, len(x))
        near = jax.lax.top_k(-jax.lax.stop_gradient(r2), k)[1][:, 1:]

        def one(xi, gi, fi, ci, xs, gs):
            gap = _nearest(xi[None, :] - xs) / _RANGE
            fade = jnp.maximum(1 - jnp.sum(gap**2, axis=1) / 1.5**2, 0) ** 2
            pairs = jnp.concatenate([gap, gs, jnp.broadcast_to(gi[None, :], gs.shape)], axis=1)
            heard = fade @ jax.vmap(lambda p: self.message(t, p))(pairs)
            start = jnp.concatenate([fi / (_THERMAL + _DRIVE**2 / _DECAY), -gi])
            return start + self.readout(t, jnp.concatenate([gi, fi, ci, heard]))

        return jax.vmap(one)(place, drive, force, change, place[near], drive[near])


def _world_loss(score, batch, *, key):
    return implicit_loss(score, _WORLD_D, batch, key=key)


def _world(config, key):
    init, start, noise_key, fit_key = jax.random.split(key, 4)
    n, every, dt, warm = config.particles, 100, 0.005, 20
    place, drive = jax.random.split(start)
    x0 = jnp.concatenate(
        [_LENGTH * jax.random.uniform(place, (config.worlds, n, 2)), jax.random.normal(drive, (config.worlds, n, 2))], 2
    )
    ts = dt * jnp.arange(every * (warm + config.snapshots) + 1.0)
    dynamics = Dynamics(_world_drift, lambda t, x, args: jnp.broadcast_to(jnp.asarray(np.sqrt(2 * _WORLD_D)), x.shape))
    xs = ensemble(dynamics, x0, ts, key=noise_key, save_every=every).check().xs[warm + 1 :]
    half = config.worlds // 2
    seen, fresh = xs[:, :half].reshape(-1, n, 4), xs[:, half:].reshape(-1, n, 4)
    score = WorldScore(config.width, init)
    before = _rates(_world_drift, score, _WORLD_D, fresh)
    score = _fit(score, _world_loss, seen, config.world_steps, config.world_batch, fit_key)
    found = _rates(_world_drift, score, _WORLD_D, fresh)
    reference, error = jax.jit(lambda x: work_rate(_world_drift, _WORLD_D, x))(fresh)
    name = f"{n} particles"
    claims, numbers = _compare(name, found, reference, config.world, f"work of the drift {float(reference):.2f}")
    untrained = abs(float(before.total / reference - 1))
    numbers |= {"work_error": float(error), "untrained_off": untrained}
    velocity = jax.vmap(lambda x: probability_velocity(_world_drift, score, _WORLD_D)(0.0, x))(fresh[-1:])[0]
    free = 2 * _DRIVE**2 / _THERMAL
    numbers |= {"rate_per_particle": float(found.total) / n, "rate_of_free_particle": free}
    arrays = {
        "world": np.asarray(fresh[-1]),
        "world_local": np.asarray(jnp.sum(velocity**2 / _WORLD_D[None, :], axis=1)),
    }
    return Result(tuple(claims), numbers, arrays)


def plot(result: Result) -> Any:
    """Linear rates, the density and local rate of the ring, and the map of the rate over particles."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    count = 5 if "world" in arrays else 4
    figure, axes = plt.subplots(1, count, figsize=(3.9 * count, 3.6), layout="constrained")
    exact, learned = arrays["linear"].T
    top = 1.15 * max(exact.max(), learned.max())
    axes[0].plot([0, top], [0, top], "k", lw=1)
    axes[0].plot(exact, learned, "o")
    axes[0].set(xlabel="exact rate", ylabel="learned rate", title="linear, non-reciprocal")
    x, g, density = arrays["x"], arrays["g"], arrays["density"]
    image = axes[1].pcolormesh(x, g, density.T, shading="auto")
    axes[1].set(xlabel="displacement", ylabel="propulsion g", ylim=(-4, 4), title="ring: density, grid")
    figure.colorbar(image, ax=axes[1])
    weighted = [density * arrays[k] for k in ("local_grid", "local")]
    for axis, values, title in zip(axes[2:4], weighted, ("grid", "learned"), strict=True):
        image = axis.pcolormesh(x, g, values.T, shading="auto", cmap="magma", vmin=0, vmax=weighted[0].max())
        axis.set(xlabel="displacement", ylim=(-4, 4), title=f"ring: rate by place, {title}")
        figure.colorbar(image, ax=axis)
    if "world" in arrays:
        world, local = arrays["world"], arrays["world_local"]
        place = world[:, :2] % _LENGTH
        dots = axes[4].scatter(*place.T, c=local, cmap="viridis", s=90)
        axes[4].quiver(*place.T, *world[:, 2:].T, color="0.3", width=0.005)
        axes[4].set(aspect="equal", title=f"rate of each particle, mean {numbers['rate_per_particle']:.2f}")
        figure.colorbar(dots, ax=axes[4])
    return figure
