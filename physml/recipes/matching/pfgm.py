r"""PFGM++: electric fields in D extra dimensions, from heavy tails to diffusion.

For each D a denoiser is trained with Student noise of D degrees of freedom and sampled by the flow of the path `edm()`.
Four things are checked: the laws reach the data for every D; the exact field of a few charges approaches the diffusion's as
1/D; the radius of the noise has the inverse-beta law; and the field of the charges, computed as a field, is the velocity.

**See** Xu, Liu, Tian, Tong, Tegmark and Jaakkola, PFGM++: Unlocking the potential of physics-inspired generative models (2023),
eqs. 4 and 6, theorem 3.1 and proposition 3.3.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from physml import data, matching, nn, train
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.recipes._distances import floor_distance, mean_distance
from physml.recipes._result import Info, Result, at_most, close_to

INFO = Info(
    paper="Xu, Liu, Tian, Tong, Tegmark and Jaakkola, PFGM++ (2023)",
    claim="flows of charges reach the data for D from 1 to infinity, and approach diffusion as 1/D",
    time="2 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    degrees: tuple[float, ...] = (1.0, 4.0, 32.0, 256.0, math.inf)
    train_steps: int = 8000
    batch_size: int = 512
    width: int = 96
    samples: int = 1000
    repeats: int = 8
    ode_steps: int = 60
    # the bounds of the claims
    floor_ratio: float = 2.0

    def __post_init__(self):
        if not self.degrees or min(self.degrees) <= 0:
            raise ValueError(f"config.degrees must be positive numbers (inf for diffusion), got {self.degrees}")
        for name in ("train_steps", "batch_size", "width", "samples", "repeats", "ode_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} must be at least 1, got {getattr(self, name)}")


PAPER = Config()
SMOKE = Config(
    degrees=(4.0, math.inf),
    train_steps=800,
    batch_size=256,
    width=64,
    samples=400,
    repeats=4,
    ode_steps=30,
    floor_ratio=8.0,
)
PATH = matching.edm(0.02, 20.0)


def _draw(key, n):
    return data.pinwheel(key, n)


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


def _exact_checks(key):
    """The largest difference of field and velocity, and of D-denoisers from the Gaussian one over D."""
    points = np.asarray(_draw(key, 12), np.float64)
    x = np.array([0.4, -0.7])
    worst = 0.0
    denoise = lambda d: matching.empirical_denoiser(PATH, jnp.asarray(points, jnp.float32), matching.StudentNoise(d))
    t = jnp.asarray(0.6)
    (sigma, _, _), _ = PATH.coefficients(t)
    for d in (1.0, 8.0, 64.0):
        ours = (x - np.asarray(denoise(d)(t, jnp.asarray(x, jnp.float32)))) / float(sigma)
        field = _charges(points, d, x, float(sigma))
        worst = max(worst, float(np.abs(ours - field).max() / np.abs(field).max()))
    sizes = np.array([64.0, 256.0, 1024.0])
    limit = np.asarray(denoise(math.inf)(t, jnp.asarray(x, jnp.float32)))
    gaps = [np.linalg.norm(np.asarray(denoise(d)(t, jnp.asarray(x, jnp.float32))) - limit) for d in sizes]
    return worst, np.polyfit(np.log(sizes), np.log(gaps), 1)[0], sizes, np.array(gaps)


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """The exact checks, then one training for each D."""
    floor_key, fresh_key, exact_key, train_key = jax.random.split(key, 4)
    worst, slope, sizes, gaps = _exact_checks(exact_key)
    claims = [
        at_most("velocity against the field of the charges, D = 1, 8, 64", worst, 1e-4, "relative; the field summed in double precision"),
        close_to("slope of the distance to diffusion over D", slope, -1.0, 0.1, "proposition 3.3 holds with 1/D corrections"),
    ]  # fmt: skip
    numbers, arrays = {"field": worst, "slope": slope}, {"sizes": sizes, "gaps": gaps}
    exact = lambda key: _draw(key, config.samples)
    floor = floor_distance(exact, key=floor_key)
    fresh = jnp.stack([exact(k) for k in jax.random.split(fresh_key, config.repeats)])
    numbers["floor"], arrays["data"] = floor, np.asarray(fresh[0])
    scale = float(jnp.sqrt(jnp.mean(fresh**2)))
    with progress_bar(len(config.degrees), "pfgm", "D", show=progress) as bar:
        for i, d in enumerate(config.degrees):
            keys = jax.random.split(jax.random.fold_in(train_key, i), 3)
            noise = matching.StudentNoise(d)
            x0 = noise.sample((config.repeats * config.samples, 2), key=keys[0])
            model = matching.Preconditioned(nn.MLP(2, width=config.width, depth=3, key=keys[1]), PATH, scale, d)
            optimizer = optax.chain(
                optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, config.train_steps))
            )
            sampler = lambda key: _draw(key, config.batch_size)
            fit = train.fit(
                _loss(noise),
                model,
                sampler,
                optimizer=optimizer,
                steps=config.train_steps,
                ema_decay=0.999,
                key=keys[2],
                progress=False,
            )
            x = _flow(fit.ema, x0, config.ode_steps)
            value = mean_distance(x, fresh)
            label = f"{d:g}"
            claims.append(
                at_most(
                    f"D = {label}: energy distance",
                    value,
                    config.floor_ratio * floor,
                    f"{config.floor_ratio:g} x two exact samples",
                )
            )
            numbers[f"D_{label}"], arrays[f"x_{label}"] = value, np.asarray(x[: config.samples])
            if not math.isinf(d):
                # r^2/(r^2 + D) is Beta(N/2, D/2) for the radius r = |x0|.
                square = np.sum(np.asarray(x0, np.float64) ** 2, axis=1)
                p = stats.kstest(square / (square + d), stats.beta(1.0, d / 2).cdf).pvalue
                claims.append(
                    at_most(
                        f"D = {label}: surprise of the radii",
                        -math.log10(max(p, 1e-300)),
                        4.0,
                        "-log10 p of Kolmogorov and Smirnov, beta law",
                    )
                )
            bar.update()
    return Result(tuple(claims), numbers, arrays)


def plot(result: Result) -> Any:
    """Samples for each D, and the approach of the exact field to diffusion."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    labels = [k.removeprefix("x_") for k in arrays if k.startswith("x_")]
    figure, axes = plt.subplots(1, 1 + len(labels), figsize=(3 * (1 + len(labels)), 3.2), layout="constrained")
    for axis, label in zip(axes, labels, strict=False):
        axis.plot(*arrays["data"].T, ".", color="0.8", ms=2, label="data")
        axis.plot(*arrays[f"x_{label}"].T, ".", color="C0", ms=2, label="flow")
        axis.set(
            title=f"D = {label}: {numbers[f'D_{label}'] / numbers['floor']:.2f} x floor",
            aspect="equal",
            xlim=(-4, 4),
            ylim=(-4, 4),
        )
    axes[0].legend(fontsize=8, markerscale=4)
    axes[-1].loglog(arrays["sizes"], arrays["gaps"], "o", label="exact field")
    axes[-1].loglog(arrays["sizes"], arrays["gaps"][0] * arrays["sizes"][0] / arrays["sizes"], "k:", label="1/D")
    axes[-1].set(xlabel="D", ylabel="distance to the Gaussian denoiser", title=f"slope {numbers['slope']:.3f}")
    axes[-1].legend(fontsize=8)
    return figure
