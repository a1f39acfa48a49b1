r"""Mean-field Langevin dynamics: particles against their limit, and networks and samples as particles.

1. *Propagation of chaos.* $F(\mu) = \tfrac a2 E|x|^2 + \tfrac\kappa4 E|x - x'|^2$: the variance of one particle is
   $T[1/(Na) + (1 - 1/N)/(a + \kappa)]$ at any N, so it leaves its limit as 1/N. Measured for several N against the exact
   law of the discrete kernel, bias of the step included; the slope of the gap in N is to be -1.
2. *N-ULA.* Underdamped, with the exact integration of its linear part: positions and momenta against the fixed point of
   their covariance recursion.
3. *Maximum mean discrepancy.* Particles minimise $\tfrac12 \mathrm{MMD}^2(\mu, \nu)$ with a Gaussian kernel, for samples of a
   ring: beside it, what a fresh sample of that size scores.
4. *A two-layer network* $f(z) = E_\mu[r_3 \tanh(w \cdot z + b)]$ as N particles (w, b, c) that minimise the regularised loss
   of a regression; the free energy falls, and the loss it ends at depends on N as 1/N.

**See** Fu and Wilson, Mean-field underdamped Langevin dynamics and its spacetime discretization (2024); Nitanda, Wu and
Suzuki, Convex analysis of the mean field Langevin dynamics (2022); Chen, Ren and Wang, Uniform-in-time propagation of chaos
for mean field Langevin dynamics (2022).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from physml import particles
from physml.metrics import mmd, power_law
from physml.particles import Particles
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting
from physml.recipes.particles import _stationary
from physml.recipes.particles._stationary import stationary

INFO = RecipeInfo(
    paper="Fu and Wilson, Mean-field underdamped Langevin dynamics and its spacetime discretization (2024)",
    claim="particles leave their mean-field limit as 1/N, by the exact discrete law; MMD and a two-layer network descend",
    time="1 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    sizes: tuple[int, ...] = setting((4, 8, 16, 32, 64), least=2.0, length=2)
    copies: int = setting(4096, least=2.0)  # independent systems
    moves: int = setting(2000, least=2.0)
    step_size: float = 0.05
    a: float = 0.5
    kappa: float = 2.0
    temperature: float = 0.7
    mmd_particles: int = 500
    mmd_moves: int = 4000
    width: int = setting(400, least=2.0)
    network_moves: int = 4000
    network_points: int = 200
    # the bounds of the claims
    slope_tolerance: float = 0.1
    mmd_ratio: float = 2.0
    loss_left: float = 0.1


PAPER = Config()
SMOKE = Config(
    sizes=(4, 16), copies=1024, moves=300, mmd_particles=100, mmd_moves=800, width=50, network_moves=800,
    network_points=50, slope_tolerance=0.4, mmd_ratio=3.0, loss_left=0.4,
)  # fmt: skip


def _weaker(exact):
    weak = lambda kernel: dataclasses.replace(kernel, energy=lambda x: 0.95 * kernel.energy(x))
    return lambda kernel, *arguments, **options: exact(weak(kernel), *arguments, **options)


SABOTAGE = Sabotage("the forces between particles are 5% weaker than their law's", _stationary, "run_chains", _weaker)


def quadratic(config: Config):
    """The functional of part 1, of any measure."""

    def functional(measure):
        square, mean = measure.expect(lambda x: jnp.sum(x**2)), measure.expect(lambda x: x)
        return 0.5 * config.a * square + 0.5 * config.kappa * (square - jnp.sum(mean**2))

    return functional


@experiment
def run(study, config, key):
    keys = jax.random.split(key, 4)
    study.keep(sizes=config.sizes, chaos={})
    stages = [(_chaos, keys[0], "overdamped"), (_chaos, keys[0], "underdamped"), (_ring, keys[1]), (_network, keys[2])]
    for stage, *arguments in study.each(stages, "stage"):
        stage(study, config, *arguments)


def _chaos(study, config, key, kind):
    """Variance of one of n particles over many copies of the system, for every n, and its exact values."""
    functional, h, T = quadratic(config), config.step_size, config.temperature
    if kind == "overdamped":
        kernel = particles.mean_field_langevin(functional, h, T)
    else:
        kernel = particles.underdamped_mean_field(functional, h, 1.0, T)
    # Burn in for fifteen relaxation times of the slowest mode, the mean.
    burn, rows = int(15 / (config.a * h)), []
    for i, n in enumerate(config.sizes):
        start, one_key = jnp.zeros((config.copies, n, 1)), jax.random.fold_in(key, i)
        rows.append(stationary(kernel, start, config.moves, _square, key=one_key, burn=burn)[0])
    value, error = np.transpose(rows)
    with jax.enable_x64(True):
        wide = dataclasses.replace(kernel, step_size=jnp.float64(h), temperature=jnp.float64(T))
        variance = lambda kernel, x: float(particles.stationary_covariance(kernel, x)[0, 0])
        exact = np.asarray([variance(wide, jnp.zeros((n, 1))) for n in config.sizes])
        # One particle that feels the limit's mean, zero: the same kernel with the interaction as a confinement.
        alone = lambda x: 0.5 * (config.a + config.kappa) * jnp.sum(x**2)
        limit = variance(dataclasses.replace(wide, energy=alone), jnp.zeros(1))
    worst = np.max(np.abs(value - exact) / error)
    study.at_most(f"{kind}: largest |z| of a variance over N", worst, 5, "the exact discrete law")
    gap = value - limit
    power = power_law(config.sizes, np.abs(gap), error)[0]
    study.near(f"{kind}: power of N in the gap to the limit", power, -1, "1/N", atol=config.slope_tolerance)
    study.at_least(f"{kind}: gap over its error", np.max(gap / error), 5, "resolved")
    study.data.chaos[kind] = (gap, error, exact - limit)


def _square(x):
    return jnp.mean(x**2)


def _ring(study, config, key):
    """Particles that minimise the squared MMD to samples of a ring."""
    data_key, start_key, run_key, fresh_key = jax.random.split(key, 4)
    n = config.mmd_particles

    def sample(key, n):
        angle_key, width_key = jax.random.split(key)
        angle = 2 * jnp.pi * jax.random.uniform(angle_key, (n,))
        return (2 + 0.2 * jax.random.normal(width_key, (n,)))[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)

    target = Particles(sample(data_key, 2000))
    attract = particles.PairSum(lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2) / 2))

    def functional(mu):
        x, w = mu.nodes()
        return jnp.sum(w * (0.5 * attract(x, mu) - attract(x, target)))

    kernel = particles.mean_field_langevin(functional, 0.5, temperature=1e-4)
    start = 0.3 * jax.random.normal(start_key, (n, 2)) + jnp.asarray([[1.0, 0.0]])
    out = particles.run(
        kernel, start, config.mmd_moves, key=run_key, save_every=config.mmd_moves // 20, stats=False
    ).check()
    check = sample(fresh_key, 4000)
    score = lambda x: float(mmd(x, check, bandwidths=1.0))
    floor = np.mean([score(sample(jax.random.fold_in(fresh_key, i), n)) for i in range(10)])
    scores = [score(x) for x in out.samples]
    quantity = "MMD^2 of the particles over that of a fresh sample"
    study.at_most(quantity, scores[-1] / floor, config.mmd_ratio, "a sample")
    study.keep(ring=out.samples[-1], target=check, scores=scores, floor=floor)


def _network(study, config, key):
    """Two-layer regression by particles (w, b, c)."""
    data_key, start_key, run_key = jax.random.split(key, 3)
    z = jax.random.uniform(data_key, (config.network_points, 1), minval=-2.0, maxval=2.0)
    y = jnp.sin(3 * z[:, 0]) * jnp.exp(-jnp.abs(z[:, 0]))
    unit = lambda p: 10.0 * jnp.tanh(p[2]) * jnp.tanh(z @ p[:1] + p[1])
    loss = lambda measure: 0.5 * jnp.mean((measure.expect(unit) - y) ** 2)
    functional = lambda measure: loss(measure) + 1e-4 * measure.expect(lambda p: jnp.sum(p**2))
    kernel = particles.mean_field_langevin(functional, 0.05, 1e-5)
    start, moves = 1.5 * jax.random.normal(start_key, (config.width, 3)), config.network_moves
    end = Particles(particles.run(kernel, start, moves, key=run_key, keep=False, stats=False).check().state.position)
    left = loss(end) / loss(Particles(start))
    study.at_most("two-layer network: loss left", left, config.loss_left, "of that at the start")
    study.keep(inputs=z[:, 0], targets=y, fit=end.expect(unit))


def plot(result):
    """The gap to the limit over N, the ring, and the network."""
    d = result.data
    figure, (chaos, ring, flow, network) = draw.panels(1, 4, width=3.75)
    for i, (kind, (gap, error, exact)) in enumerate(d.chaos.items()):
        draw.measured(chaos, d.sizes, gap, error, color=f"C{i}", label=kind)
        draw.theory(chaos, d.sizes, exact, color=f"C{i}")
    draw.label(chaos, "lines: the exact discrete law", "N", "variance - limit", log="xy")
    draw.cloud(ring, d.target, color="0.8")
    draw.cloud(ring, d.ring, "MMD flow to a ring", size=3.0, color="C3", alpha=1)
    flow.plot(d.scores)
    flow.axhline(d.floor, color="0.5", ls="--")
    draw.label(flow, "MMD², dashed a fresh sample", "saved moves", log="y")
    network.plot(d.inputs, d.targets, "k.", ms=3)
    order = np.argsort(d.inputs)
    network.plot(d.inputs[order], d.fit[order])
    draw.label(network, "two-layer network", "z", "f(z)")
    return figure
