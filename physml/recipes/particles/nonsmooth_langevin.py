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

import jax
import jax.numpy as jnp
import numpy as np

from physml import particles
from physml.metrics import mean_and_error
from physml.particles import L1, BregmanL1, TotalVariation, moreau_envelope
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
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
class Config(Settings):
    """Sizes, and what the claims ask for."""

    kernels: tuple[str, ...] = setting(KERNELS, choices=KERNELS)
    laplacians: bool = True
    chains: int = 800
    steps: int = 4000
    thin: int = 10
    step_size: float = 0.02  # of unadjusted kernels; adjusted ones take 0.2
    smoothing: float = 1.0
    side: int = setting(64, least=8.0, most=128.0)
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

    def rules(self):
        return (
            (self.steps % self.thin == 0 and self.round_steps % 10 == 0, "thin divides steps and 10 round_steps"),
            (self.blur % 2 == 1, "blur is odd"),
        )


PAPER = Config()
SMOKE = Config(
    kernels=("MYULA", "proximal MALA"), laplacians=False, chains=300, steps=1500, side=24, rounds=4, round_steps=100,
    sampling_rounds=12, gain=1.0, balance=0.12, prox_iterations=8,
)  # fmt: skip

SABOTAGE = Sabotage(
    "the proximal operator of |x|_1 shrinks by half", L1, "prox",
    lambda exact: lambda self, x, smoothing: exact(self, x, 0.5 * smoothing),
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


def _kernels(h, lam):
    """All kernels for the mixture with the L1 energy."""
    g, phi = L1(PENALTY), particles.HyperbolicEntropy(1.0)
    energy = lambda x: smooth_part(x) + g(x)
    splittings = ("BAOAB", "OBABO", "exact")
    return {scheme: particles.underdamped(energy, 0.2, 2.0, scheme=scheme) for scheme in splittings} | {
        "ULA": particles.overdamped(energy, h),
        "MALA": particles.mala(energy, 0.2),
        "HMC": particles.hmc(energy, 0.2, 5),
        "MYULA": particles.proximal(smooth_part, g, h, lam),
        "forward-backward": particles.proximal(smooth_part, g, h, scheme="forward-backward"),
        "proximal-gradient": particles.proximal(smooth_part, g, h, scheme="proximal-gradient"),
        "proximal MALA": particles.proximal_mala(smooth_part, g, 0.2, lam),
        "mirror": particles.mirror(energy, h, phi),
        "Bregman": particles.bregman_proximal(smooth_part, BregmanL1(phi, PENALTY, jnp.zeros(())), h, lam, phi),
    }


class _Law:
    """The marginals of e^{-E} in the plane, by quadrature."""

    def __init__(self, energy, half_width=8.0, n=641):
        grid = jnp.linspace(-half_width, half_width, n)
        row = jax.jit(jax.vmap(lambda a, b: energy(jnp.stack([a, b])), (None, 0)))
        values = np.asarray(jax.lax.map(lambda a: row(a, grid), grid), np.float64)
        p = np.exp(-(values - values.min()))
        self.cell = 2 * half_width / (n - 1)
        self.edges = np.asarray(grid, np.float64) + self.cell / 2
        self.cumulative = [np.cumsum(m) / m.sum() for m in (p.sum(1), p.sum(0))]

    def distance(self, samples):
        """Mean over coordinates of the W1 distance between pooled draws (n, 2) and the marginals."""
        columns = zip(np.sort(np.asarray(samples, np.float64), 0).T, self.cumulative, strict=True)
        return sum(np.abs(np.searchsorted(x, self.edges) / len(x) - cdf).sum() for x, cdf in columns) * self.cell / 2

    def floor(self, n, rng):
        """The distance of n independent draws, averaged over five of them."""
        sample = lambda: np.stack([np.interp(rng.uniform(size=n), cdf, self.edges) for cdf in self.cumulative], 1)
        return np.mean([self.distance(sample()) for _ in range(5)])


@experiment
def run(study, config, key):
    mixture_key, image_key = jax.random.split(key)
    _mixtures(study, config, mixture_key)
    _deconvolve(study, config, image_key)


def _mixtures(study, config, key):
    """Every kernel on the mixture with the L1 energy, then a mixture of Laplace laws."""
    g, lam = L1(PENALTY), config.smoothing
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32))
    start = jnp.asarray(CENTRES, jnp.float32)[jnp.arange(config.chains) % 3]
    source = f"{config.floor_ratio:g} x as many independent draws"

    def sample(kernel, k, law):
        """Draws of the last four fifths, the effective ones, their distance to a law and that of as many free ones."""
        options = {"key": jax.random.fold_in(key, k), "save_every": config.thin}
        out = particles.run_chains(kernel, start, config.steps, **options).check()
        samples = np.asarray(out.samples)[len(out.samples) // 5 :].reshape(-1, 2)
        ess = 0.8 * float(jnp.min(out.stats.ess))
        return samples, ess, law.distance(samples), law.floor(int(min(ess, len(samples))), rng)

    true = _Law(lambda x: smooth_part(x) + g(x))
    study.keep(table={}, samples={})
    for k, name in enumerate(study.each(config.kernels, "kernel")):
        gradients = 5 if name == "HMC" else 1
        samples, ess, distance, floor = sample(_kernels(config.step_size, lam)[name], k, true)
        rate = ess / (0.8 * config.chains * config.steps * gradients)
        study.metrics |= {f"w1_{name}": distance, f"floor_{name}": floor, f"ess_per_gradient_{name}": rate}
        study.data.table[name] = (distance, floor, rate)
        study.data.samples[name] = samples[:: max(1, len(samples) // 4000)]
        if name in EXACT:
            study.at_most(f"{name}: W1 to the target", distance, config.floor_ratio * floor, source)
        if name == "MYULA":
            own = _Law(lambda x: smooth_part(x) + moreau_envelope(g, x, lam)).distance(samples)
            quantity = "MYULA: W1 to its smoothed law over W1 to the target"
            study.at_most(quantity, own / distance, 0.5, "quadrature")
    if config.laplacians:
        energy = lambda x: laplacian_mixture(x, lam)
        samples, _, distance, floor = sample(particles.mala(energy, 0.2), 99, _Law(energy))
        study.at_most("Laplace mixture, envelopes: W1 to its law", distance, config.floor_ratio * floor, source)
        study.measure(w1_laplacians_true=_Law(laplacian_mixture).distance(samples))


def photograph(side: int) -> np.ndarray:
    """A grey crop of the photograph of a temple that scikit-learn ships, (side, side), from 0 to 1."""
    from sklearn.datasets import load_sample_image

    grey = load_sample_image("china.jpg").astype(np.float32).mean(-1) / 255
    return grey[120 : 120 + side, 250 : 250 + side]


def _psnr(x, truth):
    return float(-10 * np.log10(np.mean((np.asarray(x) - truth) ** 2)))


def _deconvolve(study, config, key):
    """The photograph blurred, restored, and the identity that a stationary chain obeys."""
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

    def advance(state, weight, k, temperature=1.0):
        prior = TotalVariation(jnp.asarray(weight, jnp.float32), config.prox_iterations)
        kernel = particles.proximal(data, prior, jnp.float32(h), jnp.float32(lam), jnp.float32(temperature))
        key = jax.random.fold_in(chain_key, k)
        return particles.run(kernel, state, config.round_steps, key=key, save_every=10, stats=False)

    @jax.jit
    def virials(x, weight, centre):
        prior = TotalVariation(weight, config.prox_iterations)
        gradient = jax.grad(data)(x) + (x - prior.prox(x, lam)) / lam
        return jnp.sum((x - centre) * gradient) - h / 2 * jnp.sum(gradient**2), prior(x) / weight

    weight, weights, samples, x = 20.0, [], [], y
    for k in study.each([*range(config.rounds), *range(1000, 1000 + config.sampling_rounds)], "round"):
        if k == 1000:
            weight = float(np.mean(weights[-max(1, config.rounds // 2) :]))
        out = advance(x, weight, k)
        x = out.state.position
        if k >= 1000:
            samples.append(np.asarray(out.check().samples))
        else:
            tv = np.mean([float(virials(s, jnp.float32(1.0), x)[1]) for s in out.samples[-10:]])
            weight = n / tv
            weights.append(weight)
    samples, mode = np.concatenate(samples), y
    for k in range(2):
        mode = advance(mode, weight, k, 0.0).state.position
    mean, spread = samples.mean(0), samples.std(0)
    linear, best = _linear(np.asarray(y, np.float64), np.asarray(spectrum), config.noise, truth)
    images = {"blurred": y, "linear": linear, "linear_best": best, "mode": mode, "mean": mean}
    psnr = {name: _psnr(image, truth) for name, image in images.items()}
    gain = psnr["mean"] - psnr["blurred"]
    study.at_least("photograph: PSNR of the posterior mean over the blurred one", gain, config.gain, "dB")
    gain = psnr["mean"] - psnr["linear"]
    source = "dB; its strength maximises the evidence too"
    study.at_least("the same over the linear reconstruction", gain, 0.0, source)
    # A centre from the first half: that of the samples themselves would lower the balance by 1/ess.
    half = len(samples) // 2
    centre, later = samples[:half].mean(0), samples[half :: max(1, half // 200)]
    balances = np.asarray([float(virials(s, jnp.float32(weight), centre)[0]) / n for s in later])
    error = mean_and_error([block.mean() for block in np.array_split(balances, 10)]).error
    quantity = "stationarity: (E<x - c, grad U> - h/2 E|grad U|^2)/N"
    study.near(quantity, np.mean(balances), 1.0, "exact at every h", atol=config.balance, error=error)
    study.metrics |= {f"psnr_{name}": value for name, value in psnr.items()}
    study.measure(weight=weight, coverage_95=np.mean(np.abs(mean - truth) < 1.96 * spread))
    titles = {"blurred": "blurred", "linear": "linear (Gaussian prior)", "mean": "posterior mean"}
    photographs = {f"{title}, {psnr[name]:.1f} dB": images[name] for name, title in titles.items()}
    study.keep(images={"photograph": truth} | photographs, spread=spread)


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
        filtered = np.conj(a) * np.fft.rfft2(y) / (np.abs(a) ** 2 + noise**2 * t * laplace)
        images.append(np.fft.irfft2(filtered, s=y.shape))
    return images[int(np.argmax(evidence))], max(images, key=lambda image: _psnr(image, truth))


def plot(result):
    """The table of kernels as a picture, and the photograph: blurred, restored, and where to doubt it."""
    d = result.data
    figure, ((mixture, distances, rates, photo), lower) = draw.panels(2, 4, width=3.5, height=3.3)
    shown = "MYULA" if "MYULA" in d.samples else next(iter(d.samples))
    draw.cloud(mixture, d.samples[shown], f"mixture, {shown}", reach=3.0, size=1.0, alpha=1)
    distance, floor, rate = np.transpose(list(d.table.values()))
    draw.keys(distances, list(d.table), distance)
    distances.plot(floor, np.arange(len(floor))[::-1], "k|", ms=12)
    draw.label(distances, r"$W_1$ to the target", "distance; black: of independent draws")
    draw.keys(rates, list(d.table), rate)
    draw.label(rates, "effective samples for a gradient")
    for axis, (title, image) in zip((photo, *lower), d.images.items(), strict=False):
        draw.image(axis, image, title, cmap="gray", vmin=0, vmax=1)
    picture = lower[-1].imshow(d.spread, cmap="magma")
    lower[-1].set(title="posterior standard deviation", xticks=[], yticks=[])
    figure.colorbar(picture, ax=lower[-1])
    return figure
