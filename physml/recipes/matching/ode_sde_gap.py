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
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from physml import data, matching, metrics, nn, train
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.integrate import SRA1
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Deveney et al., Closing the ODE-SDE gap in score-based diffusion models (2023)",
    claim="a penalty lowers the Fokker-Planck residual several times and the gap between flow and diffusion with it",
    time="6 min, smoke 10 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    sets: tuple[str, ...] = ("blob", "circles", "checker")
    width: int = 64
    features: int = 8  # sines and cosines of x
    train_steps: int = 4000
    batch_size: int = 256
    weight: float = 0.1  # of the Fokker-Planck penalty
    samples: int = 1000
    repeats: int = 8  # pairs of batches of either law
    ode_steps: int = 100
    sde_steps: int = 300
    # the bounds of the claims
    ratio: float = 0.7
    # None: not asked; a few hundred steps leave the sign of the fall to chance
    significance: float | None = 3.0
    resolved: float = 0.01

    def __post_init__(self):
        unknown = set(self.sets) - set(SETS)
        if unknown or not self.sets:
            raise ValueError(f"config.sets must be some of {', '.join(SETS)}; got {', '.join(self.sets) or 'none'}")
        if self.repeats < 2:
            raise ValueError(f"config.repeats must be at least 2, for an error; got {self.repeats}")
        if self.weight <= 0:
            raise ValueError(f"config.weight must be positive, got {self.weight}")


SETS = {
    "blob": lambda key, n: 0.3 * jax.random.normal(key, (n, 2)) + jnp.array([0.5, -0.5])[None],
    "circles": lambda key, n: data.circles(key, n, radii=(0.5, 1.2), noise=0.05),
    "checker": lambda key, n: data.checkerboard(key, n) / 1.2,
}
PAPER = Config()
SMOKE = Config(
    sets=("circles",), width=32, features=4, train_steps=600, batch_size=128, samples=250, repeats=3, ode_steps=30,
    sde_steps=60, ratio=0.8, significance=None, resolved=0.04,
)  # fmt: skip
# Ten units of the Ornstein-Uhlenbeck process, tau = 10 (1 - t)^2: half of the time t lies below tau = 2.5, where the data are.
DURATION = 10.0
PATH = matching.Path(
    lambda t: jnp.sqrt(-jnp.expm1(-DURATION * (1 - t) ** 2)),
    lambda t: jnp.exp(-0.5 * DURATION * (1 - t) ** 2),
    cut=5e-3,
)
# The diffusion is the reversed process: epsilon is half of |d tau/dt|.
EPSILON = lambda t: DURATION * (1 - t)
# Compiled once for all batches.
_wasserstein2 = jax.jit(metrics.wasserstein2)
# From noise that hides the data to noise below their finest width. The uniform law has a seventh of its times where the
# rings and squares form, this one nearly half.
TIMES = matching.log_snr(PATH, 0.3, 0.99)


class Score(eqx.Module):
    r"""$s(t, x) = -x + \beta\,(\alpha^2 + 0.05^2)^{-1/2}\,N(t, x)$, N a network.

    At t = 0, where the flow starts, the score must be that of the noise: an error there is one that the diffusion forgets
    and the flow does not, and no residual sees it.
    """

    net: nn.MLP
    waves: Array  # (2, features)

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


def _model(config, key):
    net_key, wave_key = jax.random.split(key)
    size = 2 + 2 * config.features + 1
    net = nn.MLP(size, out_dim=2, width=config.width, depth=3, frequencies=4, key=net_key)
    return Score(net, 2.0 * jax.random.normal(wave_key, (2, config.features)))


def _residuals(model, t, x):
    r"""$\alpha^2\mathcal R$ in the time of the Ornstein-Uhlenbeck process: a score is of order $1/\alpha$, its change $1/\alpha^2$."""

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
    """Samples of the flow and of the diffusion from the same law of noise, and the root mean square residual over time."""
    n = 2 * config.repeats * config.samples
    a, b, c, d = jax.random.split(key, 4)
    flow = jax.vmap(lambda x: matching.sample(model.velocity, x, steps=config.ode_steps))(jax.random.normal(a, (n, 2)))
    noise = jax.random.normal(b, (n, 2))
    diffusion = matching.sample_sde_batch(
        model.velocity, model, noise, epsilon=EPSILON, steps=config.sde_steps, key=c, method=SRA1()
    )
    times = jnp.linspace(0.05, 0.99, 20)

    def size(t):
        x0 = jax.random.normal(d, x1.shape)
        x = jax.vmap(lambda x0, x1: PATH.at(t, x0, x1, x0).x)(x0, x1)
        return jnp.sqrt(jnp.mean(_residuals(model, jnp.full(len(x), t), x) ** 2))

    return flow, diffusion, jax.lax.map(size, times)


def _w2(a, b):
    return np.array([float(_wasserstein2(x, y)) ** 2 for x, y in zip(a, b, strict=True)])


def _excess(a, b, config):
    """The excess of every pair of batches, its first term and its second."""
    (a, a_), (b, b_) = (np.asarray(x).reshape(2, config.repeats, config.samples, 2) for x in (a, b))
    gap = (_w2(a, b) + _w2(a_, b_) + _w2(a, b_) + _w2(a_, b)) / 4
    floor = (_w2(a, a_) + _w2(b, b_)) / 2
    return gap - floor, gap.mean(), floor.mean()


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Each data set with and without the penalty."""
    error = lambda values: np.std(values, ddof=1) / np.sqrt(len(values))
    excess, distance = {"plain": [], "penalised": []}, {"plain": 0.0, "penalised": 0.0}
    claims, numbers, arrays = [], {}, {"times": np.linspace(0.05, 0.99, 20)}
    with progress_bar(2 * len(config.sets), "ode_sde_gap", "training", show=progress) as bar:
        for i, name in enumerate(config.sets):
            keys = jax.random.split(jax.random.fold_in(key, i), 5)
            draw = partial(SETS[name], n=config.batch_size)
            x1 = SETS[name](keys[0], 2 * config.repeats * config.samples)
            residuals = {}
            for label, weight in (("plain", 0.0), ("penalised", config.weight)):
                optimizer = optax.chain(
                    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, config.train_steps))
                )
                fit = train.fit(
                    _loss(weight),
                    _model(config, keys[2]),
                    draw,
                    optimizer=optimizer,
                    steps=config.train_steps,
                    ema_decay=0.999 if config.train_steps > 2000 else 0.99,
                    key=keys[3],
                    progress=False,
                )
                flow, diffusion, residual = _measure(fit.ema, config, x1[:1000], keys[4])
                values, gap, floor = _excess(flow, diffusion, config)
                excess[label].append(values)
                residuals[label] = float(jnp.sqrt(jnp.mean(residual**2)))
                for kind, x in (("flow", flow), ("diffusion", diffusion)):
                    to_data, _, _ = _excess(x, x1, config)
                    numbers[f"{name}_{label}_{kind}"] = to_data.mean()
                    arrays[f"{name}_{label}_{kind}"] = np.asarray(x[:2000])
                distance[label] += numbers[f"{name}_{label}_flow"]
                numbers |= {
                    f"{name}_{label}_gap": gap,
                    f"{name}_{label}_floor": floor,
                    f"{name}_{label}_excess": values.mean(),
                    f"{name}_{label}_error": error(values),
                    f"{name}_{label}_residual": residuals[label],
                }
                arrays[f"{name}_{label}_residual"] = np.asarray(residual)
                bar.update()
            claims.append(
                at_most(
                    f"{name}: residual, penalised",
                    residuals["penalised"],
                    config.ratio * residuals["plain"],
                    f"{config.ratio:g} x the same without the penalty",
                )
            )
    # One value for every pair of batches, summed over the sets.
    plain, penalised = (np.sum(excess[label], axis=0) for label in ("plain", "penalised"))
    drop = plain - penalised
    claims += [
        at_most(
            "excess of squared W2 between the penalised flow and the data, summed over the sets",
            distance["penalised"],
            config.resolved,
            f"rings and squares apart; without the penalty {distance['plain']:.4f}",
        ),
    ]
    if config.significance is not None:
        # Paired: both laws saw the same noise, of which most of the error of either excess is. The error is that of
        # the samples, not of another training.
        claims.append(
            at_least(
                "fall of the excess of squared W2 between flow and diffusion by the penalty, summed over the sets",
                drop.mean() / error(drop),
                config.significance,
                f"standard errors; from {plain.mean():.4f} to {penalised.mean():.4f}, {error(drop):.4f} the error of the fall",
            )
        )
    numbers |= {"excess_plain": plain.mean(), "excess_penalised": penalised.mean(), "excess_fall_error": error(drop)}
    return Result(tuple(claims), numbers, arrays)


def plot(result: Result) -> Any:
    """Flow and diffusion of both models, and the residual over time."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    names = list(dict.fromkeys(k.split("_")[0] for k in arrays if k.endswith("_residual")))
    figure, axes = plt.subplots(len(names), 3, figsize=(10.5, 3.4 * len(names)), layout="constrained", squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for axis, label in zip(row, ("plain", "penalised"), strict=False):
            axis.plot(*arrays[f"{name}_{label}_diffusion"].T, ".", ms=1.5, label="diffusion")
            axis.plot(*arrays[f"{name}_{label}_flow"].T, ".", ms=1.5, label="flow")
            axis.set(
                title=f"{name}, {label}: excess {numbers[f'{name}_{label}_excess']:.4f}",
                aspect="equal",
                xlim=(-2.2, 2.2),
                ylim=(-2.2, 2.2),
            )
            row[2].semilogy(arrays["times"], arrays[f"{name}_{label}_residual"], label=label)
        row[0].legend(fontsize=8, markerscale=4)
        row[2].set(xlabel="t", ylabel="$\\alpha^2 R$, root mean square", title="diagnostic")
        row[2].legend(fontsize=8)
    return figure
