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

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from physml import particles
from physml.metrics import mean_and_error
from physml.metrics.estimate import Estimate
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Ginibre (1965); Rider and Virág, The noise in the circular law and the Gaussian free field (2007)",
    claim="cumulants of linear statistics at beta = 2, the Gamma law of the virial at every beta, both by HMC",
    time="half a minute, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    n: int = setting(20, least=2.0)
    chains: int = setting(64, least=2.0)
    draws: int = setting(2000, least=2.0)  # of each chain; the first tenth forgets the start
    leaps: int = setting(10, least=2.0)
    step: float = 0.25  # of HMC at beta = 2; it goes as the root of beta
    betas: tuple[float, ...] = setting((1.0, 4.0), length=0)  # beside 2
    matrices: int = setting(4000, least=2.0)
    sizes: tuple[int, ...] = (8, 16, 32, 64)
    errors: float = 5.0  # standard errors granted


PAPER = Config()
SMOKE = Config(n=8, chains=32, draws=120, betas=(4.0,), matrices=400, sizes=(8, 32))

SABOTAGE = Sabotage(
    "the charges are a fifth too cold", particles, "hmc",
    lambda exact: lambda energy, step, leaps, temperature, **options: exact(
        energy, step, leaps, temperature / 1.2, **options
    ),
)  # fmt: skip


def _bump(x, n):
    """A smooth bump beside the centre, of a third of the droplet's radius."""
    return jnp.exp(-4.0 * jnp.sum((x / n**0.5 - jnp.asarray([0.3, 0.1], x.dtype)) ** 2))


STATISTICS = {
    "bump": _bump,
    "saddle": lambda x, n: (x[0] ** 2 - x[1] ** 2) / n,
    "virial": lambda x, n: jnp.sum(x**2) / n,
}


def _observe(x):
    """The statistics of one configuration (n, 2), and the distances from the centre."""
    sums = jnp.stack([jnp.sum(jax.vmap(lambda p, f=f: f(p, len(x)))(x)) for f in STATISTICS.values()])
    return sums, jnp.sqrt(jnp.sum(x**2, axis=1))


@experiment
def run(study, config, key):
    exact = dict(zip(STATISTICS, np.asarray(_exact(tuple(STATISTICS), config.n), np.float64), strict=True))
    study.keep(n=config.n, z={}, virial={})
    for i, beta in enumerate(study.each((2.0, *config.betas), "ensemble")):
        _ensemble(study, config, beta, exact, jax.random.fold_in(key, i))
    keys = jax.random.split(jax.random.fold_in(key, 100), config.matrices)
    spectra = jax.lax.map(lambda k: _observe(particles.ginibre(config.n, key=k))[0], keys)
    spectra = np.asarray(spectra, np.float64).reshape(-1, config.matrices // max(1, config.matrices // 50), 3)
    for j, (name, theory) in enumerate(exact.items()):
        z = study.data.z["eigenvalues", name] = _cumulants(spectra[..., j].T).z(theory)
        _within(study, config, f"beta 2, eigenvalues: cumulants of the {name}", z)
    limit = float(particles.limit_variance(partial(_bump, n=1)))
    variances = np.asarray([_exact(("bump",), size)[0, 1] for size in config.sizes])
    last, before = ((1 - variances[i] / limit) * config.sizes[i] for i in (-1, 0))
    quantity = "n x missing share of the variance, largest over smallest n"
    study.near(quantity, last / before, 1, "1/n", atol=0.35)
    study.measure(limit_variance=limit, last_variance=variances[-1])
    study.keep(sizes=config.sizes, variances=variances, limit=limit)


def _within(study, config, quantity, z):
    study.at_most(quantity, np.abs(z).max(), config.errors, f"{config.errors:g} standard errors")


def _ensemble(study, config, beta, exact, key):
    """Charges at one beta against the Gamma law of the virial, at beta = 2 against every exact cumulant."""
    n, powers = config.n, np.arange(1, 4)
    out = _chains(config, jnp.asarray(beta), key).check()
    sums, radii = (np.asarray(a, np.float64)[config.draws // 10 :] for a in out.samples)
    found = _cumulants(sums[..., 2])
    law = np.asarray(particles.virial_law(n, beta).cumulants, np.float64) / n**powers
    _within(study, config, f"beta {beta:g}: cumulants of sum |x|^2 from the Gamma law", found.z(law))
    study.metrics[f"acceptance_{beta:g}"] = out.info.acceptance.mean()
    study.metrics |= {f"virial_{beta:g}_cumulant_{p}": n**p * v for p, v in zip(powers, found.value, strict=True)}
    study.data.virial[beta] = n * sums[..., 2].ravel()
    if beta != 2.0:
        return
    for j, (name, theory) in enumerate(exact.items()):
        z = study.data.z["HMC", name] = _cumulants(sums[..., j]).z(theory)
        if name != "virial":  # which was just held against its law
            _within(study, config, f"beta 2, HMC: cumulants of the {name}", z)
    density, centres, theory = _density(radii, n)
    _within(study, config, "beta 2, HMC: density in rings", density.z(theory))
    study.keep(configuration=out.state.position[0], r=centres, density=density)


@partial(jax.jit, static_argnums=(0, 1))
def _exact(names, n):
    """Cumulants (statistics, 3)."""
    return jnp.stack([particles.linear_statistic_cumulants(lambda x, f=STATISTICS[k]: f(x, n), n) for k in names])


@eqx.filter_jit
def _chains(config, beta, key):
    """Statistics (draws, chains, 3) and distances (draws, chains, n) by HMC."""
    start_key, run_key = jax.random.split(key)
    step = config.step * jnp.sqrt(beta / 2)  # the colder, the further apart, the softer
    kernel = particles.hmc(particles.coulomb_gas, step, config.leaps, 1 / beta, duration="uniform")
    x = jax.random.normal(start_key, (config.chains, config.n, 2)) * (config.n / 4) ** 0.5
    return particles.run_chains(kernel, x, config.draws, key=run_key, observe=_observe, stats=False)


def _cumulants(values):
    """Three cumulants of values (draws, chains), less their bias, with errors by leaving out one chain at a time."""
    centre = values.mean()
    powers = np.stack([((values - centre) ** p).mean(axis=0) for p in (1, 2, 3)])  # (3, chains)
    chains = powers.shape[1]
    cumulants = lambda m: np.stack([m[0] + centre, m[1] - m[0] ** 2, m[2] - 3 * m[1] * m[0] + 2 * m[0] ** 3])
    left_out = cumulants((powers.sum(axis=1, keepdims=True) - powers) / (chains - 1))
    unbiased = chains * cumulants(powers.mean(axis=1)) - (chains - 1) * left_out.mean(axis=1)
    return Estimate(unbiased, np.sqrt((chains - 1) * left_out.var(axis=1)))


def _density(radii, n, rings=12):
    """Density in rings of equal area from radii (draws, chains, n), their radii, and the exact averages."""
    squares = np.linspace(0, 1.1 * n, rings + 1)
    width = np.diff(squares)
    counts = np.stack([np.histogram(chain**2, squares)[0] for chain in np.moveaxis(radii, 1, 0)]) / len(radii)
    fine = np.sqrt(squares[:-1, None] + width[:, None] * (np.arange(200)[None, :] + 0.5) / 200)
    theory = np.asarray(particles.ginibre_density(jnp.asarray(fine, jnp.float32), n), np.float64).mean(axis=1)
    return mean_and_error(counts / (np.pi * width)), np.sqrt(squares[:-1] + width / 2), theory


def plot(result):
    """A configuration, the density, the law of the virial, cumulants in standard errors, and the variance over n."""
    d = result.data
    figure, (charges, density, virial, cumulants, variance) = draw.panels(1, 5, width=3.6, height=3.6)
    draw.cloud(charges, d.configuration, rf"{d.n} charges, $\beta = 2$", size=10.0, alpha=1)
    angle = np.linspace(0, 2 * np.pi, 200)
    charges.plot(d.n**0.5 * np.cos(angle), d.n**0.5 * np.sin(angle), color="0.6")
    r = np.linspace(0, 1.3 * d.n**0.5, 200)
    draw.theory(density, r, particles.ginibre_density(jnp.asarray(r, jnp.float32), d.n), label="exact")
    draw.measured(density, d.r, *d.density, label="HMC, 2 s.e.")
    draw.label(density, r"density at $\beta = 2$", "distance from the centre", "density", ylim=(0, None))
    for i, (beta, values) in enumerate(sorted(d.virial.items())):
        law = particles.virial_law(d.n, beta)
        draw.histogram(virial, values, 60, color=f"C{i}")
        s = np.linspace(values.min(), values.max(), 300)
        pdf = stats.gamma.pdf(s, float(law.shape), scale=1 / float(law.rate))
        draw.theory(virial, s, pdf, f"C{i}", label=rf"$\beta = {beta:g}$")
    draw.label(virial, "HMC and the Gamma law", r"$\sum_i |x_i|^2$", "density")
    for kind, style in (("HMC", "oC0"), ("eigenvalues", "sC1")):
        cumulants.plot(np.concatenate([d.z[kind, name] for name in STATISTICS]), style, label=kind)
    cumulants.axhspan(-2, 2, color="0.9", zorder=0)
    labels = [rf"$\kappa_{p + 1}$" + (f"\n{name}" if p == 1 else "") for name in STATISTICS for p in range(3)]
    cumulants.set_xticks(range(len(labels)), labels, fontsize=8)
    draw.label(cumulants, "cumulants against exact ones", "", "deviation, standard errors", ylim=(-5, 5))
    variance.plot(d.sizes, d.variances, "o-", label="exact for n charges")
    variance.axhline(d.limit, color="k", lw=1, label=r"Dirichlet energy, $n \to \infty$")
    draw.label(variance, "the variance does not grow", "n", "variance of the bump", log="x", ylim=(0, 1.25 * d.limit))
    variance.set_xticks(d.sizes, [str(s) for s in d.sizes])
    variance.minorticks_off()
    return figure
