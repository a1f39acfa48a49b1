r"""Closing the gap between flow and diffusion by the Fokker-Planck equation.

A learned score s gives two laws: that of the flow $\dot x = v$, v the velocity that goes with s, and that of the diffusion
$dx = [v + \epsilon s]dt + \sqrt{2\epsilon}\,dW$. They are equal when $\mathcal R = \partial_t s + \nabla(\nabla\!\cdot v + v\cdot s)$ is zero.
A network is trained by score matching alone, and with $w\,E|\alpha^2\mathcal R|^2$ beside it; $W_2^2$ between the two laws is
measured for both, less what two samples of one law score, and the residual as a diagnostic.

The forward process is the Ornstein-Uhlenbeck process $dx = -\tfrac12 x\,d\tau + dW$ up to $\tau = 10$, at the times
$\tau = 10(1 - t)^2$.

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

from physml import data, matching, metrics, nn, train
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.integrate import SRA1
from physml.recipes._result import Info, Result, at_most

INFO = Info(
    paper="Deveney et al., Closing the ODE-SDE gap in score-based diffusion models (2023)",
    claim="a penalty lowers the Fokker-Planck residual several times; the gap between flow and diffusion is small here, near its noise",
    time="5 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    sets: tuple[str, ...] = ("blob", "circles", "checker")
    width: int = 64
    train_steps: int = 3000
    batch_size: int = 256
    weight: float = 1.0  # of the Fokker-Planck penalty
    samples: int = 2000
    repeats: int = 4
    ode_steps: int = 100
    sde_steps: int = 400
    # the bounds of the claims
    ratio: float = 0.7

    def __post_init__(self):
        unknown = set(self.sets) - set(SETS)
        if unknown or not self.sets:
            raise ValueError(f"config.sets must be some of {', '.join(SETS)}; got {', '.join(self.sets) or 'none'}")
        if self.weight <= 0:
            raise ValueError(f"config.weight must be positive, got {self.weight}")


SETS = {
    "blob": lambda key, n: 0.3 * jax.random.normal(key, (n, 2)) + jnp.array([0.5, -0.5])[None],
    "circles": lambda key, n: data.circles(key, n, radii=(0.5, 1.2), noise=0.05),
    "checker": lambda key, n: data.checkerboard(key, n) / 1.2,
}
PAPER = Config()
SMOKE = Config(
    sets=("circles",), width=48, train_steps=800, samples=500, repeats=2, ode_steps=50, sde_steps=200, ratio=0.9
)
# Ten units of the Ornstein-Uhlenbeck process, tau = 10 (1 - t)^2: half of the time t lies below tau = 2.5, where the data are.
DURATION = 10.0
PATH = matching.Path(
    lambda t: jnp.sqrt(-jnp.expm1(-DURATION * (1 - t) ** 2)),
    lambda t: jnp.exp(-0.5 * DURATION * (1 - t) ** 2),
    cut=5e-3,
)
# The diffusion is the reversed process: epsilon is half of |d tau/dt|.
EPSILON = lambda t: DURATION * (1 - t)


class Score(eqx.Module):
    r"""$s(t, x) = -x + \beta\,(\alpha^2 + 0.01)^{-1/2}\,N(t, x)$, N a network.

    At t = 0, where the flow starts, the score must be that of the noise: an error there is one that the diffusion forgets
    and the flow does not, and no residual sees it.
    """

    net: nn.MLP

    def __call__(self, t, x, args=None):
        (alpha, beta, _), _ = PATH.coefficients(jnp.asarray(t, x.dtype))
        # Bounded where the path ends at the data: the width below which nothing is learned is a tenth.
        return -x + beta / jnp.sqrt(alpha**2 + 0.01) * self.net(t, x, args)

    def velocity(self, t, x, args=None):
        """The velocity of the flow with this score: the reversed process without its noise."""
        return EPSILON(t) * (x + self(t, x, args))


def _residuals(model, t, x):
    """The residual in the time of the Ornstein-Uhlenbeck process."""
    rate = lambda t: 2 * EPSILON(t)
    return jax.vmap(lambda t, x: matching.score_residual(model.velocity, model, t, x) / rate(t))(t, x)


def _loss(weight):
    def loss(model, batch, *, key):
        noise_key, match_key, time_key = jax.random.split(key, 3)
        x0 = jax.random.normal(noise_key, batch.shape)
        fit = matching.match(model, PATH, x0, batch, key=match_key, target="score")
        if weight == 0:
            return fit
        t = PATH.cut + (1 - 2 * PATH.cut) * jax.random.uniform(time_key, (len(batch),))
        x = jax.vmap(lambda t, x0, x1: PATH.at(t, x0, x1, x0).x)(t, x0, batch)
        (alpha, _, _), _ = jax.vmap(PATH.coefficients)(t)
        # A score is of order 1/alpha and its change of order 1/alpha^2.
        return fit + weight * jnp.mean((alpha[:, None] ** 2 * _residuals(model, t, x)) ** 2)

    return loss


@eqx.filter_jit
def _measure(model, config, x1, key):
    """Samples of the flow and of the diffusion from the same law of noise, and the root mean square residual over time."""
    n = config.repeats * config.samples
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


def _gap(a, b, config):
    """Mean squared W2 of batches, and its standard error."""
    shape = (config.repeats, config.samples, 2)
    values = [float(metrics.wasserstein2(x, y)) ** 2 for x, y in zip(a.reshape(shape), b.reshape(shape), strict=True)]
    return np.mean(values), np.std(values) / np.sqrt(max(len(values) - 1, 1))


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Each data set with and without the penalty."""
    excess = {"plain": np.zeros(2), "penalised": np.zeros(2)}  # and its squared error
    claims, numbers, arrays = [], {}, {"times": np.linspace(0.05, 0.99, 20)}
    with progress_bar(2 * len(config.sets), "ode_sde_gap", "training", show=progress) as bar:
        for i, name in enumerate(config.sets):
            keys = jax.random.split(jax.random.fold_in(key, i), 6)
            draw = partial(SETS[name], n=config.batch_size)
            n = config.repeats * config.samples
            x1 = SETS[name](keys[0], n)
            found = {}
            for label, weight in (("plain", 0.0), ("penalised", config.weight)):
                net = nn.MLP(2, width=config.width, depth=3, activation=jnp.tanh, frequencies=4, key=keys[2])
                optimizer = optax.chain(
                    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, config.train_steps))
                )
                fit = train.fit(
                    _loss(weight),
                    Score(net),
                    draw,
                    optimizer=optimizer,
                    steps=config.train_steps,
                    ema_decay=0.999,
                    key=keys[3],
                    progress=False,
                )
                flow, diffusion, residual = _measure(fit.ema, config, x1[:1000], keys[4])
                gap, error = _gap(flow, diffusion, config)
                # Two samples of one law score this; a wider law scores more.
                floor, _ = _gap(diffusion, jnp.roll(diffusion, config.samples, axis=0), config)
                found[label] = (gap - floor, error, float(jnp.sqrt(jnp.mean(residual**2))))
                for kind, x in (("flow", flow), ("diffusion", diffusion)):
                    numbers[f"{name}_{label}_{kind}"] = _gap(x, x1, config)[0]
                    arrays[f"{name}_{label}_{kind}"] = np.asarray(x[: config.samples])
                numbers |= {
                    f"{name}_{label}_gap": gap,
                    f"{name}_{label}_floor": floor,
                    f"{name}_{label}_residual": found[label][2],
                }
                arrays[f"{name}_{label}_residual"] = np.asarray(residual)
                bar.update()
            claims.append(
                at_most(
                    f"{name}: residual, penalised",
                    found["penalised"][2],
                    config.ratio * found["plain"][2],
                    f"{config.ratio:g} x the same without the penalty",
                )
            )
            excess = {label: excess[label] + np.array([found[label][0], found[label][1] ** 2]) for label in excess}
    total, plain = excess["penalised"], excess["plain"]
    claims.append(
        at_most(
            "squared W2 between flow and diffusion above its floor, summed over the sets, penalised",
            total[0],
            config.ratio * plain[0],
            f"{config.ratio:g} x the same without the penalty",
            np.sqrt(total[1]),
        )
    )
    numbers |= {"excess_plain": plain[0], "excess_penalised": total[0]}
    return Result(tuple(claims), numbers, arrays)


def plot(result: Result) -> Any:
    """Flow and diffusion of both models, and the residual over time."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    names = list(dict.fromkeys(k.split("_")[0] for k in arrays if k.endswith("_residual")))
    figure, axes = plt.subplots(len(names), 3, figsize=(10.5, 3.4 * len(names)), layout="constrained", squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for axis, label in zip(row, ("plain", "penalised"), strict=False):
            axis.plot(*arrays[f"{name}_{label}_diffusion"].T, ".", ms=2, label="diffusion")
            axis.plot(*arrays[f"{name}_{label}_flow"].T, ".", ms=2, label="flow")
            axis.set(
                title=f"{name}, {label}: gap {numbers[f'{name}_{label}_gap']:.4f}, floor {numbers[f'{name}_{label}_floor']:.4f}",
                aspect="equal",
            )
            row[2].semilogy(arrays["times"], arrays[f"{name}_{label}_residual"], label=label)
        row[0].legend(fontsize=8, markerscale=4)
        row[2].set(xlabel="t", ylabel="residual, root mean square", title="diagnostic")
        row[2].legend(fontsize=8)
    return figure
