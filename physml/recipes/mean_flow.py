r"""One step instead of a hundred: mean flows on eight Gaussians and two moons.

A net $u(x, t, r)$ learns the average velocity of its own flow from the identity

$$u = v + (r - t)\,\frac{du}{dt}, \qquad \frac{du}{dt} = (v\cdot\nabla_x)u + \partial_t u,$$

and samples by $x_1 = x_0 + u(x_0, 0, 1)$. Its diagonal $v(t, x) = u(x, t, t)$ is a velocity field, whose flow in 100
steps is what the one step should reproduce. Three nets of one size see the same number of batches: a mean flow, a
modular mean flow, whose $du/dt$ passes a share $\lambda$ of its gradient, raised from 0 to `modulation`, and plain
flow matching. The modular one takes v from its own diagonal, itself taught by flow matching, since with the velocities
of single records $\lambda > 0$ is biased (see `matching.mean_flow_loss`). All are judged by the exact $W_2$ to fresh data, beside the $W_2$ of data to fresh data (the floor: what
a perfect sampler has on average).

Times enter raw: Fourier features have steep time derivatives, which multiply the noise of the target.

**References.** Geng et al., Mean flows for one-step generative modeling (2025), eqs. 6 and 11; You et al., Modular
MeanFlow (2025); Lipman et al., Flow matching for generative modeling (2022).
"""

import dataclasses
from collections.abc import Callable
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
from physml.recipes._result import Info, Result, at_least, at_most

INFO = Info(
    paper="Geng et al., Mean flows for one-step generative modeling (2025); You et al., Modular MeanFlow (2025)",
    claim="one step of a mean flow is nearly as close to fresh data in W2 as 100 steps of the same net, on two laws in "
    "the plane; one step of flow matching is not",
    time="2 min",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, the optimiser, and the bounds of the claims."""

    steps: int = 7000
    batch_size: int = 512
    width: int = 64
    depth: int = 3
    learning_rate: float = 5e-3
    ema_decay: float = 0.999
    flow_ratio: float = 0.5
    modulation: float = 1.0  # lambda at the end of its warm-up
    warm_up: float = 0.5  # the share of the steps in which lambda rises from 0
    samples: int = 2000
    draws: int = 1  # sets of samples and of fresh data; distances are averaged
    flow_steps: int = 100
    one_over_flow: float = 1.3
    one_over_floor: float = 2.0
    flow_over_floor: float = 1.5
    plain_over_flow: float = 2.0

    def __post_init__(self):
        for name in ("steps", "batch_size", "width", "depth", "samples", "draws", "flow_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0 or not 0 < self.warm_up <= 1:
            raise ValueError(
                f"config.learning_rate > 0 and 0 < config.warm_up <= 1; got {self.learning_rate}, {self.warm_up}"
            )


PAPER = Config()
# Seconds instead of minutes: the bounds say what a small net reaches in a tenth of the steps.
SMOKE = Config(
    steps=1000, batch_size=256, width=32, ema_decay=0.99, samples=500,
    one_over_flow=1.6, one_over_floor=1.6, flow_over_floor=1.4, plain_over_flow=2.0,
)  # fmt: skip

PATH = matching.linear()
LAWS: dict[str, Callable[[Key, int], Array]] = {
    "eight Gaussians": lambda key, n: data.eight_gaussians(key, n, scale=1.4, variance=0.01),
    "two moons": lambda key, n: data.moons(key, n, noise=0.1, scale=1.4, shift=-0.5),
}
KINDS = ("mean flow", "modular mean flow", "flow matching")


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Train three nets on each law and measure."""
    claims, numbers, arrays = [], {}, {}
    with progress_bar(len(LAWS) * len(KINDS), "mean_flow", "net", show=progress) as bar:
        for i, (law, draw) in enumerate(LAWS.items()):
            law_key = jax.random.fold_in(key, i)
            real, fresh, sources = _test_sets(config, draw, jax.random.fold_in(law_key, 0))
            floor = _distance(real, fresh)
            short = _short(law)
            numbers[f"{short}_floor"] = floor
            arrays[f"{short}_data"] = fresh[0]
            for kind in KINDS:
                one, flow = _both(
                    _fit(config, kind, draw, jax.random.fold_in(law_key, 1)), kind, config.flow_steps, sources
                )
                w_one, w_flow = _distance(one, fresh), _distance(flow, fresh)
                name = f"{short}_{kind.replace(' ', '_')}"
                numbers |= {f"{name}_one": w_one, f"{name}_flow": w_flow}
                arrays |= {f"{name}_one": one[0], f"{name}_flow": flow[0]}
                claims += _claims(config, kind, f"{law}, {kind}", w_one, w_flow, floor)
                bar.update()
    return Result(
        tuple(claims), {k: float(v) for k, v in numbers.items()}, {k: np.asarray(v) for k, v in arrays.items()}
    )


def _claims(config, kind, label, one, flow, floor):
    steps = f"{config.flow_steps} steps"
    near = at_most(f"{label}: W2 of {steps} over the floor", flow / floor, config.flow_over_floor, "data to fresh data")
    if kind == "flow matching":
        return [
            near,
            at_least(f"{label}: W2 of one step over {steps}", one / flow, config.plain_over_flow, "the same net"),
        ]
    return [
        near,
        at_most(f"{label}: W2 of one step over {steps}", one / flow, config.one_over_flow, "the same net"),
        at_most(f"{label}: W2 of one step over the floor", one / floor, config.one_over_floor, "data to fresh data"),
    ]


def _test_sets(config, draw, key):
    """Data, fresh data and sources, (draws, samples, 2) each."""
    real, fresh, source = jax.random.split(key, 3)
    sets = lambda key: jax.vmap(lambda k: draw(k, config.samples))(jax.random.split(key, config.draws))
    return sets(real), sets(fresh), jax.random.normal(source, (config.draws, config.samples, 2))


def _distance(x, y):
    return float(np.mean([metrics.wasserstein2(a, b) for a, b in zip(x, y, strict=True)]))


def _loss(config, kind):
    def loss(model: Any, batch: tuple[Array, Array, Array], *, key: Key) -> Array:
        x0, x1, step = batch
        if kind == "flow matching":
            return matching.match(model, PATH, x0, x1, key=key)
        if kind == "mean flow":
            return matching.mean_flow_loss(model, PATH, x0, x1, key=key, flow_ratio=config.flow_ratio)
        # Records teach the velocity, the velocity teaches the mean: no noise is left where lambda would be biased by it.
        flow_key, mean_key = jax.random.split(key)
        n = round(config.flow_ratio * len(x0))
        own = matching.instantaneous(jax.lax.stop_gradient(model))
        rise = config.modulation * jnp.minimum(step / (config.warm_up * config.steps), 1.0)
        flow = matching.match(matching.instantaneous(model), PATH, x0[:n], x1[:n], key=flow_key)
        mean = matching.mean_flow_loss(
            model, PATH, x0[n:], x1[n:], key=mean_key, flow_ratio=0.0, modulation=rise, velocity=own
        )
        return config.flow_ratio * flow + (1.0 - config.flow_ratio) * mean

    return loss


def _fit(config, kind, draw, key):
    """The averaged net after `config.steps` batches; the keys, and so the batches, are the same for each kind."""
    net_key, train_key = jax.random.split(key)
    times = 1 if kind == "flow matching" else 2
    net = nn.MLP(2, width=config.width, depth=config.depth, times=times, frequencies=0, key=net_key)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, min(100, config.steps), config.steps)
    optimizer, loss = optax.adam(schedule), _loss(config, kind)
    state, frozen = train.init_state(net, optimizer, ema_decay=config.ema_decay)

    def step(state, i):
        data_key, source_key, loss_key = jax.random.split(jax.random.fold_in(train_key, i), 3)
        x1 = draw(data_key, config.batch_size)
        batch = (jax.random.normal(source_key, x1.shape), x1, i.astype(x1.dtype))
        state, _ = train.train_step(
            state, frozen, batch, key=loss_key, loss=loss, optimizer=optimizer, ema_decay=config.ema_decay
        )
        return state, None

    state = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(config.steps))[0])(state)
    return eqx.combine(state.ema, frozen)


@eqx.filter_jit
def _both(model, kind, steps, sources):
    """One step and `steps` steps of the flow from the same sources (draws, samples, 2)."""
    if kind == "flow matching":
        velocity, once = model, lambda x: x + model(jnp.zeros((), x.dtype), x)
    else:
        velocity, once = matching.instantaneous(model), partial(matching.one_step, model)
    many = partial(matching.sample, velocity, steps=steps)
    return jax.vmap(jax.vmap(once))(sources), jax.vmap(jax.vmap(many))(sources)


def plot(result: Result) -> Any:
    """For each law: data, and one step over the flow of each net, with W2 to fresh data."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 4, figsize=(11, 11.4), layout="constrained")
    for i, law in enumerate(LAWS):
        short = _short(law)
        top, bottom = axes[2 * i], axes[2 * i + 1]
        _scatter(top[0], result.arrays[f"{short}_data"], "k", f"{law}\nfloor {result.metrics[f'{short}_floor']:.3f}")
        bottom[0].axis("off")
        for j, kind in enumerate(KINDS):
            name = f"{short}_{kind.replace(' ', '_')}"
            for row, which, title in ((top, "one", f"{kind}\none step"), (bottom, "flow", "flow of the same net")):
                w2 = result.metrics[f"{name}_{which}"]
                _scatter(row[j + 1], result.arrays[f"{name}_{which}"], f"C{j}", f"{title}: W2 {w2:.3f}")
    return figure


def _scatter(axis, x, colour, title):
    axis.scatter(x[:, 0], x[:, 1], s=2, alpha=0.5, color=colour, lw=0, rasterized=True)
    axis.set(xlim=(-2.6, 2.9), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)


def _short(law):
    return law.split()[1].lower()
