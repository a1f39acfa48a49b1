r"""Closing the gap between flow and diffusion by the Fokker-Planck equation.

A learned score s gives two laws: that of the flow $\dot x = v$, v the velocity that goes with s, and that of the diffusion
$dx = [v + \epsilon s]dt + \sqrt{2\epsilon}\,dW$. They are equal when $\mathcal R = \partial_t s + \nabla(\nabla\!\cdot v + v\cdot s)$ is zero.
A network is trained by score matching alone, and with $w\,E|\alpha^2\mathcal R|^2$ beside it. The gap is measured for both, less
what samples of one law score: for batches F, F' of the flow and D, D' of the diffusion

$$\text{excess} = \overline{W_2^2(F, D)} - \tfrac12 \left[W_2^2(F, F') + W_2^2(D, D')\right],$$

the first averaged over the four pairs; its mean is zero for equal laws. Both networks see the same noise, batch by batch: the
error of the difference is a fraction of that of either excess. It is the error of the samples, for these two networks; another
training has another gap.

The forward process is the Ornstein-Uhlenbeck process $dx = -\tfrac12 x\,d\tau + dW$ up to $\tau = 10$, at the times
$\tau = 10(1 - t)^2$. Training times are even in the logarithm of signal to noise.

**See** Deveney, Stanczuk, Kreusser, Budd and Schoenlieb, Closing the ODE-SDE gap in score-based diffusion models through the
Fokker-Planck equation (2023), whose table has .0152 and .0038 (blob), .0175 and .0040 (circles), .0355 and .0046 (checker).
"""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml import data, matching, nn
from physml.integrate import SRA1
from physml.metrics import mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting
from physml.recipes.distances import batchwise, wasserstein2
from physml.recipes.matching._fit import fit

INFO = RecipeInfo(
    paper="Deveney et al., Closing the ODE-SDE gap in score-based diffusion models (2023)",
    claim="a penalty lowers the Fokker-Planck residual several times and the gap between flow and diffusion with it",
    time="6 min, smoke 10 s",
)


SETS = {
    "blob": lambda key, n: 0.3 * jax.random.normal(key, (n, 2)) + jnp.array([0.5, -0.5])[None],
    "circles": lambda key, n: data.circles(n, key=key, radii=(0.5, 1.2), noise=0.05),
    "checker": lambda key, n: data.checkerboard(n, key=key) / 1.2,
}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    sets: tuple[str, ...] = setting(tuple(SETS), choices=SETS)
    width: int = 64
    features: int = 8  # sines and cosines of x
    train_steps: int = 4000
    batch_size: int = 256
    weight: float = 0.1  # of the Fokker-Planck penalty
    samples: int = 1000
    repeats: int = setting(8, least=2.0)  # pairs of batches of either law
    ode_steps: int = 100
    sde_steps: int = 300
    # the bounds of the claims
    ratio: float = 0.7
    # None: not asked; a few hundred steps leave the sign of the fall to chance
    significance: float | None = 3.0
    resolved: float = 0.01


PAPER = Config()
SMOKE = Config(
    sets=("circles",), width=32, features=4, train_steps=600, batch_size=128, samples=250, repeats=3, ode_steps=30,
    sde_steps=60, ratio=0.8, significance=None, resolved=0.04,
)  # fmt: skip

SABOTAGE = (
    Sabotage(
        "the penalty teaches the network nothing", matching, "score_residual",
        lambda exact: lambda *fields_and_point: jax.lax.stop_gradient(exact(*fields_and_point)),
    ),
    Sabotage(
        "the flow is half as fast", matching, "sample",
        lambda exact: lambda field, *rest, **options: exact(lambda t, x, args: field(t, x, args) / 2, *rest, **options),
    ),
)  # fmt: skip

# Ten units of the Ornstein-Uhlenbeck process, tau = 10 (1 - t)^2: half of the times lie below 2.5, where the data are.
DURATION = 10.0
PATH = matching.Path(
    lambda t: jnp.sqrt(-jnp.expm1(-DURATION * (1 - t) ** 2)),
    lambda t: jnp.exp(-0.5 * DURATION * (1 - t) ** 2),
    cut=5e-3,
)
# The diffusion is the reversed process: epsilon is half of |d tau/dt|.
EPSILON = lambda t: DURATION * (1 - t)
# From noise that hides the data to noise below their finest width. The uniform law has a seventh of its times where the
# rings and squares form, this one nearly half.
TIMES = matching.log_snr(PATH, 0.3, 0.99)
DIAGNOSED = jnp.linspace(0.05, 0.99, 20)


class Score(eqx.Module):
    r"""$s(t, x) = -x + \beta\,(\alpha^2 + 0.05^2)^{-1/2}\,N(t, x)$, N a network.

    At t = 0, where the flow starts, the score must be that of the noise: an error there is one that the diffusion forgets
    and the flow does not, and no residual sees it.
    """

    net: nn.MLP
    waves: Array  # (2, features)

    def __init__(self, config, *, key):
        net_key, wave_key = jax.random.split(key)
        size = 2 + 2 * config.features + 1
        self.net = nn.MLP(size, out_dim=2, width=config.width, depth=3, frequencies=4, key=net_key)
        self.waves = 2.0 * jax.random.normal(wave_key, (2, config.features))

    def __call__(self, t, x, args=None):
        (alpha, beta, _), _ = PATH.coefficients(jnp.asarray(t, x.dtype))
        phase = x @ jax.lax.stop_gradient(self.waves)
        level = 0.25 * jnp.log(alpha**2 + 4e-4)
        seen = jnp.concatenate([x, jnp.sin(phase), jnp.cos(phase), level[None]])
        # Bounded where the path ends at the data, below their finest width.
        return -x + beta / jnp.sqrt(alpha**2 + 0.05**2) * self.net(t, seen, args)

    def velocity(self, t, x, args=None):
        """The velocity of the flow with this score: the reversed process without its noise."""
        return EPSILON(t) * (x + self(t, x, args))


def _residuals(model, t, x):
    r"""$\alpha^2\mathcal R$ in the time of the process: a score is of order $1/\alpha$, its change $1/\alpha^2$."""

    def one(t, x):
        (alpha, _, _), _ = PATH.coefficients(t)
        return alpha**2 * matching.score_residual(model.velocity, model, t, x) / (2 * EPSILON(t))

    return jax.vmap(one)(t, x)


def _loss(weight):
    def loss(model, batch, *, key):
        noise_key, match_key, time_key = jax.random.split(key, 3)
        x0 = jax.random.normal(noise_key, batch.shape)
        fit = matching.match(model, PATH, x0, batch, key=match_key, target="score", times=TIMES)
        if weight == 0:
            return fit
        # Half of the batch: the penalty is what a step costs.
        rows = len(batch) // 2
        t = TIMES(jax.random.uniform(time_key, (rows,)))
        x = jax.vmap(lambda t, x0, x1: PATH.at(t, x0, x1, x0).x)(t, x0[:rows], batch[:rows])
        return fit + weight * jnp.mean(_residuals(model, t, x) ** 2)

    return loss


@eqx.filter_jit
def _measure(model, config, x1, key):
    """Samples of the flow and the diffusion from the same law of noise, and the root mean square residual over time."""
    n = 2 * config.repeats * config.samples
    a, b, c, d = jax.random.split(key, 4)
    flow = jax.vmap(lambda x: matching.sample(model.velocity, x, steps=config.ode_steps))(jax.random.normal(a, (n, 2)))
    noise = jax.random.normal(b, (n, 2))
    diffusion = matching.sample_sde_batch(
        model.velocity, model, noise, epsilon=EPSILON, steps=config.sde_steps, key=c, method=SRA1()
    )

    def size(t):
        x0 = jax.random.normal(d, x1.shape)
        x = jax.vmap(lambda x0, x1: PATH.at(t, x0, x1, x0).x)(x0, x1)
        return jnp.sqrt(jnp.mean(_residuals(model, jnp.full(len(x), t), x) ** 2))

    return flow, diffusion, jax.lax.map(size, DIAGNOSED)


def _excess(a, b, config):
    """The excess of every pair of batches."""
    (a, a_), (b, b_) = (np.asarray(x).reshape(2, config.repeats, config.samples, 2) for x in (a, b))
    square = lambda x, y: batchwise(wasserstein2, x, y) ** 2
    gap = (square(a, b) + square(a_, b_) + square(a, b_) + square(a_, b)) / 4
    return gap - (square(a, a_) + square(b, b_)) / 2


@experiment
def run(study, config, key):
    # One value for every pair of batches, summed over the sets: between flow and diffusion, and between flow and data.
    apart, to_data = ({label: np.zeros(config.repeats) for label in ("plain", "penalised")} for _ in range(2))
    study.keep(found={})
    for i, name in study.each(enumerate(config.sets), "set"):
        keys = jax.random.split(jax.random.fold_in(key, i), 5)
        x1 = SETS[name](keys[0], 2 * config.repeats * config.samples)
        total = {}
        for label, weight in (("plain", 0.0), ("penalised", config.weight)):
            model = fit(
                _loss(weight), Score(config, key=keys[2]), partial(SETS[name], n=config.batch_size), key=keys[3], rate=2e-3,
                clip_norm=1.0, steps=config.train_steps, ema_decay=0.999 if config.train_steps > 2000 else 0.99,
            ).ema  # fmt: skip
            flow, diffusion, residual = _measure(model, config, x1[:1000], keys[4])
            excess, total[label] = _excess(flow, diffusion, config), float(jnp.sqrt(jnp.mean(residual**2)))
            apart[label] += excess
            to_data[label] += _excess(flow, x1, config)
            study.metrics |= {
                f"{name}, {label}: excess": excess.mean(),
                f"{name}, {label}: its error": mean_and_error(excess).error,
                f"{name}, {label}: diffusion to data": _excess(diffusion, x1, config).mean(),
            }
            study.data.found[name, label] = flow[:2000], diffusion[:2000], residual, excess.mean()
        source = f"{config.ratio:g} x the same without the penalty"
        study.at_most(f"{name}: residual, penalised", total["penalised"], config.ratio * total["plain"], source)
    quantity = "excess of squared W2 between the penalised flow and the data, summed over the sets"
    source = f"rings and squares apart; without the penalty {to_data['plain'].mean():.4f}"
    study.at_most(quantity, to_data["penalised"].mean(), config.resolved, source)
    # Paired: both laws saw the same noise, of which most of the error of either excess is. The error is that of
    # the samples, not of another training.
    before, after = (apart[label].mean() for label in ("plain", "penalised"))
    drop = mean_and_error(apart["plain"] - apart["penalised"])
    study.metrics |= {"excess, plain": before, "excess, penalised": after, "error of its fall": drop.error}
    if config.significance is not None:
        quantity = "fall of the excess of squared W2 between flow and diffusion by the penalty, summed over the sets"
        source = f"standard errors; from {before:.4f} to {after:.4f}, {drop.error:.4f} the error of the fall"
        study.at_least(quantity, drop.z(0.0), config.significance, source)


def plot(result):
    """Flow and diffusion of both models, and the residual over time."""
    found = result.data.found
    figure, axes = draw.panels(len(found) // 2, 3, width=3.5, height=3.4, squeeze=False)
    for i, ((name, label), (flow, diffusion, residual, excess)) in enumerate(found.items()):
        axis, diagnostic = axes[i // 2, i % 2], axes[i // 2, 2]
        title = f"{name}, {label}: excess {excess:.4f}"
        draw.beside(axis, diffusion, flow, title, names=("diffusion", "flow"), reach=2.2)
        diagnostic.plot(DIAGNOSED, residual, label=label)
        draw.label(diagnostic, "diagnostic", "t", r"$\alpha^2 R$, root mean square", log="y")
    return figure
