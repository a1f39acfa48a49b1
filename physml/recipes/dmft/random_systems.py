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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml import dmft
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.dmft import LotkaVolterra, RandomNetwork
from physml.recipes._result import Info, Result, at_most, close_to

INFO = Info(
    paper="Sompolinsky, Crisanti and Sommers, Chaos in random neural networks (1988); Bunin (2017); Galla (2018)",
    claim="variance, memory and Lyapunov exponent of random networks; survivors and their stability; couplings by design",
    time="10 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
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


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Networks, communities, design."""
    claims: list = []
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    network_key, community_key = jax.random.split(key)
    with progress_bar(3, "random systems", "stage", show=progress) as bar:
        _networks(config, network_key, claims, metrics, arrays)
        bar.update()
        _communities(config, community_key, claims, metrics, arrays)
        bar.update()
        _design(config, claims, metrics, arrays)
        bar.update()
    return Result(tuple(claims), {name: float(value) for name, value in metrics.items()}, arrays)


def _networks(config, key, claims, metrics, arrays):
    model = RandomNetwork(g=config.g)
    theory = dmft.solve(model).check().order
    if config.g == 1.5:
        claims.append(close_to("C(0) at g = 1.5", theory.C0, 0.7477, 5e-5, "potential of the ball, quadrature"))
    simulate = jax.jit(lambda k: model.finite_n(config.units, key=k, t_max=config.t_max))
    sims = [simulate(jax.random.fold_in(key, i)) for i in range(config.networks)]
    for name, symbol, bound in (
        ("C0", "C(0)", config.variance * float(theory.C0)),
        ("lyapunov", "lambda", config.exponent),
    ):
        values = np.asarray([getattr(sim, name) for sim in sims])
        error = values.std(ddof=1) / np.sqrt(len(values))
        metrics |= {f"{symbol} theory": float(getattr(theory, name)), f"{symbol} networks": values.mean()}
        claims.append(
            at_most(f"{symbol} of networks of {config.units} units, distance to theory",
                    abs(values.mean() - float(getattr(theory, name))), bound, "N to infinity", error=error)
        )  # fmt: skip
    arrays |= {"tau": np.asarray(theory.tau), "C": np.asarray(theory.C)}
    arrays |= {"sim tau": np.asarray(sims[0].tau), "sim C": np.stack([np.asarray(sim.C) for sim in sims])}
    gs = np.linspace(0.6, 3.0, config.couplings)
    network = lambda g: RandomNetwork(g=g, points=config.lags, terms=config.terms)
    sweep = jax.jit(lambda gs: jax.lax.map(lambda g: dmft.solve(network(g)).order, gs))(jnp.asarray(gs, jnp.float32))
    arrays |= {"g": gs, "C0": np.asarray(sweep.C0), "lyapunov": np.asarray(sweep.lyapunov)}


def _communities(config, key, claims, metrics, arrays):
    sigma_c = float(dmft.critical_spread(config.gamma))
    sigmas = np.linspace(0.05, 0.97, 24) * sigma_c
    solve = jax.jit(lambda s: dmft.solve(LotkaVolterra(config.mu, s, config.gamma)))
    theory = jax.vmap(lambda s: solve(s).order)(jnp.asarray(sigmas, jnp.float32))
    arrays |= {"sigma": sigmas / sigma_c} | {k: np.asarray(getattr(theory, k)) for k in ("m", "q", "phi", "margin")}
    measured = np.asarray([0.3, 0.6, 0.9]) * sigma_c
    simulate = jax.jit(lambda s, k: LotkaVolterra(config.mu, s, config.gamma).finite_n(config.species, key=k))
    seen = {k: [] for k in ("m", "q", "phi")}
    for i, sigma in enumerate(measured):
        keys = [jax.random.fold_in(key, 1000 * i + j) for j in range(config.communities)]
        sims = [simulate(jnp.float32(sigma), k) for k in keys]
        exact = solve(jnp.float32(sigma)).check().order
        for name in seen:
            values = np.asarray([getattr(sim, name) for sim in sims])
            error = values.std(ddof=1) / np.sqrt(len(values))
            seen[name].append((values.mean(), error))
            claims.append(
                at_most(f"{name} of communities at sigma = {sigma / sigma_c:.1f} sigma_c, distance to theory",
                        abs(values.mean() - float(getattr(exact, name))), 5 * error + 4 / config.species,
                        "5 standard errors and 4/S", error=error)
            )  # fmt: skip
    arrays |= {"measured": measured / sigma_c} | {f"seen {k}": np.asarray(v) for k, v in seen.items()}

    # The sign of the margin, by bisection, against the closed form.
    low, high = 0.5 * sigma_c, 1.5 * sigma_c
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if float(solve(jnp.float32(middle)).order.margin) > 0 else (low, middle)
    metrics["boundary"] = low
    claims.append(
        close_to("spread where the fixed point loses stability", low, sigma_c, config.boundary * sigma_c,
                 "sqrt 2 / (1 + gamma)")
    )  # fmt: skip


def _design(config, claims, metrics, arrays):
    exponent = lambda g: dmft.solve(RandomNetwork(g=g, points=config.lags, terms=config.terms)).order.lyapunov
    survivors = lambda s: dmft.solve(LotkaVolterra(config.mu, s, config.gamma)).order.phi
    for name, read, start, target in (
        ("exponent", exponent, 1.2, config.target_exponent),
        ("survivors", survivors, 0.3, config.target_survivors),
    ):
        # Newton's method on the order parameter: its derivative costs one linear solve.
        both = jax.jit(jax.value_and_grad(read))
        p, trace = jnp.float32(start), []
        for _ in range(config.design_steps):
            value, slope = both(p)
            trace.append(abs(float(value) / target - 1))
            p = p + jnp.clip((target - value) / slope, -0.3, 0.3)
        metrics |= {f"{name} designed at": float(p)}
        arrays[f"design {name}"] = np.asarray(trace)
        claims.append(
            at_most(f"{name} wanted {target:g}: relative distance of the designed system", abs(float(both(p)[0]) / target - 1),
                    1e-3, "gradient of the order parameter")
        )  # fmt: skip


def plot(result: Result) -> Any:
    """Correlation and exponent of networks, abundances, design."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7), layout="constrained")
    for i, C in enumerate(a["sim C"]):
        axes[0, 0].plot(a["sim tau"], C, color="C1", lw=0.8, label="networks" if i == 0 else None)
    axes[0, 0].plot(a["tau"], a["C"], "k", label="N to infinity")
    axes[0, 0].set(xlabel=r"$\tau$", ylabel=r"$C(\tau)$", title="autocorrelation", xlim=(0, 30))
    axes[0, 0].legend()
    axes[0, 1].plot(a["g"], a["C0"], label="C(0)")
    axes[0, 1].plot(a["g"], a["lyapunov"], label=r"$\lambda$")
    axes[0, 1].axhline(0, color="k", lw=0.5)
    axes[0, 1].axvline(1, color="k", ls=":", lw=1)
    axes[0, 1].set(xlabel="g", title="onset of chaos", ylim=(-0.5, 3))
    axes[0, 1].legend()
    for i, name in enumerate(("m", "q", "phi")):
        axes[1, 0].plot(a["sigma"], a[name], color=f"C{i}", label={"phi": r"$\phi$"}.get(name, name))
        seen = a[f"seen {name}"]
        axes[1, 0].errorbar(a["measured"], seen[:, 0], 2 * seen[:, 1], fmt="o", color=f"C{i}", ms=4)
    axes[1, 0].plot(a["sigma"], a["margin"], "k--", lw=1, label="margin of stability")
    axes[1, 0].set(xlabel=r"$\sigma/\sigma_c$", title="species: theory and communities")
    axes[1, 0].legend()
    for name in ("exponent", "survivors"):
        axes[1, 1].semilogy(np.maximum(a[f"design {name}"], 1e-12), label=name)
    axes[1, 1].set(xlabel="step", ylabel="relative distance", title="design by the implicit derivative")
    axes[1, 1].legend()
    return figure
