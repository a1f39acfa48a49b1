r"""The Coulomb gas of the plane: sums over interacting charges, whose every cumulant is known.

Charges with $e^{-\beta H}$, $H = \sum_i |x_i|^2/2 - \sum_{i<j} \ln|x_i - x_j|$, sampled by Hamiltonian Monte Carlo.

1. At $\beta = 2$ the first three cumulants of linear statistics $\sum_i f(x_i)$ are those of a determinantal process, exact for
   n charges; the eigenvalues of Ginibre matrices have them as well, and the density is $Q(n, r^2)/\pi$.
2. At every $\beta$, $\sum_i |x_i|^2$ has a Gamma law, through which an error of the sampler would show.
3. The variance of a smooth statistic does not grow with n; it approaches the Dirichlet energy of f as 1/n.

**See** Ginibre (1965); Rider and Virág, The noise in the circular law and the Gaussian free field (2007).
"""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.particles import hmc, run_chains
from physml.particles.matter.coulomb import (
    coulomb_gas,
    ginibre,
    ginibre_density,
    limit_variance,
    linear_statistic_cumulants,
    virial_law,
)
from physml.recipes._result import Info, Result, at_most, close_to

INFO = Info(
    paper="Ginibre (1965); Rider and Virág, The noise in the circular law and the Gaussian free field (2007)",
    claim="cumulants of linear statistics at beta = 2, the Gamma law of the virial at every beta, both by HMC",
    time="half a minute, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    n: int = 20
    chains: int = 64
    draws: int = 2000  # of each chain; the first tenth forgets the start
    leaps: int = 10
    step: float = 0.25  # of HMC at beta = 2; it goes as the root of beta
    betas: tuple[float, ...] = (1.0, 4.0)  # beside 2
    matrices: int = 4000
    sizes: tuple[int, ...] = (8, 16, 32, 64)
    errors: float = 5.0  # standard errors granted

    def __post_init__(self):
        for name in ("n", "chains", "draws", "leaps", "matrices"):
            if getattr(self, name) < 2:
                raise ValueError(f"config.{name} must be at least 2, got {getattr(self, name)}")
        if min(self.betas, default=1.0) <= 0 or self.step <= 0:
            raise ValueError(f"betas and step must be positive, got {self.betas} and {self.step}")


PAPER = Config()
SMOKE = Config(n=8, chains=32, draws=120, betas=(4.0,), matrices=400, sizes=(8, 32))


def _bump(x, n):
    """A smooth bump beside the centre, of a third of the droplet's radius."""
    return jnp.exp(-4.0 * jnp.sum((x / n**0.5 - jnp.asarray([0.3, 0.1], x.dtype)) ** 2))


def _saddle(x, n):
    return (x[0] ** 2 - x[1] ** 2) / n


def _moment(x, n):
    return jnp.sum(x**2) / n


STATISTICS = {"bump": _bump, "saddle": _saddle, "virial": _moment}


def _observe(x):
    """The statistics of one configuration (n, 2), and the distances from the centre."""
    sums = jnp.stack([jnp.sum(jax.vmap(lambda p, f=f: f(p, len(x)))(x)) for f in STATISTICS.values()])
    return sums, jnp.sqrt(jnp.sum(x**2, axis=1))


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """HMC at beta = 2 and others, the eigenvalues, and the growth of the variance."""
    claims, numbers, arrays = [], {}, {}
    n, source = config.n, f"{config.errors:g} standard errors"
    within = lambda name, z, of: claims.append(at_most(name, np.abs(z).max(), config.errors, of))
    exact = dict(zip(STATISTICS, np.asarray(_exact(tuple(STATISTICS), n), np.float64), strict=True))
    betas = (2.0, *config.betas)
    with progress_bar(len(betas) + 1, "coulomb_gas", "ensemble", show=progress) as bar:
        for i, beta in enumerate(betas):
            sums, radii, configuration, acceptance = _simulate(config, beta, jax.random.fold_in(key, i))
            numbers[f"acceptance_{beta:g}"] = acceptance
            law = np.asarray(virial_law(n, beta).cumulants, np.float64) / n ** np.arange(1, 4)
            got, error = _cumulants(sums[..., 2])
            within(f"beta {beta:g}: cumulants of sum |x|^2 from the Gamma law", (got - law) / error, source)
            arrays[f"virial_{beta:g}"] = n * sums[..., 2].ravel()
            numbers |= {f"virial_{beta:g}_cumulant_{p + 1}": n ** (p + 1) * got[p] for p in range(3)}
            if beta == 2.0:
                for j, (name, theory) in enumerate(exact.items()):
                    got, error = _cumulants(sums[..., j])
                    if name != "virial":  # which was just held against its law
                        within(f"beta 2, HMC: cumulants of the {name}", (got - theory) / error, source)
                    arrays[f"z_{name}"] = (got - theory) / error
                    arrays[f"cumulants_{name}"] = np.stack([theory, got, error])
                density, error, centres, theory = _density(radii, n)
                within("beta 2, HMC: density in rings", (density - theory) / error, source)
                arrays |= {"r": centres, "density": density, "density_error": error}
                arrays["configuration"] = configuration
            bar.update()
        keys = jax.random.split(jax.random.fold_in(key, 100), config.matrices)
        spectra = jax.lax.map(lambda k: _observe(ginibre(n, key=k))[0], keys)
        spectra = np.asarray(spectra, np.float64).reshape(-1, config.matrices // max(1, config.matrices // 50), 3)
        for j, (name, theory) in enumerate(exact.items()):
            got, error = _cumulants(spectra[..., j].T)
            within(f"beta 2, eigenvalues: cumulants of the {name}", (got - theory) / error, source)
            arrays[f"z_eigenvalues_{name}"] = (got - theory) / error
        bar.update()
    limit = float(limit_variance(partial(_bump, n=1)))
    variances = np.asarray([_exact(("bump",), size)[0, 1] for size in config.sizes])
    last, before = ((1 - variances[i] / limit) * config.sizes[i] for i in (-1, 0))
    claims.append(close_to("n x missing share of the variance, largest over smallest n", last / before, 1, 0.35, "1/n"))
    numbers |= {"limit_variance": limit, "last_variance": float(variances[-1])}
    arrays |= {"sizes": np.asarray(config.sizes), "variances": variances}
    arrays["betas"], arrays["n"] = np.asarray(betas), np.asarray(n)
    return Result(tuple(claims), numbers, arrays)


@partial(jax.jit, static_argnums=(0, 1))
def _exact(names, n):
    """Cumulants (statistics, 3)."""
    return jnp.stack([linear_statistic_cumulants(lambda x, f=STATISTICS[k]: f(x, n), n) for k in names])


@eqx.filter_jit
def _chains(config, beta, key):
    start_key, run_key = jax.random.split(key)
    step = config.step * jnp.sqrt(beta / 2)  # the colder, the further apart, the softer
    kernel = hmc(coulomb_gas, step, config.leaps, 1 / beta, duration="uniform")
    x = jax.random.normal(start_key, (config.chains, config.n, 2)) * (config.n / 4) ** 0.5
    return run_chains(kernel, x, config.draws, key=run_key, observe=_observe, stats=False)


def _simulate(config, beta, key):
    """Statistics (draws, chains, 3), distances (draws, chains, n) after the first tenth, a configuration, acceptance."""
    out = _chains(config, jnp.asarray(beta), key).check()
    sums, radii = (np.asarray(a, np.float64)[config.draws // 10 :] for a in out.samples)
    return sums, radii, np.asarray(out.state.position[0]), float(out.info.acceptance.mean())


def _cumulants(values):
    """Three cumulants of values (draws, chains), with standard errors by leaving out one chain at a time."""
    centre = values.mean()
    powers = np.stack([((values - centre) ** p).mean(axis=0) for p in (1, 2, 3)])  # (3, chains)
    chains = powers.shape[1]

    def cumulants(m):
        return np.stack([m[0] + centre, m[1] - m[0] ** 2, m[2] - 3 * m[1] * m[0] + 2 * m[0] ** 3])

    whole = cumulants(powers.mean(axis=1))
    left_out = cumulants((powers.sum(axis=1, keepdims=True) - powers) / (chains - 1))
    error = np.sqrt((chains - 1) * left_out.var(axis=1))
    bias = (chains - 1) * (left_out.mean(axis=1) - whole)
    return whole - bias, error


def _density(radii, n, rings=12):
    """Density in rings of equal area from radii (draws, chains, n), its error over chains, and the exact averages."""
    edges = np.sqrt(np.linspace(0, 1.1 * n, rings + 1))
    area = np.pi * np.diff(edges**2)
    counts = np.stack([np.histogram(chain, edges)[0] for chain in np.moveaxis(radii, 1, 0)]) / len(radii)
    fine = np.sqrt(edges[:-1, None] ** 2 + np.diff(edges**2)[:, None] * (np.arange(200)[None, :] + 0.5) / 200)
    theory = np.asarray(ginibre_density(jnp.asarray(fine, jnp.float32), n), np.float64).mean(axis=1)
    error = counts.std(axis=0, ddof=1) / np.sqrt(len(counts))
    centres = np.sqrt((edges[:-1] ** 2 + edges[1:] ** 2) / 2)
    return counts.mean(axis=0) / area, error / area, centres, theory


def plot(result: Result) -> Any:
    """A configuration, the density, the law of the virial, cumulants in standard errors, and the variance over n."""
    import matplotlib.pyplot as plt
    from scipy import stats

    arrays = result.arrays
    n, betas = int(arrays["n"]), arrays["betas"]
    figure, axes = plt.subplots(1, 5, figsize=(18, 3.6), layout="constrained")
    axes[0].plot(*arrays["configuration"].T, "o", color="C0", ms=5)
    axes[0].add_patch(plt.Circle((0, 0), n**0.5, fill=False, color="0.6"))
    axes[0].set(title=rf"{n} charges, $\beta = 2$", aspect="equal")
    r = np.linspace(0, 1.3 * n**0.5, 200)
    axes[1].plot(r, np.asarray(ginibre_density(jnp.asarray(r, jnp.float32), n)), "k", lw=1, label="exact")
    axes[1].errorbar(arrays["r"], arrays["density"], 3 * arrays["density_error"], fmt="o", ms=4, label="HMC, 3 s.e.")
    axes[1].set(xlabel="distance from the centre", ylabel="density", title=r"density at $\beta = 2$", ylim=(0, None))
    axes[1].legend(fontsize=8)
    for i, beta in enumerate(sorted(betas)):
        law = virial_law(n, float(beta))
        values = arrays[f"virial_{beta:g}"]
        axes[2].hist(values, bins=60, density=True, color=f"C{i}", alpha=0.5)
        s = np.linspace(values.min(), values.max(), 300)
        pdf = stats.gamma.pdf(s, float(law.shape), scale=1 / float(law.rate))
        axes[2].plot(s, pdf, color=f"C{i}", label=rf"$\beta = {beta:g}$")
    axes[2].set(xlabel=r"$\sum_i |x_i|^2$", ylabel="density", title="HMC and the Gamma law")
    axes[2].legend(fontsize=8)
    for i, name in enumerate(STATISTICS):
        for j, (kind, marker) in enumerate((("z_", "o"), ("z_eigenvalues_", "s"))):
            label = ("HMC", "eigenvalues")[j] if i == 0 else None
            axes[3].plot(3.5 * i + np.arange(3) + 0.2 * j, arrays[f"{kind}{name}"], marker, color=f"C{j}", label=label)
    axes[3].axhspan(-2, 2, color="0.9", zorder=0)
    ticks = [3.5 * i + p for i in range(len(STATISTICS)) for p in range(3)]
    labels = [rf"$\kappa_{p + 1}$" + (f"\n{name}" if p == 1 else "") for name in STATISTICS for p in range(3)]
    axes[3].set_xticks(ticks, labels, fontsize=8)
    axes[3].set(ylabel="deviation, standard errors", ylim=(-5, 5), title="cumulants against exact ones")
    axes[3].legend(fontsize=8, ncols=2)
    axes[4].semilogx(arrays["sizes"], arrays["variances"], "o-", label="exact for n charges")
    axes[4].axhline(result.metrics["limit_variance"], color="k", lw=1, label=r"Dirichlet energy, $n \to \infty$")
    axes[4].set_xticks(arrays["sizes"], [str(s) for s in arrays["sizes"]])
    axes[4].minorticks_off()
    axes[4].set(xlabel="n", ylabel="variance of the bump", title="the variance does not grow")
    axes[4].set_ylim(0, 1.25 * result.metrics["limit_variance"])
    axes[4].legend(fontsize=8)
    return figure
