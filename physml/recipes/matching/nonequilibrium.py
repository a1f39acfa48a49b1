r"""Diffusion as nonequilibrium thermodynamics: the work of a chain, its bound, and four ways to noise.

1. *Work.* For Gaussian data the chain of Gaussian steps has a law of its own, known by a recursion of covariances. The
   weights of its trajectories give $\ln E\,w = \ln p(x)$, Jarzynski's equality, and $E\ln w < \ln p(x)$ by the dissipation.
2. *Dissipation.* For a mixture and its exact denoiser the gap of the bound falls with the number of steps as 1/n.
3. *Learned.* On the spiral of the paper, whose density is a line integral, a preconditioned denoiser is trained on the VP,
   sub-VP, VE and EDM paths. Each is sampled by Heun's flow and by its ancestral chain, held against the data by the
   energy distance, and its bound against the true entropy.

**See** Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli, Deep unsupervised learning using nonequilibrium
thermodynamics (2015); Ho, Jain and Abbeel (2020); Song et al. (2021); Karras et al. (2022).
"""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from physml import data, matching, nn
from physml.metrics import mean_and_error, power_law
from physml.recipes import RecipeInfo, Sabotage, Settings, distances, draw, experiment, setting
from physml.recipes.matching._fit import denoiser_loss, fit

INFO = RecipeInfo(
    paper="Sohl-Dickstein et al., Deep unsupervised learning using nonequilibrium thermodynamics (2015)",
    claim="Jarzynski's equality for the chain, dissipation as 1/n, and learned VP, sub-VP, VE and EDM models of the spiral",
    time="4 min, smoke 15 s",
)


PATHS = {
    "vp": matching.variance_preserving(),
    "sub-vp": matching.sub_variance_preserving(),
    "ve": matching.variance_exploding(0.02, 20.0),
    "edm": matching.edm(0.02, 20.0),
}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    trajectories: int = 20_000  # of the work, for each of a few points
    step_counts: tuple[int, ...] = setting((16, 32, 64, 128, 256), length=2)
    bound_points: int = 4000
    paths: tuple[str, ...] = setting(tuple(PATHS), choices=PATHS)
    train_steps: int = 6000
    batch_size: int = 512
    width: int = 128
    samples: int = 1000
    repeats: int = 12
    heun_steps: int = 50
    chain_steps: int = 250
    # the bounds of the claims
    floor_ratio: float = 2.0
    nats: float = 0.15


PAPER = Config()
SMOKE = Config(
    trajectories=4000, step_counts=(16, 64), bound_points=1000, paths=("vp",), train_steps=1200, width=64, samples=400,
    repeats=4, heun_steps=30, chain_steps=100, floor_ratio=8.0, nats=1.5,
)  # fmt: skip

SABOTAGE = Sabotage(
    "the weights know variances of the chain 1.2 times too large", matching, "log_weight",
    lambda exact: lambda chain, *rest, **options:
        exact(dataclasses.replace(chain, variances=1.2 * chain.variances), *rest, **options),
)  # fmt: skip

COVARIANCE = np.array([[1.5, 0.6], [0.6, 0.4]], np.float32)
MIXTURE = (
    np.array([0.4, 0.6]),
    np.array([[-1.0, 0.3], [0.8, -0.5]]),
    np.array([np.diag([0.05, 0.2]), np.diag([0.2, 0.03])]),
)
NOISE, TURNS = 0.12, 1.5
# The density of the spiral: Gaussian noise averaged over the curve, by 2000 points.
RADIUS = (np.arange(2000) + 0.5) / 2000 * (2 / 3) + 1 / 3
CURVE = 3 * RADIUS * np.array([np.cos(2 * np.pi * TURNS * RADIUS), np.sin(2 * np.pi * TURNS * RADIUS)])
SPIRAL = (np.full(2000, 1 / 2000), CURVE.T, np.broadcast_to(NOISE**2 * np.eye(2), (2000, 2, 2)))
SCALE = 1.6  # its root mean square


@partial(jax.jit, static_argnames="n")
def _work(n, key):
    """ln w at three points for Gaussian data, and the exact log-density of the chain there."""
    path, cov = matching.trigonometric(), jnp.asarray(COVARIANCE)
    denoiser = matching.exact_fields(path, None, (jnp.ones(1), jnp.zeros((1, 2)), cov[None])).denoiser
    chain = matching.gaussian_chain(path, 16)
    fit_key, key = jax.random.split(key)
    x1 = jax.random.normal(fit_key, (4096, 2)) @ jnp.linalg.cholesky(cov).T
    chain = matching.calibrate(chain, denoiser, x1, key=fit_key)
    gain = jax.vmap(lambda t: jax.jacfwd(lambda x: denoiser(t, x))(jnp.zeros(2)))(chain.times[:-1])

    def propagate(cov, k):
        """Covariance of the state after step k, whose denoiser is linear, D(t_k, x) = gain[k] x."""
        a, b, _ = chain.posterior(k)
        m = a * jnp.eye(2) + b * gain[k]
        return m @ cov @ m.T + chain.variances[k] * jnp.eye(2), None

    law, _ = jax.lax.scan(propagate, chain.prior * jnp.eye(2), jnp.arange(chain.steps))
    points = jnp.array([[0.0, 0.0], [1.5, 0.5], [-1.0, -0.8]])
    exact = jax.vmap(lambda x: jax.scipy.stats.multivariate_normal.logpdf(x, jnp.zeros(2), law))(points)
    one = lambda x, key: matching.log_weight(chain, denoiser, x, key=key)
    many = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(many)(points, jax.random.split(key, (3, n))), exact


@partial(jax.jit, static_argnames=("steps", "n"))
def _dissipation(steps, n, key):
    """ln p(x) - ln w at n points of the mixture, by a chain of so many steps with the exact denoiser."""
    path, keys = matching.trigonometric(), jax.random.split(key, 4)
    denoiser, sample = matching.exact_fields(path, None, MIXTURE).denoiser, partial(matching.mixture_sample, MIXTURE)
    chain = matching.calibrate(matching.gaussian_chain(path, steps), denoiser, sample(4096, key=keys[0]), key=keys[1])
    one = lambda x, key: matching.mixture_log_prob(MIXTURE, x) - matching.log_weight(chain, denoiser, x, key=key)
    return jax.vmap(one)(sample(n, key=keys[2]), jax.random.split(keys[3], n))


@experiment
def run(study, config, key):
    work_key, gap_key, learn_key = jax.random.split(key, 3)
    _chain(study, config, work_key, gap_key)
    floor_key, fresh_key, learn_key = jax.random.split(learn_key, 3)
    spiral = lambda key, n: data.swiss_roll(n, key=key, noise=NOISE, turns=TURNS)
    exact = partial(spiral, n=config.samples)
    target = distances.target(exact, config.repeats, fresh_key=fresh_key, floor_key=floor_key)
    study.keep(target=target.fresh[0], learned={})
    for i, name in study.each(enumerate(config.paths), "path"):
        keys = jax.random.split(jax.random.fold_in(learn_key, i), 6)
        net = nn.MLP(2, width=config.width, depth=3, key=keys[0])
        model = fit(
            denoiser_loss, matching.Preconditioned(net, PATHS[name], SCALE), partial(spiral, n=config.batch_size),
            rate=2e-3, steps=config.train_steps, key=keys[1],
        ).ema  # fmt: skip
        heun, chain, excess = _judge(model, config, target.fresh, keys[2])
        target.reached(study, f"{name}, heun: energy distance", heun, config.floor_ratio)
        floors = target.reached(study, f"{name}, ancestral: energy distance", chain, config.floor_ratio)
        bound = mean_and_error(excess)
        study.at_most(f"{name}: bound above the true entropy", bound, config.nats, "nats")
        study.at_least(f"{name}: the same in standard errors", bound.z(0.0), -5.0, "a bound cannot lie below")
        study.data.learned[name] = chain[: config.samples], floors, bound.value


def _chain(study, config, work_key, gap_key):
    """The equality for Gaussian data, and the dissipation for a mixture, by chains with exact denoisers."""
    log_w, exact = (np.asarray(a, np.float64) for a in _work(config.trajectories, work_key))
    top = log_w.max(axis=1, keepdims=True)
    weight, log_weight = mean_and_error(np.exp(log_w - top), axis=1), mean_and_error(log_w, axis=1)
    equality = top[:, 0] + np.log(weight.value) - exact
    z = np.max(np.abs(equality) * weight.value / weight.error)
    dissipated = exact - log_weight.value
    source = "standard errors from the exact density of the chain"
    study.at_most("Jarzynski's equality, worst of three points", z, 5.0, source)
    quantity, source = "dissipated work, least of three points", "nats; 5 standard errors above zero"
    study.at_least(quantity, dissipated.min(), 5 * log_weight.error.max(), source)
    study.measure(dissipated=dissipated.mean())

    counts = np.array(config.step_counts)
    gaps = [mean_and_error(_dissipation(n, config.bound_points, gap_key)) for n in config.step_counts]
    power, _ = power_law(counts, [gap.value for gap in gaps])
    source = "1/n: what a Gaussian step misses is of second order"
    study.near("slope of the dissipation over the number of steps", power.value, -1.0, source, atol=0.2)
    study.metrics |= {f"dissipation of {n} steps": gap.value for n, gap in zip(counts, gaps, strict=True)}
    study.keep(work=-log_w[1], surprise=-exact[1], counts=counts, gaps=gaps, power=power.value)


@eqx.filter_jit
def _judge(model, config, fresh, key):
    """Samples by Heun's flow and by the chain, and the bound's excess over the true surprise of fresh data."""
    path, n = model.path, config.repeats * config.samples
    keys = jax.random.split(key, 6)
    start = jax.vmap(path.start)(jax.random.normal(keys[0], (n, 2)))
    velocity = matching.convert(model, path, "denoiser", "velocity")
    heun = jax.vmap(lambda x: matching.sample(velocity, x, steps=config.heun_steps))(start)
    chain = matching.gaussian_chain(path, config.chain_steps, scale=SCALE)
    # Seen data calibrate, fresh ones are judged.
    chain = matching.calibrate(chain, model, data.swiss_roll(4096, key=keys[1], noise=NOISE, turns=TURNS), key=keys[2])
    draw = jax.vmap(lambda x, key: matching.ancestral(chain, model, x, key=key).x)
    out = draw(start, jax.random.split(keys[3], n))
    x1 = fresh.reshape(-1, 2)[: config.bound_points]
    weight = jax.vmap(lambda x, key: matching.log_weight(chain, model, x, key=key))
    # The chain ends on data with the noise of the path's last level, which VE and EDM keep.
    excess = jax.vmap(lambda x: matching.mixture_log_prob(SPIRAL, x))(x1) - weight(
        x1, jax.random.split(keys[4], len(x1))
    )
    return heun, out, excess


def plot(result):
    """Work, dissipation over the number of steps, and the spiral by each path's chain."""
    d = result.data
    figure, (work, dissipation, *spirals) = draw.panels(1, 2 + len(d.learned), height=3.5)
    draw.histogram(work, d.work, 80)
    work.axvline(d.work.mean(), color="C0", label="mean: the bound")
    work.axvline(d.surprise, color="k", label=r"$-\ln p(x)$")
    draw.label(work, "Gaussian data, 16 steps", "work of a trajectory, nats", "density")
    gaps, errors = np.transpose(d.gaps)
    draw.measured(dissipation, d.counts, gaps, errors, label="exact denoiser")
    draw.slope(dissipation, d.counts, gaps, -1.0, label="1/n")
    draw.label(dissipation, f"slope {d.power:.2f}", "steps", "dissipation, nats", log="xy")
    dissipation.set_xticks(d.counts, map(str, d.counts))
    dissipation.minorticks_off()
    for axis, (name, (x, floors, bound)) in zip(spirals, d.learned.items(), strict=True):
        draw.beside(axis, d.target, x, f"{name}: {floors:.2f} x floor, bound +{bound:.3f}")
    return figure
