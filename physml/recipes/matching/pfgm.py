r"""PFGM++: electric fields in D extra dimensions, from heavy tails to diffusion.

For each D a denoiser is trained with Student noise of D degrees of freedom and sampled by the flow of the path `edm()`.
Four things are checked: the laws reach the data for every D; the exact field of a few charges approaches the diffusion's as
1/D; the radius of the noise has the inverse-beta law; and the field of the charges, computed as a field, is the velocity.

**See** Xu, Liu, Tian, Tong, Tegmark and Jaakkola, PFGM++: Unlocking the potential of physics-inspired generative models (2023),
eqs. 4 and 6, theorem 3.1 and proposition 3.3.
"""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from physml import data, matching, nn
from physml.metrics import power_law
from physml.recipes import RecipeInfo, Sabotage, Settings, distances, draw, experiment
from physml.recipes.matching._fit import fit

INFO = RecipeInfo(
    paper="Xu, Liu, Tian, Tong, Tegmark and Jaakkola, PFGM++ (2023)",
    claim="flows of charges reach the data for D from 1 to infinity, and approach diffusion as 1/D",
    time="2 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    degrees: tuple[float, ...] = (1.0, 4.0, 32.0, 256.0, math.inf)  # D; infinity is diffusion
    train_steps: int = 8000
    batch_size: int = 512
    width: int = 96
    samples: int = 1000
    repeats: int = 8
    ode_steps: int = 60
    # the bounds of the claims
    floor_ratio: float = 2.0


PAPER = Config()
SMOKE = Config(
    degrees=(4.0, math.inf), train_steps=800, batch_size=256, width=64, samples=400, repeats=4, ode_steps=30,
    floor_ratio=8.0,
)  # fmt: skip
PATH = matching.edm(0.02, 20.0)

SABOTAGE = (
    Sabotage(
        "the charges sit a thousandth too close to the centre", matching, "empirical_denoiser",
        lambda exact: lambda path, points, noise: exact(path, 0.999 * points, noise),
    ),
    Sabotage(
        "the noise has half the degrees of freedom", matching.StudentNoise, "sample",
        lambda exact: lambda self, shape, *, key: exact(matching.StudentNoise(self.degrees / 2), shape, key=key),
    ),
)  # fmt: skip


def _loss(noise):
    def loss(model, batch, *, key):
        noise_key, time_key = jax.random.split(key)
        x0 = noise.sample(batch.shape, key=noise_key)
        t = (jnp.arange(len(batch), dtype=batch.dtype) / len(batch) + jax.random.uniform(time_key)) % 1.0

        def one(t, x0, x1):
            # `match` weighs by the time alone; heavy tails ask for the width of the noise that this x has seen.
            x = PATH.at(t, x0, x1, x0).x
            _, out, _ = model.coefficients(t, x)
            return jnp.mean(((model(t, x) - x1) / out) ** 2)

        return jnp.mean(jax.vmap(one)(t, x0, batch))

    return loss


@eqx.filter_jit
def _flow(model, x0, steps):
    velocity = matching.convert(model, PATH, "denoiser", "velocity")
    return jax.vmap(lambda x: matching.sample(velocity, x, steps=steps))(jax.vmap(PATH.start)(x0))


def _charges(points, d, x, sigma):
    r"""$dx/d\sigma$ from the field of the charges at (x, r), $r = \sigma\sqrt d$: $\sqrt d\,E_x/E_r$, in float64 on the host."""
    r = sigma * math.sqrt(d)
    gap = x[None, :] - points
    weight = -0.5 * (points.shape[1] + d) * np.log((gap**2).sum(1) + r * r)
    weight = np.exp(weight - weight.max())
    return math.sqrt(d) * (weight @ gap) / (weight.sum() * r)


def _exact(study, key):
    """The field of a few charges against the velocity, and its approach to diffusion."""
    points, x, t = np.asarray(data.pinwheel(12, key=key), np.float64), np.array([0.4, -0.7]), jnp.asarray(0.6)
    (sigma, _, _), _ = PATH.coefficients(t)

    def denoised(d):
        denoiser = matching.empirical_denoiser(PATH, jnp.asarray(points, jnp.float32), matching.StudentNoise(d))
        return np.asarray(denoiser(t, jnp.asarray(x, jnp.float32)))

    worst = 0.0
    for d in (1.0, 8.0, 64.0):
        field = _charges(points, d, x, float(sigma))
        worst = max(worst, np.abs((x - denoised(d)) / float(sigma) - field).max() / np.abs(field).max())
    source = "relative; the field summed in double precision"
    study.at_most("velocity against the field of the charges, D = 1, 8, 64", worst, 1e-4, source)
    sizes = [64.0, 256.0, 1024.0]
    gaps = [np.linalg.norm(denoised(d) - denoised(math.inf)) for d in sizes]
    power, _ = power_law(sizes, gaps)
    source = "proposition 3.3 holds with 1/D corrections"
    study.near("slope of the distance to diffusion over D", power.value, -1.0, source, atol=0.1)
    study.keep(sizes=sizes, gaps=gaps, power=power.value)


@experiment
def run(study, config, key):
    floor_key, fresh_key, exact_key, train_key = jax.random.split(key, 4)
    _exact(study, exact_key)
    exact = lambda key: data.pinwheel(config.samples, key=key)
    target = distances.target(exact, config.repeats, fresh_key=fresh_key, floor_key=floor_key)
    scale = float(jnp.sqrt(jnp.mean(target.fresh**2)))
    study.keep(target=target.fresh[0], flows={})
    for i, d in study.each(enumerate(config.degrees), "D"):
        keys = jax.random.split(jax.random.fold_in(train_key, i), 3)
        noise, label = matching.StudentNoise(d), f"D = {d:g}"
        x0 = noise.sample((config.repeats * config.samples, 2), key=keys[0])
        if not math.isinf(d):
            # r^2/(r^2 + D) is Beta(N/2, D/2) for the radius r = |x0|.
            square = np.sum(np.asarray(x0, np.float64) ** 2, axis=1)
            p = stats.kstest(square / (square + d), stats.beta(1.0, d / 2).cdf).pvalue
            source = "-log10 p of Kolmogorov and Smirnov, beta law"
            study.at_most(f"{label}: surprise of the radii", -math.log10(max(p, 1e-300)), 4.0, source)
        model = matching.Preconditioned(nn.MLP(2, width=config.width, depth=3, key=keys[1]), PATH, scale, d)
        draw_batch = lambda key: data.pinwheel(config.batch_size, key=key)
        model = fit(
            _loss(noise), model, draw_batch, rate=2e-3, clip_norm=1.0, steps=config.train_steps, key=keys[2]
        ).ema
        x = _flow(model, x0, config.ode_steps)
        floors = target.reached(study, f"{label}: energy distance", x, config.floor_ratio)
        study.data.flows[label] = x[: config.samples], floors


def plot(result):
    """Samples for each D, and the approach of the exact field to diffusion."""
    d = result.data
    figure, axes = draw.panels(1, 1 + len(d.flows), width=3.0, height=3.2)
    for axis, (label, (x, floors)) in zip(axes, d.flows.items(), strict=False):
        draw.beside(axis, d.target, x, f"{label}: {floors:.2f} x floor", reach=3.2)
    draw.measured(axes[-1], d.sizes, d.gaps, label="exact field")
    draw.slope(axes[-1], d.sizes, d.gaps, -1.0, label="1/D")
    draw.label(axes[-1], f"slope {d.power:.3f}", "D", "distance to the Gaussian denoiser", log="xy")
    return figure
