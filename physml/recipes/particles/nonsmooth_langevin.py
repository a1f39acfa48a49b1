r"""Langevin sampling of laws that are neither log-concave nor smooth: all kernels on mixtures, and a deblurred photograph.

1. *Mixtures.* $E = -\ln \sum_k \omega_k N(x; m_k, s^2) + w|x|_1$ in the plane, and a mixture of Laplace laws, whose envelopes
   $-\ln \sum_k \omega_k e^{-\alpha\,|\cdot - \mu_k|_{1,\lambda}(x)}$ take its place. Marginals are known by quadrature, so each kernel
   shows its distance $W_1$ to the target beside its effective samples for a gradient. Adjusted kernels are held to what as
   many independent draws would score; MYULA must be nearer to its own smoothed law than to the target.
2. *Deconvolution.* A photograph is blurred by a periodic box and noise, $y = Ax + \sigma n$, and sampled from
   $e^{-|y - Ax|^2/2\sigma^2 - w\,TV(x)}$ by MYULA. The weight solves $E[w\,TV | y] = N$ (the evidence is stationary: TV scales
   as x does). A stationary chain obeys $E\langle x - c, \nabla U\rangle - \frac h2 E|\nabla U|^2 = N$ exactly, at every step size h.

**See** Lau, Liu and Pock, Non-log-concave and nonsmooth sampling via Langevin Monte Carlo algorithms (2023); Lau and Liu,
Bregman proximal Langevin Monte Carlo via Bregman-Moreau envelopes (2022); Vidal et al. (2020) for the weight.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.particles.chains.run import run as run_chain, run_chains
from physml.particles.energies.nonsmooth import L1, TotalVariation, moreau_envelope
from physml.particles.kernels.hamiltonian import hmc
from physml.particles.kernels.langevin import mala, overdamped
from physml.particles.kernels.mirror import BregmanL1, HyperbolicEntropy, bregman_proximal, mirror
from physml.particles.kernels.proximal import proximal, proximal_mala
from physml.particles.kernels.underdamped import underdamped
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Lau, Liu and Pock, Non-log-concave and nonsmooth sampling via Langevin Monte Carlo algorithms (2023)",
    claim="every Langevin kernel on nonsmooth mixtures against quadrature; a photograph deblurred with error bars",
    time="1 min, smoke 15 s",
)
KERNELS = (
    "ULA", "MALA", "BAOAB", "OBABO", "exact", "HMC", "MYULA", "forward-backward", "proximal-gradient", "proximal MALA",
    "mirror", "Bregman",
)  # fmt: skip
EXACT = ("MALA", "HMC", "proximal MALA")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    kernels: tuple[str, ...] = KERNELS
    laplacians: bool = True
    chains: int = 800
    steps: int = 4000
    thin: int = 10
    step_size: float = 0.02  # of unadjusted kernels; adjusted ones take 0.2
    smoothing: float = 1.0
    side: int = 64
    blur: int = 5
    noise: float = 0.02  # grey levels run from 0 to 1
    prox_iterations: int = 15
    rounds: int = 8  # of the weight, each as long as a round of sampling
    round_steps: int = 250
    sampling_rounds: int = 24
    # the bounds of the claims
    floor_ratio: float = 2.5
    gain: float = 1.5
    balance: float = 0.03

    def __post_init__(self):
        unknown = set(self.kernels) - set(KERNELS)
        if unknown:
            raise ValueError(f"config.kernels must be some of {', '.join(KERNELS)}; got {', '.join(sorted(unknown))}")
        if self.steps % self.thin or self.round_steps % 10:
            raise ValueError(
                f"config.thin must divide {self.steps} steps, and 10 divide round_steps {self.round_steps}"
            )
        if not 8 <= self.side <= 128 or self.blur % 2 == 0:
            raise ValueError(f"config.side must be 8 to 128 and blur odd, got {self.side} and {self.blur}")


PAPER = Config()
SMOKE = Config(
    kernels=("MYULA", "proximal MALA"), laplacians=False, chains=300, steps=1500, side=24, rounds=4, round_steps=100, sampling_rounds=12, gain=1.0, balance=0.12, prox_iterations=8
)  # fmt: skip

CENTRES = np.array([[-1.2, -0.8], [1.4, 0.2], [0.1, 1.5]])
WEIGHTS, WIDTH, PENALTY, RATE = np.array([0.3, 0.45, 0.25]), 0.55, 1.0, 1.6


def smooth_part(x):
    """The energy of a mixture of Gaussians."""
    centres, weights = jnp.asarray(CENTRES, x.dtype), jnp.asarray(WEIGHTS, x.dtype)
    return -jax.nn.logsumexp(jnp.log(weights) - jnp.sum((x[None] - centres) ** 2, axis=1) / (2 * WIDTH**2))


def laplacian_mixture(x, smoothing=None):
    """The energy of a mixture of Laplace laws, exact or with Moreau envelopes in the exponents."""
    weights = jnp.log(jnp.asarray(WEIGHTS, x.dtype))

    def exponent(centre):
        g = L1(RATE, centre)
        return -(g(x) if smoothing is None else moreau_envelope(g, x, smoothing))

    return -jax.nn.logsumexp(weights + jax.vmap(exponent)(jnp.asarray(CENTRES, x.dtype)))


def _kernel(name, h, lam):
    g, phi = L1(PENALTY), HyperbolicEntropy(1.0)
    energy = lambda x: smooth_part(x) + g(x)
    if name in ("BAOAB", "OBABO", "exact"):
        return underdamped(energy, 0.2, 2.0, scheme=name), 1
    return {
        "ULA": lambda: (overdamped(energy, h), 1),
        "MALA": lambda: (mala(energy, 0.2), 1),
        "HMC": lambda: (hmc(energy, 0.2, 5), 5),
        "MYULA": lambda: (proximal(smooth_part, g, h, lam), 1),
        "forward-backward": lambda: (proximal(smooth_part, g, h, scheme="forward-backward"), 1),
        "proximal-gradient": lambda: (proximal(smooth_part, g, h, scheme="proximal-gradient"), 1),
        "proximal MALA": lambda: (proximal_mala(smooth_part, g, 0.2, lam), 1),
        "mirror": lambda: (mirror(energy, h, phi), 1),
        "Bregman": lambda: (bregman_proximal(smooth_part, BregmanL1(phi, PENALTY, jnp.zeros(())), h, lam, phi), 1),
    }[name]()


def _marginals(energy, half_width=8.0, n=641):
    """Grid and the cumulative marginals of e^{-E} in the plane."""
    grid = jnp.linspace(-half_width, half_width, n)
    row = jax.jit(jax.vmap(lambda a, b: energy(jnp.stack([a, b])), (None, 0)))
    values = np.asarray(jax.lax.map(lambda a: row(a, grid), grid), np.float64)
    p = np.exp(-(values - values.min()))
    marginals = [p.sum(1), p.sum(0)]
    return np.asarray(grid, np.float64), [np.cumsum(m) / m.sum() for m in marginals]


def _w1(samples, grid, cdfs):
    """Mean over coordinates of the W1 distance between pooled draws (n, 2) and the marginals."""
    out = 0.0
    for x, cdf in zip(np.asarray(samples, np.float64).T, cdfs, strict=True):
        empirical = np.searchsorted(np.sort(x), grid + (grid[1] - grid[0]) / 2) / len(x)
        out += np.abs(empirical - cdf).sum() * (grid[1] - grid[0]) / 2
    return out


def _independent(n, grid, cdfs, rng):
    """The W1 distance of n independent draws."""
    draws = [np.interp(rng.uniform(size=n), cdf, grid + (grid[1] - grid[0]) / 2) for cdf in cdfs]
    return _w1(np.stack(draws, 1), grid, cdfs)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """The table of kernels, then the photograph."""
    mixture_key, image_key = jax.random.split(key)
    claims, numbers, arrays = _mixtures(config, mixture_key, progress)
    more = _deconvolve(config, image_key, progress)
    return Result(tuple(claims + more[0]), numbers | more[1], arrays | more[2])


def _ess(out):
    """The least over coordinates, of the four fifths of the draws that are kept."""
    return 0.8 * float(jnp.min(out.stats.ess)) if out.stats else 0.0


def _mixtures(config, key, progress):
    g, lam = L1(PENALTY), config.smoothing
    grid, true = _marginals(lambda x: smooth_part(x) + g(x))
    _, smoothed = _marginals(lambda x: smooth_part(x) + moreau_envelope(g, x, lam))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32))
    claims, numbers, arrays = [], {}, {"grid": grid, "cdf": true[0]}
    start = jnp.asarray(CENTRES, jnp.float32)[jnp.arange(config.chains) % 3]
    with progress_bar(len(config.kernels), "kernels", "kernel", show=progress) as bar:
        for k, name in enumerate(config.kernels):
            kernel, gradients = _kernel(name, config.step_size, lam)
            draw = jax.random.fold_in(key, k)
            out = run_chains(kernel, start, config.steps, key=draw, thin=config.thin).check()
            samples = np.asarray(out.samples)[len(out.samples) // 5 :].reshape(-1, 2)
            ess = _ess(out)
            distance = _w1(samples, grid, true)
            floor = np.mean([_independent(int(min(ess, len(samples))), grid, true, rng) for _ in range(5)])
            rate = ess / (0.8 * config.chains * config.steps * gradients)
            numbers |= {f"w1_{name}": distance, f"floor_{name}": floor, f"ess_per_gradient_{name}": rate}
            arrays[f"samples_{name}"] = samples[:: max(1, len(samples) // 4000)]
            if name in EXACT:
                source = f"{config.floor_ratio:g} x as many independent draws"
                claims.append(at_most(f"{name}: W1 to the target", distance, config.floor_ratio * floor, source))
            if name == "MYULA":
                own = _w1(samples, grid, smoothed)
                numbers["w1_MYULA_smoothed"] = own
                claims.append(
                    at_most("MYULA: W1 to its smoothed law over W1 to the target", own / distance, 0.5, "quadrature")
                )
            bar.update()
    if config.laplacians:
        grid, exact = _marginals(laplacian_mixture)
        _, smoothed = _marginals(lambda x: laplacian_mixture(x, lam))
        kernel = mala(lambda x: laplacian_mixture(x, lam), 0.2)
        out = run_chains(kernel, start, config.steps, key=jax.random.fold_in(key, 99), thin=config.thin).check()
        samples = np.asarray(out.samples)[len(out.samples) // 5 :].reshape(-1, 2)
        ess = min(_ess(out), len(samples))
        floor = np.mean([_independent(int(ess), grid, smoothed, rng) for _ in range(5)])
        distance = _w1(samples, grid, smoothed)
        source = f"{config.floor_ratio:g} x as many independent draws"
        claims.append(
            at_most("Laplace mixture, envelopes: W1 to its law", distance, config.floor_ratio * floor, source)
        )
        numbers |= {"w1_laplacians": distance, "w1_laplacians_true": _w1(samples, grid, exact)}
    return claims, numbers, arrays


def photograph(side: int) -> np.ndarray:
    """A grey crop of the photograph of a temple that scikit-learn ships, (side, side), from 0 to 1."""
    from sklearn.datasets import load_sample_image

    grey = load_sample_image("china.jpg").astype(np.float32).mean(-1) / 255
    return grey[120 : 120 + side, 250 : 250 + side]


def _psnr(x, truth):
    return float(-10 * np.log10(np.mean((np.asarray(x) - truth) ** 2)))


def _deconvolve(config, key, progress):
    truth, n = photograph(config.side), config.side**2
    box = np.zeros_like(truth)
    box[: config.blur, : config.blur] = config.blur**-2
    spectrum = jnp.asarray(np.fft.rfft2(np.roll(box, (-(config.blur // 2),) * 2, (0, 1))).astype(np.complex64))
    blur = lambda x: jnp.fft.irfft2(spectrum * jnp.fft.rfft2(x), s=truth.shape)
    noise_key, chain_key = jax.random.split(key)
    y = blur(jnp.asarray(truth)) + config.noise * jax.random.normal(noise_key, truth.shape)
    data = lambda x: jnp.sum((y - blur(x)) ** 2) / (2 * config.noise**2)
    lam = 2 * config.noise**2
    h = lam / 6  # half of 1/(1/noise^2 + 1/lam)

    def build(weight, temperature=1.0):
        prior = TotalVariation(jnp.asarray(weight, jnp.float32), config.prox_iterations)
        return proximal(data, prior, jnp.float32(h), jnp.float32(lam), jnp.float32(temperature))

    @jax.jit
    def virials(x, weight, centre):
        prior = TotalVariation(weight, config.prox_iterations)
        gradient = jax.grad(data)(x) + (x - prior.prox(x, lam)) / lam
        return jnp.sum((x - centre) * gradient) - h / 2 * jnp.sum(gradient**2), prior(x) / weight

    def advance(state, weight, k, temperature=1.0):
        key = jax.random.fold_in(chain_key, k)
        return run_chain(build(weight, temperature), state, config.round_steps, key=key, thin=10, stats=False)

    weight, weights, samples, x = 20.0, [], [], y
    with progress_bar(config.rounds + config.sampling_rounds, "photograph", "round", show=progress) as bar:
        for k in range(config.rounds):
            out = advance(x, weight, k)
            x = out.state.position
            tv = np.mean([float(virials(s, jnp.float32(1.0), x)[1]) for s in out.samples[-10:]])
            weight = n / tv
            weights.append(weight)
            bar.update()
        weight = float(np.mean(weights[-max(1, config.rounds // 2) :]))
        for k in range(config.sampling_rounds):
            out = advance(x, weight, 1000 + k).check()
            x = out.state.position
            samples.append(np.asarray(out.samples))
            bar.update()
    samples = np.concatenate(samples)
    mean, spread = samples.mean(0), samples.std(0)
    rest = y
    for k in range(2):
        rest = advance(rest, weight, k, 0.0).state.position
    # A centre from the first half: that of the samples themselves would lower the balance by 1/ess.
    half = len(samples) // 2
    centre, rest_of = samples[:half].mean(0), samples[half :: max(1, half // 200)]
    balances = [float(virials(s, jnp.float32(weight), centre)[0]) / n for s in rest_of]
    blocks = np.array_split(np.asarray(balances), 10)
    balance = np.mean(balances)
    balance_error = np.std([b.mean() for b in blocks], ddof=1) / np.sqrt(10)
    linear, best = _linear(np.asarray(y, np.float64), np.asarray(spectrum), config.noise, truth)
    numbers = {
        "psnr_blurred": _psnr(y, truth), "psnr_linear": _psnr(linear, truth), "psnr_mode": _psnr(rest, truth),
        "psnr_mean": _psnr(mean, truth), "psnr_linear_best": _psnr(best, truth), "weight": weight, "balance": balance,
        "coverage_95": float(np.mean(np.abs(mean - truth) < 1.96 * spread)),
    }  # fmt: skip
    gain = numbers["psnr_mean"] - numbers["psnr_blurred"]
    claims = [
        at_least("photograph: PSNR of the posterior mean over the blurred one", gain, config.gain, "dB"),
        at_least("the same over the linear reconstruction", numbers["psnr_mean"] - numbers["psnr_linear"], 0.0, "dB; its strength maximises the evidence too"),
        close_to("stationarity: (E<x - c, grad U> - h/2 E|grad U|^2)/N", balance, 1.0, config.balance, "exact at every h", balance_error),
    ]  # fmt: skip
    arrays = {"truth": truth, "blurred": np.asarray(y), "mean": mean, "spread": spread, "linear": linear}
    return claims, numbers, arrays | {"mode": np.asarray(rest), "weights": np.asarray(weights)}


def _linear(y, a, noise, truth):
    """Posterior means under N(0, (t Laplacian)^{-1}): at the t of largest evidence, and at the t nearest to the truth."""
    side = len(y)
    laplace = 4 - 2 * np.cos(2 * np.pi * np.fft.fftfreq(side))[:, None] - 2 * np.cos(2 * np.pi * np.fft.rfftfreq(side))
    power = np.abs(np.fft.fft2(y))[:, : laplace.shape[1]] ** 2 / side**2
    flat, twice = laplace > 0, np.where((np.arange(laplace.shape[1]) % (side // 2)) == 0, 1, 2)
    images, evidence = [], []
    for t in np.geomspace(1, 1e4, 60):
        variance = np.abs(a) ** 2 / (t * np.where(flat, laplace, 1)) + noise**2
        evidence.append(-np.sum((twice * (power / variance + np.log(variance)))[flat]))
        images.append(
            np.fft.irfft2(np.conj(a) * np.fft.rfft2(y) / (np.abs(a) ** 2 + noise**2 * t * laplace), s=y.shape)
        )
    return images[int(np.argmax(evidence))], max(images, key=lambda image: _psnr(image, truth))


def plot(result: Result) -> Any:
    """The table of kernels as a picture, and the photograph: blurred, restored, and where to doubt it."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    figure, axes = plt.subplots(2, 4, figsize=(14, 6.6), layout="constrained")
    names = [k.removeprefix("samples_") for k in arrays if k.startswith("samples_")]
    shown = "MYULA" if "MYULA" in names else names[0]
    axes[0, 0].plot(*arrays[f"samples_{shown}"].T, ".", ms=1)
    axes[0, 0].set(title=f"mixture with an L1 energy, {shown}", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    place = np.arange(len(names))
    axes[0, 1].barh(place, [numbers[f"w1_{k}"] for k in names])
    axes[0, 1].plot([numbers[f"floor_{k}"] for k in names], place, "k|", ms=12, label="independent draws")
    axes[0, 1].set_yticks(place, names)
    axes[0, 1].set(title=r"$W_1$ to the target", xlabel="distance")
    axes[0, 1].legend(fontsize=8)
    axes[0, 2].barh(place, [numbers[f"ess_per_gradient_{k}"] for k in names])
    axes[0, 2].set_yticks(place, names)
    axes[0, 2].set(title="effective samples for a gradient")
    images = [
        (axes[0, 3], "truth", "photograph"), (axes[1, 0], "blurred", "blurred"), (axes[1, 1], "linear", "linear (Gaussian prior)"),
        (axes[1, 2], "mean", "posterior mean"),
    ]  # fmt: skip
    for axis, name, title in images:
        psnr = f", {numbers[f'psnr_{name}']:.1f} dB" if name != "truth" else ""
        axis.imshow(arrays[name], cmap="gray", vmin=0, vmax=1)
        axis.set(title=title + psnr, xticks=[], yticks=[])
    picture = axes[1, 3].imshow(arrays["spread"], cmap="magma")
    axes[1, 3].set(title="posterior standard deviation", xticks=[], yticks=[])
    figure.colorbar(picture, ax=axes[1, 3])
    return figure
