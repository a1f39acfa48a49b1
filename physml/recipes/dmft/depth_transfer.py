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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.dmft.equations.solve import solve
from physml.dmft.learning.residual_dynamics import LinearResidual
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Bordelon et al., Depthwise hyperparameter transfer in residual networks (2023); Chen et al. (2024)",
    claim="the best step size stays over depth and width; networks approach the limit of both; the Gram matrix bounds the loss",
    time="2 min, smoke 15 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    widths: tuple[int, ...] = (32, 64, 128)
    width: int = 64
    width_depth: int = 4
    log_rates: tuple[int, ...] = tuple(range(-14, 5))  # powers of 2
    examples: int = 512
    batch: int = 64
    steps: int = 60
    seeds: int = 3
    limit_widths: tuple[int, ...] = (64, 128, 256, 512)
    limit_depths: tuple[int, ...] = (4, 8, 16)
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

    def __post_init__(self):
        if min(self.steps, self.seeds, self.batch) < 1 or self.batch > self.examples or len(self.log_rates) < 3:
            raise ValueError(f"steps, seeds and batch must be positive, batch <= examples, three rates; got {self}")


PAPER = Config()
SMOKE = Config(
    depths=(2, 16), widths=(), width=32, log_rates=tuple(range(-8, 4)), examples=128, steps=30, seeds=1, limit_widths=(),
    limit_depths=(), limit_time=0.6, particles=64, layers=4, samples=6, flow_time=6.0, depth_tolerance=0.4,
)  # fmt: skip


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Train over the grids, solve the limit, follow the particles."""
    claims: list = []
    arrays: dict[str, np.ndarray] = {}
    keys = jax.random.split(key, 3)
    with progress_bar(3, "depth transfer", "part", show=progress) as bar:
        for part, k in zip((_digits, _limit, _flow), keys, strict=True):
            claims += part(config, k, arrays)
            bar.update()
    return Result(tuple(claims), {c.quantity: c.value for c in claims}, arrays)


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


def _digits(config, key, arrays):
    from sklearn.datasets import load_digits

    images, digits = (np.asarray(a) for a in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(images))[: config.examples]
    x = images[order]
    x = jnp.asarray((x - x.mean(0)) / (x.std() + 1e-6), jnp.float32)
    labels = jnp.asarray(digits[order], jnp.int32)
    rates = 2.0 ** jnp.asarray(config.log_rates, jnp.float32)
    options = {"steps": config.steps, "batch": config.batch}

    def losses(depth, width, scale):
        runs = [train(x, labels, rates, jax.random.fold_in(key, i), depth=depth, width=width, scale=scale, **options)
                for i in range(config.seeds)]  # fmt: skip
        mean = np.mean(np.asarray(runs, np.float64), 0)
        return np.where(np.isfinite(mean), mean, np.inf)

    tables = {"scaled": np.stack([losses(L, config.width, L**-0.5) for L in config.depths]),
              "unscaled": np.stack([losses(L, config.width, 1.0) for L in config.depths])}  # fmt: skip
    if config.widths:
        tables["width"] = np.stack([losses(config.width_depth, n, config.width_depth**-0.5) for n in config.widths])
    arrays |= {
        "log rates": np.asarray(config.log_rates),
        "depths": np.asarray(config.depths),
        "widths": np.asarray(config.widths),
    }
    arrays |= {f"loss {name}": np.minimum(table, 1e3) for name, table in tables.items()}
    best = {name: np.asarray(config.log_rates)[np.argmin(table, 1)] for name, table in tables.items()}
    edge = min(config.log_rates), max(config.log_rates)
    moved = {name: np.ptp(b) for name, b in best.items()}
    claims = [
        at_most("scaled: steps of the grid the best rate moves over depth", moved["scaled"], 1, "transfer"),
        at_least("unscaled: steps of the grid the best rate moves over depth", moved["unscaled"], 2, "no transfer"),
        at_least("best rates inside the grid, of all", np.mean([e not in edge for b in best.values() for e in b]), 1, "the grid suffices"),
    ]  # fmt: skip
    if config.widths:
        claims.append(at_most("steps of the grid the best rate moves over width", moved["width"], 1, "mu-P"))
    return claims


def _limit(config, key, arrays):
    """Single linear networks against the equations of infinite width, and finite depth against its extrapolation."""
    if not config.limit_depths:
        return []
    model = lambda L: LinearResidual(L, t_max=config.limit_time, dt=0.1)
    errors = {
        L: np.asarray(solve(model(L)).check().order.error) for L in (*config.limit_depths, 2 * config.limit_depths[-1])
    }
    last = config.limit_depths[-1]
    deep = 2 * errors[2 * last] - errors[last]
    gaps = [np.abs(errors[L] - deep).max() for L in config.limit_depths]
    power = np.polyfit(np.log(config.limit_depths), np.log(gaps), 1)[0]
    claims = [
        close_to(
            "linear network: power of the error in depth", power, -1, config.depth_tolerance, "branches of variance 1/L"
        )
    ]
    t = 0.1 * np.arange(len(deep))
    arrays |= {
        "limit t": t,
        "limit depths": np.asarray(config.limit_depths),
        "limit gaps": np.asarray(gaps),
        "limit error": deep,
    }
    arrays |= {f"limit error {L}": e for L, e in errors.items()}
    if config.limit_widths:
        m = model(config.limit_depth)
        exact = np.asarray(solve(m).check().order.error)
        rms, bias = [], []
        for i, n in enumerate(config.limit_widths):
            keys = jax.random.split(jax.random.fold_in(key, i), config.limit_networks)
            runs = np.asarray(
                jax.jit(lambda keys, n=n: lax.map(lambda k: m.finite_n(n, key=k).error, keys))(keys), np.float64
            )
            rms.append(np.sqrt(np.mean((runs - exact) ** 2)))
            bias.append(np.abs((runs.mean(0) - exact) / runs.std(0, ddof=1)).max())
            arrays[f"limit runs {n}"] = runs
        power = np.polyfit(np.log(config.limit_widths), np.log(rms), 1)[0]
        claims += [
            close_to("linear network: power of the error in width", power, -0.5, config.slope_tolerance, "CLT"),
            at_most(
                "widest linear networks: bias over the scatter of one network, largest",
                bias[-1],
                0.5,
                "O(1/n) over O(n^-1/2)",
            ),
        ]
        arrays |= {"limit widths": np.asarray(config.limit_widths), "limit rms": np.asarray(rms), "limit exact": exact}
    return claims


def _flow(config, key, arrays):
    """Particle gradient flow on a few digits, its loss and the smallest eigenvalue of its Gram matrix."""
    from sklearn.datasets import load_digits

    L, M, P = config.layers, config.particles, config.samples
    images, digits = (np.asarray(a) for a in load_digits(return_X_y=True))
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
    _, (loss, lowest) = jax.jit(lambda params: lax.scan(step, params, length=steps))(params)
    loss, lowest = np.asarray(loss, np.float64), np.asarray(lowest, np.float64)
    t = dt * np.arange(steps)
    arrays |= {"flow t": t, "flow loss": loss, "flow lowest": lowest}
    return [
        at_least("smallest eigenvalue of the Gram matrix at the start", lowest[0], 1e-3, "positive"),
        at_least("smallest eigenvalue along the flow over its start", lowest.min() / lowest[0], 0.5, "condition of the bound"),
        at_most("loss over its exponential bound, largest", np.max(loss / loss[0] * np.exp(lowest[0] * t)), 1.0001, "exp(-lambda t)"),
        at_most("loss left at the end", loss[-1] / loss[0], 0.5, "training happens"),
    ]  # fmt: skip


def plot(result: Result) -> Any:
    """Loss against rate over depth, scaled and not; the limit; the flow."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.6), layout="constrained")
    colour = lambda i, n: plt.get_cmap("viridis")(0.9 * i / max(n - 1, 1))
    for axis, name, sizes, label in (
        (axes[0, 0], "scaled", a["depths"], "L"), (axes[0, 1], "unscaled", a["depths"], "L"), (axes[0, 2], "width", a["widths"], "n"),
    ):  # fmt: skip
        for i, size in enumerate(sizes):
            loss = np.where(a[f"loss {name}"][i] < 4, a[f"loss {name}"][i], np.nan)
            axis.plot(a["log rates"], loss, "o-", ms=3, color=colour(i, len(sizes)), label=f"{label} = {size}")
            k = np.nanargmin(loss)
            axis.plot(a["log rates"][k], loss[k], "*", ms=12, color=colour(i, len(sizes)))
        axis.set(xlabel=r"$\log_2\eta$", ylabel="training loss", title=f"digits, {name}", yscale="log")
        if len(sizes):
            axis.legend(fontsize=8)
    curves, decay, flow = axes[1]
    depths = a.get("limit depths", ())
    for i, L in enumerate(depths):
        curves.plot(a["limit t"], a[f"limit error {L}"], color=colour(i, len(depths)), label=f"L = {L}")
    if len(depths):
        curves.plot(a["limit t"], a["limit error"], "k--", label="infinite depth")
        decay.loglog(depths, a["limit gaps"], "o", label="depth, against infinite")
        decay.loglog(depths, a["limit gaps"][0] * depths[0] / depths, "k-", lw=0.8)
    curves.set(xlabel="t", ylabel=r"$y - f$", title="linear network of infinite width")
    curves.legend(*curves.get_legend_handles_labels(), fontsize=8)
    if "limit rms" in a:
        decay.loglog(a["limit widths"], a["limit rms"], "s", label="width, single networks")
        decay.loglog(
            a["limit widths"], a["limit rms"][0] * (a["limit widths"] / a["limit widths"][0]) ** -0.5, "k-", lw=0.8
        )
    decay.set(xlabel="L or n", ylabel=r"error of $y - f$", title=r"towards the limit; lines $L^{-1}$, $n^{-1/2}$")
    decay.legend(*decay.get_legend_handles_labels(), fontsize=8)
    flow.semilogy(a["flow t"], a["flow loss"] / a["flow loss"][0], label="loss")
    flow.semilogy(a["flow t"], np.exp(-a["flow lowest"][0] * a["flow t"]), "k--", lw=1, label=r"$e^{-\lambda t}$")
    flow.semilogy(a["flow t"], a["flow lowest"] / a["flow lowest"][0], ":", label=r"$\lambda_{min}(G_t)/\lambda$")
    flow.set(xlabel="t", ylabel="ratio to the start", title="mean-field ResNet")
    flow.legend(fontsize=8)
    return figure
