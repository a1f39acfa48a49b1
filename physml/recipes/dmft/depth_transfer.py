r"""Step sizes that survive depth: residual networks with branches of scale $L^{-1/2}$, and their limit.

$$h^0 = W_{in}x/\sqrt d, \quad h^{l+1} = h^l + s\, W_l\phi(h^l)/\sqrt n, \quad f = v h^L/n, \quad
  \theta \leftarrow \theta - \eta n\,\partial_\theta\,\mathrm{loss}$$

1. *Digits.* The best $\eta$ of a grid of factors 2, by training loss, moves by at most one step from depth 2 to 32 and over widths
   with $s = L^{-1/2}$, and by at least two over depth with s = 1.
2. *The limit.* For linear branches and one sample the kernels of infinite width obey closed equations
   (`dmft.residual_dynamics`): errors of single networks fall as $n^{-1/2}$, those of finite depth as 1/L.
3. *Mean-field particles.* L layers of M particles, $h \mathrel{+}= \frac{1}{LM}\sum_m a_m\tanh(w_m\cdot h)$: the loss on P samples
   obeys $\dot{\mathcal L} = -r^\top G r$, so it decays at least as $e^{-\lambda t}$ while the smallest eigenvalue of the Gram matrix
   G stays above half its value $\lambda$ at the start.

**See** Bordelon, Noci, Li, Hanin and Pehlevan, Depthwise hyperparameter transfer in residual networks (2023); Chen, Liu, Wang,
Chrysos and Cevher, Generalization of scaled deep ResNets in the mean-field regime (2024).
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from physml import dmft
from physml.dmft import LinearResidual
from physml.metrics import power_law
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Bordelon et al., Depthwise hyperparameter transfer in residual networks (2023); Chen et al. (2024)",
    claim="the best step size stays over depth and width; networks approach the limit of both; the Gram matrix bounds the loss",
    time="2 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    widths: tuple[int, ...] = setting((32, 64, 128), length=0)
    width: int = 64
    width_depth: int = 4
    log_rates: tuple[int, ...] = setting(tuple(range(-14, 5)), least=-np.inf, length=3)  # powers of 2
    examples: int = 512
    batch: int = 64
    steps: int = 60
    seeds: int = 3
    limit_widths: tuple[int, ...] = setting((64, 128, 256, 512), length=0)
    limit_depths: tuple[int, ...] = setting((4, 8, 16), length=0)
    limit_depth: int = 4  # of the networks of growing width
    limit_networks: int = 256
    limit_time: float = 1.0
    particles: int = 256
    layers: int = 10
    samples: int = 12
    flow_time: float = 12.0
    # the bounds of the claims
    slope_tolerance: float = 0.1
    depth_tolerance: float = 0.15

    def rules(self):
        return ((self.batch <= self.examples, "batch is at most examples"),)


PAPER = Config()
SMOKE = Config(
    depths=(2, 16), widths=(), width=32, log_rates=tuple(range(-8, 4)), examples=128, steps=30, seeds=1, limit_widths=(),
    limit_depths=(), limit_time=0.6, particles=64, layers=4, samples=6, flow_time=6.0, depth_tolerance=0.4,
)  # fmt: skip

SABOTAGE = Sabotage(
    "branches have the scale L^(-1/4)", sys.modules[__name__], "train",
    lambda exact: lambda *arguments, scale, **options: exact(*arguments, scale=scale**0.5, **options),
)  # fmt: skip


@experiment
def run(study, config, key):
    study.keep(limit=None, width=None)
    keys = jax.random.split(key, 3)
    for stage, stage_key in study.each(zip((_digits, _limit, _flow), keys, strict=True)):
        stage(study, config, stage_key)


def _images():
    """Digits (n, 64) and their labels, as scikit-learn lists them."""
    from sklearn.datasets import load_digits

    return [np.asarray(a) for a in load_digits(return_X_y=True)]


@functools.partial(jax.jit, static_argnames=("depth", "width", "steps", "batch"))
def train(x, labels, rates, key, *, depth, width, steps, batch, scale):
    """Final loss over all examples for every rate, the same start and batches for each."""
    d, start = x.shape[1], jax.random.split(key, 4)
    shapes = {"W": (depth, width, width), "in": (width, d), "out": (10, width)}
    params = {name: jax.random.normal(k, shapes[name]) for name, k in zip(shapes, start[:3], strict=True)}

    def loss(params, x, labels):
        branch = lambda h, W: (h + scale * jax.nn.relu(h) @ W.T / width**0.5, None)
        h, _ = lax.scan(branch, x @ params["in"].T / d**0.5, params["W"])
        logits = jax.nn.log_softmax(h @ params["out"].T / width)
        return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))

    def one(rate):
        def step(params, key):
            rows = jax.random.randint(key, (batch,), 0, len(x))
            slope = jax.grad(loss)(params, x[rows], labels[rows])
            return jax.tree.map(lambda p, g: p - rate * width * g, params, slope), None

        final, _ = lax.scan(step, params, jax.random.split(start[3], steps))
        return loss(final, x, labels)

    return jax.vmap(one)(rates)


def _digits(study, config, key):
    """Training loss over step sizes, and how far the best one moves with depth and width."""
    images, digits = _images()
    order = np.random.default_rng(0).permutation(len(images))[: config.examples]
    x = images[order]
    x = jnp.asarray((x - x.mean(0)) / (x.std() + 1e-6), jnp.float32)
    labels = jnp.asarray(digits[order], jnp.int32)
    rates = 2.0 ** jnp.asarray(config.log_rates, jnp.float32)

    def losses(depth, width, scale):
        options = {"depth": depth, "width": width, "scale": scale, "steps": config.steps, "batch": config.batch}
        runs = [train(x, labels, rates, jax.random.fold_in(key, i), **options) for i in range(config.seeds)]
        mean = np.mean(np.asarray(runs, np.float64), 0)
        return np.where(np.isfinite(mean), mean, np.inf)

    tables = {
        "scaled": {f"L = {L}": losses(L, config.width, L**-0.5) for L in config.depths},
        "unscaled": {f"L = {L}": losses(L, config.width, 1.0) for L in config.depths},
        "width": {f"n = {n}": losses(config.width_depth, n, config.width_depth**-0.5) for n in config.widths},
    }
    best = {name: [config.log_rates[np.argmin(row)] for row in table.values()] for name, table in tables.items()}
    quantity = "steps of the grid the best rate moves over"
    study.at_most(f"scaled: {quantity} depth", np.ptp(best["scaled"]), 1, "transfer")
    study.at_least(f"unscaled: {quantity} depth", np.ptp(best["unscaled"]), 2, "no transfer")
    edge = min(config.log_rates), max(config.log_rates)
    inside = np.mean([rate not in edge for rates in best.values() for rate in rates])
    study.at_least("best rates inside the grid, of all", inside, 1, "the grid suffices")
    if config.widths:
        study.at_most(f"{quantity} width", np.ptp(best["width"]), 1, "mu-P")
    study.keep(log_rates=np.asarray(config.log_rates), tables={name: table for name, table in tables.items() if table})


def _limit(study, config, key):
    """Single linear networks against the equations of infinite width, and finite depth against its extrapolation."""
    if not config.limit_depths:
        return
    model = lambda L: LinearResidual(L, t_max=config.limit_time, dt=0.1)
    last = config.limit_depths[-1]
    errors = {L: np.asarray(dmft.solve(model(L)).check().order.error) for L in (*config.limit_depths, 2 * last)}
    deep = 2 * errors.pop(2 * last) - errors[last]
    gaps = [np.abs(error - deep).max() for error in errors.values()]
    power = power_law(config.limit_depths, gaps)[0].value
    quantity = "linear network: power of the error in depth"
    study.near(quantity, power, -1, "branches of variance 1/L", atol=config.depth_tolerance)
    study.keep(limit=errors, deep=deep, depth=(list(errors), gaps))
    if not config.limit_widths:
        return
    m = model(config.limit_depth)
    exact = np.asarray(dmft.solve(m).check().order.error)
    rms = []
    for i, n in enumerate(config.limit_widths):
        keys = jax.random.split(jax.random.fold_in(key, i), config.limit_networks)
        runs = jax.jit(lambda keys, n=n: lax.map(lambda k: m.finite_n(n, key=k).error, keys))(keys)
        runs = np.asarray(runs, np.float64)
        rms.append(np.sqrt(np.mean((runs - exact) ** 2)))
    power = power_law(config.limit_widths, rms)[0].value
    study.near("linear network: power of the error in width", power, -0.5, "CLT", atol=config.slope_tolerance)
    bias = np.abs((runs.mean(0) - exact) / runs.std(0, ddof=1)).max()
    quantity = "widest linear networks: bias over the scatter of one network, largest"
    study.at_most(quantity, bias, 0.5, "O(1/n) over O(n^-1/2)")
    study.keep(width=(config.limit_widths, rms))


def _flow(study, config, key):
    """Particle gradient flow on a few digits, its loss and the smallest eigenvalue of its Gram matrix."""
    L, M, P = config.layers, config.particles, config.samples
    images, digits = _images()
    x = jnp.asarray(images[:P] - images.mean(0), jnp.float32)
    x = x / jnp.sqrt(jnp.mean(x**2, 1, keepdims=True))
    d = x.shape[1]
    target = jnp.where(jnp.asarray(digits[:P] % 2) == 0, 1.0, -1.0)
    a_key, w_key, o_key = jax.random.split(key, 3)
    params = {"a": jax.random.normal(a_key, (L, M, d)), "w": jax.random.normal(w_key, (L, M, d))}
    out = jax.random.normal(o_key, (d,))

    def predict(params, x):
        layer = lambda h, p: (h + jnp.tanh(p["w"] @ h / d**0.5) @ p["a"] / (L * M), None)
        return out @ (lax.scan(layer, x, params)[0] - x) / d**0.5

    # A particle is one of L M, each of weight 1/(L M): the flow of the measure is L M times the gradient.
    outputs = lambda params: jax.vmap(lambda v: predict(params, v))(x)

    def gram(params):
        J = jax.jacrev(outputs)(params)
        flat = jnp.concatenate([leaf.reshape(P, -1) for leaf in jax.tree.leaves(J)], 1)
        return L * M * flat @ flat.T

    dt = 0.05

    def step(params, _):
        f, pull = jax.vjp(outputs, params)
        r = f - target
        (slope,) = pull(r)
        lowest = jnp.linalg.eigvalsh(gram(params))[0]
        return jax.tree.map(lambda p, g: p - dt * L * M * g, params, slope), (0.5 * jnp.sum(r**2), lowest)

    steps = round(config.flow_time / dt)
    _, traces = jax.jit(lambda params: lax.scan(step, params, length=steps))(params)
    loss, lowest = (np.asarray(trace, np.float64) for trace in traces)
    t, left = dt * np.arange(steps), loss / loss[0]
    study.at_least("smallest eigenvalue of the Gram matrix at the start", lowest[0], 1e-3, "positive")
    kept = lowest.min() / lowest[0]
    study.at_least("smallest eigenvalue along the flow over its start", kept, 0.5, "condition of the bound")
    over = np.max(left * np.exp(lowest[0] * t))
    study.at_most("loss over its exponential bound, largest", over, 1.0001, "exp(-lambda t)")
    study.at_most("loss left at the end", left[-1], 0.5, "training happens")
    study.keep(t=t, loss=left, lowest=lowest)


def plot(result):
    """Loss against rate over depth, scaled and not; the limit; the flow."""
    from matplotlib import colormaps

    d = result.data
    figure, (upper, lower) = draw.panels(2, 3, width=4.6, height=3.8)
    colours = lambda n: colormaps["viridis"](np.linspace(0, 0.9, n))
    for axis, (name, table) in zip(upper, d.tables.items(), strict=False):
        for (size, losses), colour in zip(table.items(), colours(len(table)), strict=True):
            loss = np.where(losses < 4, losses, np.nan)
            axis.plot(d.log_rates, loss, "o-", ms=3, color=colour, label=size)
            axis.plot(d.log_rates[np.nanargmin(loss)], np.nanmin(loss), "*", ms=12, color=colour)
        draw.label(axis, f"digits, {name}", r"$\log_2\eta$", "training loss", log="y")
    curves, decay, flow = lower
    if d.limit is not None:
        t = 0.1 * np.arange(len(d.deep))
        for (L, error), colour in zip(d.limit.items(), colours(len(d.limit)), strict=True):
            curves.plot(t, error, color=colour, label=f"L = {L}")
        draw.theory(curves, t, d.deep, "k--", label="infinite depth")
        decay.plot(*d.depth, "o", label="depth, against infinite")
        draw.slope(decay, *d.depth, power=-1.0)
    if d.width is not None:
        decay.plot(*d.width, "s", label="width, single networks")
        draw.slope(decay, *d.width, power=-0.5)
    draw.label(curves, "linear network of infinite width", "t", r"$y - f$")
    draw.label(decay, r"towards the limit; lines $L^{-1}$, $n^{-1/2}$", "L or n", r"error of $y - f$", log="xy")
    flow.plot(d.t, d.loss, label="loss")
    draw.theory(flow, d.t, np.exp(-d.lowest[0] * d.t), "k--", lw=1, label=r"$e^{-\lambda t}$")
    flow.plot(d.t, d.lowest / d.lowest[0], ":", label=r"$\lambda_{min}(G_t)/\lambda$")
    draw.label(flow, "mean-field ResNet", "t", "ratio to the start", log="y")
    for axis in figure.axes:
        axis.set_visible(axis.has_data())
    return figure
