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
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import nn, particles, train
from physml.integrate import Dynamics, ensemble
from physml.particles import AllPairs, PairSum, Particles
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Boffi and Vanden-Eijnden, Deep learning probability flows and entropy production rates in active matter (2024)",
    claim="a learned score gives the entropy production of a linear system, of an active ring and of 64 active particles",
    time="2 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    systems: int = 3  # random linear ones
    dim: int = setting(3, least=2.0)
    steps: int = 1500
    batch_size: int = 512
    width: int = 48
    paths: int = 2000  # of the ring
    snapshots: int = 40
    grid: int = setting(160, least=16.0)
    particles: int = setting(64, least=0.0)  # 0 leaves the third system out
    worlds: int = 64  # independent copies of it
    world_steps: int = 1200
    world_batch: int = 32
    # the bounds of the claims
    linear: float = 0.02
    ring: float = 0.05
    world: float = 0.05


PAPER = Config()
SMOKE = Config(
    systems=1, dim=2, steps=300, width=32, paths=400, snapshots=10, grid=48, particles=0, linear=0.08, ring=0.15
)


def _weaker(exact):
    def fit(*arguments, **options):
        score = exact(*arguments, **options)
        return lambda t, x, args=None: 0.9 * score(t, x, args)

    return fit


SABOTAGE = Sabotage("the learned score is a tenth too weak", sys.modules[__name__], "_fit", _weaker)


@experiment
def run(study, config, key):
    linear_key, ring_key, world_key = jax.random.split(key, 3)
    stages = [(_linear, linear_key), (_ring, ring_key)] + [(_world, world_key)] * (config.particles > 0)
    for stage, stage_key in study.each(stages, "system"):
        stage(study, config, stage_key)


def _fit(score, D, data, steps, batch_size, key, random=False):
    """The score of the data by implicit matching, its divergence exact or by random vectors."""
    loss = lambda score, batch, *, key: particles.implicit_loss(score, D, batch, key=key if random else None)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    options = {"optimizer": optimizer, "steps": steps, "batch_size": batch_size, "ema_decay": 0.99}
    return train.fit(loss, score, data, **options, key=key, progress=False).ema


@eqx.filter_jit
def _rates(drift, score, D, x):
    return particles.entropy_production(drift, score, D, x)


def _compare(study, name, found, reference, tolerance, source):
    """Claims about one learned rate."""
    off, error = abs(float(found.total / reference - 1)), float(found.error / reference)
    study.at_most(f"{name}: learned rate off by", off, tolerance, source, error=error)
    share = abs(found.system / found.total)
    study.at_most(f"{name}: the system's share of it", share, tolerance, "zero in a steady state")
    key = name.replace(" ", "_")
    study.metrics |= {f"{key}_rate": found.total, f"{key}_reference": reference}


# ---- linear


def _random_system(key, d):
    """Drift matrix M of eigenvalues well to the right, and D: far from detailed balance."""
    a, b = jax.random.split(key)
    A = jax.random.normal(a, (d, d))
    # A symmetric part of one keeps it stable whatever the rest; the antisymmetric part does not relax.
    return jnp.eye(d) + A - A.T, jnp.exp(0.4 * jax.random.normal(b, (d,)))


def _linear(study, config, key):
    """Random linear systems, whose rate is known in closed form."""
    rates = []
    for k in range(config.systems):
        draw_key, init, sample_key, fit_key, fresh_key = jax.random.split(jax.random.fold_in(key, k), 5)
        M, D = _random_system(draw_key, config.dim)
        exact, S = particles.linear_entropy_production(M, D)
        sample = lambda key, n, S=S: jax.random.normal(key, (n, config.dim)) @ jnp.linalg.cholesky(S).T
        net = nn.MLP(config.dim, width=config.width, depth=2, frequencies=None, key=init)
        data = sample(sample_key, 200 * config.batch_size)
        net = _fit(net, D, data, config.steps, config.batch_size, fit_key)
        found = _rates(lambda t, x, args=None, M=M: -M @ x, net, D, sample(fresh_key, 50_000))
        source = f"Tr(M^T M S / D) - Tr M = {float(exact):.4f}"
        _compare(study, f"linear {k}", found, exact, config.linear, source)
        rates.append((float(exact), float(found.total)))
    study.keep(linear=np.asarray(rates))


# ---- the ring

SPEED, RATE, EPSILON = 1.5, 1.0, 0.3  # v_0, gamma, epsilon
_RING_D = np.asarray([2 * EPSILON, RATE], np.float32)


def _ring_drift(t, x, args=None, sin=jnp.sin):
    """Of the displacement of two particles that repel with sin, and of half the difference of their propulsions."""
    return 2 * sin(x[0]) + math.sqrt(2) * SPEED * x[1], -RATE * x[1]


def _ring_field(t, x, args=None):
    return jnp.stack(_ring_drift(t, x))


class RingScore(eqx.Module):
    """A periodic function of the angle; the Gaussian law of a free propulsion is where it starts."""

    net: nn.MLP

    def __call__(self, t, x, args=None):
        return self.net(t, jnp.stack([jnp.cos(x[0]), jnp.sin(x[0]), x[1]])) - jnp.stack([0 * x[0], x[1]])


def _snapshots(drift, D, x0, snapshots, warm, key):
    """Half of the paths to learn from and the other half, (snapshots x paths / 2, ...) each, every half unit of time."""
    every, dt = 100, 0.005
    ts = dt * jnp.arange(every * (snapshots + warm) + 1.0)
    dynamics = Dynamics(drift, lambda t, x, args: jnp.broadcast_to(jnp.asarray(np.sqrt(2 * D), x.dtype), x.shape))
    xs = ensemble(dynamics, x0, ts, key=key, save_every=every).check().xs[warm + 1 :]
    half = x0.shape[0] // 2
    return [part.reshape(-1, *x0.shape[1:]) for part in (xs[:, :half], xs[:, half:])]


def _ring(study, config, key):
    """Two active particles on a ring, against the Fokker-Planck equation on a grid."""
    init, start, noise_key, fit_key = jax.random.split(key, 4)
    x0 = jax.random.normal(start, (config.paths, 2)) + jnp.asarray([[math.pi, 0.0]])
    seen, fresh = _snapshots(_ring_field, _RING_D, x0, config.snapshots, 20, noise_key)
    score = RingScore(nn.MLP(3, width=config.width, depth=2, out_dim=2, frequencies=None, key=init))
    score = _fit(score, _RING_D, seen, config.steps, config.batch_size, fit_key)
    found = _rates(_ring_field, score, _RING_D, fresh)
    numpy_drift = lambda x, g: _ring_drift(0.0, (x, g), sin=np.sin)
    box = ((0, 2 * math.pi), (-6, 6))
    solve = lambda n: particles.stationary_density(
        numpy_drift, (2 * EPSILON, RATE), box, (n, n), periodic=(True, False)
    )
    grid, coarse = solve(config.grid), solve(config.grid // 2)
    reference = grid.entropy_production
    _compare(study, "ring", found, reference, config.ring, f"Fokker-Planck on {config.grid}^2 cells")
    halved = abs(coarse.entropy_production / reference - 1)
    study.at_most("ring: the grid at half the resolution is off by", halved, config.ring / 5, "convergence")
    velocity = particles.probability_velocity(_ring_field, score, _RING_D)
    points = np.stack(np.meshgrid(grid.x, grid.y, indexing="ij"), -1).astype(np.float32)
    learned = np.asarray(jax.jit(jax.vmap(jax.vmap(lambda x: velocity(0.0, x))))(jnp.asarray(points)))
    # The rate by places: on the grid from the gradient of the density.
    slopes = np.asarray(np.gradient(np.log(np.maximum(grid.density, 1e-300)), grid.x, grid.y))
    exact = np.stack(numpy_drift(*np.moveaxis(points, -1, 0)), -1) - _RING_D * np.moveaxis(slopes, 0, -1)
    rate = lambda v: grid.density * np.sum(v**2 / _RING_D, axis=-1)
    study.keep(grid=grid, by_place={"grid": rate(exact), "learned": rate(learned)}, world=None)


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
    return len(x) * PairSum(_push, AllPairs(16))(x, Particles(x))


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


def _world(study, config, key):
    """Many active particles, against the work of the drift."""
    init, start, noise_key, fit_key = jax.random.split(key, 4)
    place, drive = jax.random.split(start)
    n, shape = config.particles, (config.worlds, config.particles, 2)
    x0 = jnp.concatenate([_LENGTH * jax.random.uniform(place, shape), jax.random.normal(drive, shape)], 2)
    seen, fresh = _snapshots(_world_drift, _WORLD_D, x0, config.snapshots, 20, noise_key)
    score = WorldScore(config.width, init)
    before = _rates(_world_drift, score, _WORLD_D, fresh)
    score = _fit(score, _WORLD_D, seen, config.world_steps, config.world_batch, fit_key, random=True)
    found = _rates(_world_drift, score, _WORLD_D, fresh)
    reference, error = jax.jit(lambda x: particles.work_rate(_world_drift, _WORLD_D, x))(fresh)
    _compare(study, f"{n} particles", found, reference, config.world, f"work of the drift {float(reference):.2f}")
    study.measure(work_error=error, untrained_off=abs(float(before.total / reference - 1)))
    study.measure(rate_per_particle=float(found.total) / n, rate_of_free_particle=2 * _DRIVE**2 / _THERMAL)
    velocity = particles.probability_velocity(_world_drift, score, _WORLD_D)(0.0, fresh[-1])
    study.keep(world=fresh[-1], by_particle=jnp.sum(velocity**2 / _WORLD_D[None, :], axis=1))


def plot(result):
    """Linear rates, the density and local rate of the ring, and the map of the rate over particles."""
    d = result.data
    figure, axes = draw.panels(1, 4 if d.world is None else 5, width=3.9, height=3.6)
    linear, ring = axes[0], axes[1:4]
    draw.theory(linear, [0, 1.15 * d.linear.max()], [0, 1.15 * d.linear.max()])
    draw.measured(linear, *d.linear.T)
    draw.label(linear, "linear, non-reciprocal", "exact rate", "learned rate")
    top = d.by_place["grid"].max()
    maps = [(d.grid.density, "density, grid", None, "viridis")]
    maps += [(values, f"rate by place, {name}", top, "magma") for name, values in d.by_place.items()]
    for axis, (values, title, most, colours) in zip(ring, maps, strict=True):
        image = axis.pcolormesh(d.grid.x, d.grid.y, values.T, shading="auto", cmap=colours, vmin=0, vmax=most)
        draw.label(axis, f"ring: {title}", "displacement", "propulsion g", ylim=(-4, 4))
        figure.colorbar(image, ax=axis)
    for world in axes[4:]:
        place, drive = np.split(np.asarray(d.world), 2, axis=1)
        dots = world.scatter(*place.T % _LENGTH, c=d.by_particle, s=90)
        world.quiver(*place.T % _LENGTH, *drive.T, color="0.3", width=0.005)
        world.set(aspect="equal", title=f"rate of each particle, mean {d.by_particle.mean():.2f}")
        figure.colorbar(dots, ax=world)
    return figure
