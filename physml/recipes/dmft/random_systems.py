r"""Networks and ecologies with random couplings: mean-field order parameters, finite systems, and design by gradient.

1. *Random networks* $\dot x_i = -x_i + g\sum_j J_{ij}\tanh x_j$: variance, autocorrelation and Lyapunov exponent of the chaos
   for g > 1 (Sompolinsky, Crisanti and Sommers 1988), against networks of N units.
2. *Lotka and Volterra* with random interactions: abundances and survivors below $\sigma_c = \sqrt2/(1+\gamma)$, where the one
   fixed point loses stability (Bunin 2017, Galla 2018), against communities of S species.
3. *Design*: the coupling at which a network forgets at a wanted rate, found by following the implicit derivative of the
   Lyapunov exponent; and the spread at which a wanted fraction of species survives.

**See** Sompolinsky, Crisanti and Sommers, Chaos in random neural networks (1988); Bunin, Ecological communities with
Lotka-Volterra dynamics (2017); Galla, Dynamically evolved community size and stability (2018).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from physml import dmft
from physml.dmft import LotkaVolterra, RandomNetwork
from physml.metrics import mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment

INFO = RecipeInfo(
    paper="Sompolinsky, Crisanti and Sommers, Chaos in random neural networks (1988); Bunin (2017); Galla (2018)",
    claim="variance, memory and Lyapunov exponent of random networks; survivors and their stability; couplings by design",
    time="10 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    g: float = 1.5
    units: int = 4000
    networks: int = 8
    t_max: float = 150.0
    species: int = 1000
    communities: int = 10
    mu: float = 4.0
    gamma: float = 0.5
    lags: int = 201  # of the autocorrelations along g and in the design
    terms: int = 128
    couplings: int = 25
    design_steps: int = 8
    target_exponent: float = 0.1
    target_survivors: float = 0.75
    # the bounds of the claims
    variance: float = 0.02  # relative
    exponent: float = 0.01
    boundary: float = 0.01  # relative


PAPER = Config()
SMOKE = Config(
    g=2.0, units=200, t_max=60.0, species=150, communities=4, lags=61, terms=32, couplings=3, design_steps=5,
    variance=0.15, exponent=0.1,
)  # fmt: skip

SABOTAGE = Sabotage(
    "networks of a coupling 1.4 times as strong", RandomNetwork, "finite_n",
    lambda exact: lambda self, n, **options: exact(RandomNetwork(1.4 * self.g, points=self.points), n, **options),
)  # fmt: skip


@experiment
def run(study, config, key):
    network_key, community_key = jax.random.split(key)
    stages = [(_networks, network_key), (_communities, community_key), (_stability, None), (_design, None)]
    for stage, stage_key in study.each(stages, "stage"):
        stage(study, config, stage_key)


def _networks(study, config, key):
    """Networks of many units against the theory, and the theory along g."""
    model = RandomNetwork(g=config.g)
    theory = dmft.solve(model).check().order
    if config.g == 1.5:
        study.near("C(0) at g = 1.5", theory.C0, 0.7477, "potential of the ball, quadrature", atol=5e-5)
    simulate = jax.jit(lambda k: model.finite_n(config.units, key=k, t_max=config.t_max))
    networks = [simulate(jax.random.fold_in(key, i)) for i in range(config.networks)]
    for name, symbol, bound in (
        ("C0", "C(0)", config.variance * float(theory.C0)),
        ("lyapunov", "lambda", config.exponent),
    ):
        found, expected = mean_and_error([getattr(network, name) for network in networks]), float(getattr(theory, name))
        study.metrics |= {f"{symbol} theory": expected, f"{symbol} networks": found.value}
        quantity = f"{symbol} of networks of {config.units} units, distance to theory"
        study.at_most(quantity, abs(found.value - expected), bound, "N to infinity", error=found.error)
    gs = np.linspace(0.6, 3.0, config.couplings)
    network = lambda g: RandomNetwork(g=g, points=config.lags, terms=config.terms)
    sweep = jax.jit(lambda gs: jax.lax.map(lambda g: dmft.solve(network(g)).order, gs))(jnp.asarray(gs, jnp.float32))
    study.keep(theory=theory, networks=networks, g=gs, sweep=sweep)


def _community(config, sigma):
    return LotkaVolterra(config.mu, sigma, config.gamma)


def _communities(study, config, key):
    """Mean abundance, its square and the survivors at three spreads."""
    spread = float(dmft.critical_spread(config.gamma))
    sigmas = np.linspace(0.05, 0.97, 24)
    solve = jax.jit(lambda s: dmft.solve(_community(config, s)))
    theory = jax.vmap(lambda s: solve(s).order)(jnp.asarray(sigmas * spread, jnp.float32))
    simulate = jax.jit(lambda s, k: _community(config, s).finite_n(config.species, key=k))
    measured = {"m": [], "q": [], "phi": []}
    at = np.asarray([0.3, 0.6, 0.9])
    for i, sigma in enumerate(at * spread):
        keys = [jax.random.fold_in(key, 1000 * i + j) for j in range(config.communities)]
        communities = [simulate(jnp.float32(sigma), k) for k in keys]
        exact = solve(jnp.float32(sigma)).check().order
        for name, rows in measured.items():
            rows.append(found := mean_and_error([getattr(community, name) for community in communities]))
            study.at_most(
                f"{name} of communities at sigma = {at[i]:.1f} sigma_c, distance to theory",
                abs(found.value - float(getattr(exact, name))), 5 * found.error + 4 / config.species,
                "5 standard errors and 4/S", error=found.error,
            )  # fmt: skip
    study.keep(sigma=sigmas, communities=theory, measured=measured, measured_at=at)


def _stability(study, config, key):
    """The sign of the margin, by bisection, against the closed form."""
    spread = float(dmft.critical_spread(config.gamma))
    margin = jax.jit(lambda s: dmft.solve(_community(config, s)).order.margin)
    low, high = 0.5 * spread, 1.5 * spread
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if float(margin(jnp.float32(middle))) > 0 else (low, middle)
    name = "spread where the fixed point loses stability"
    study.near(name, low, spread, "sqrt 2 / (1 + gamma)", rtol=config.boundary)


def _design(study, config, key):
    """Systems with a wanted order parameter by Newton's method, whose derivative costs one linear solve."""
    exponent = lambda g: dmft.solve(RandomNetwork(g=g, points=config.lags, terms=config.terms)).order.lyapunov
    survivors = lambda s: dmft.solve(_community(config, s)).order.phi
    traces = {}
    for name, read, p, target in (
        ("exponent", exponent, 1.2, config.target_exponent),
        ("survivors", survivors, 0.3, config.target_survivors),
    ):
        both = jax.jit(jax.value_and_grad(read))
        p, traces[name] = jnp.float32(p), []
        for _ in range(config.design_steps):
            value, slope = both(p)
            traces[name].append(abs(float(value) / target - 1))
            p = p + jnp.clip((target - value) / slope, -0.3, 0.3)
        study.metrics[f"{name} designed at"] = p
        quantity = f"{name} wanted {target:g}: relative distance of the designed system"
        study.at_most(quantity, abs(float(both(p)[0]) / target - 1), 1e-3, "gradient of the order parameter")
    study.keep(design=traces)


def plot(result):
    """Correlation and exponent of networks, abundances, design."""
    d = result.data
    figure, axes = draw.panels(2, 2)
    memory, chaos, species, design = axes.flat
    for i, network in enumerate(d.networks):
        memory.plot(network.tau, network.C, "C1", lw=0.8, label=None if i else "networks")
    draw.theory(memory, d.theory.tau, d.theory.C, label="N to infinity")
    draw.label(memory, "autocorrelation", r"$\tau$", r"$C(\tau)$", xlim=(0, 30))
    draw.theory(chaos, d.g, d.sweep.C0, "C0", label="C(0)")
    draw.theory(chaos, d.g, d.sweep.lyapunov, "C1", label=r"$\lambda$")
    chaos.axhline(0, color="k", lw=0.5)
    chaos.axvline(1, color="k", ls=":", lw=1)
    draw.label(chaos, "onset of chaos", "g", ylim=(-0.5, 3))
    for i, (name, rows) in enumerate(d.measured.items()):
        draw.theory(species, d.sigma, getattr(d.communities, name), f"C{i}", label={"phi": r"$\phi$"}.get(name, name))
        draw.measured(species, d.measured_at, *np.transpose(rows), color=f"C{i}")
    draw.theory(species, d.sigma, d.communities.margin, "k--", lw=1, label="margin of stability")
    draw.label(species, "species: theory and communities", r"$\sigma/\sigma_c$")
    for name, trace in d.design.items():
        design.plot(np.maximum(trace, 1e-12), label=name)
    draw.label(design, "design by the implicit derivative", "step", "relative distance", log="y")
    return figure
