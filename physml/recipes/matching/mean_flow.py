r"""One step instead of a hundred: mean flows on two laws in the plane and on real digits.

A net $u(x, t, r)$ learns the average velocity of its own flow from the identity

$$u = v + (r - t)\,\frac{du}{dt}, \qquad \frac{du}{dt} = (v\cdot\nabla_x)u + \partial_t u,$$

and samples by $x_1 = x_0 + u(x_0, 0, 1)$, one evaluation. Its diagonal $v(t, x) = u(x, t, t)$ is a velocity, whose flow
in 100 steps is what the one step should reproduce. Three ways of training are compared.

- *mean flow*: v is the velocity of single records, $du/dt$ is held fixed.
- *modular*: $du/dt$ passes a share $\lambda$ of its gradient, raised from 0 to 1 (the paper's warm-up). Since
  $\lambda > 0$ is biased by the noise of single records (see `matching.mean_flow_loss`), v is the net's own diagonal,
  which flow matching teaches beside it.
- *coupled*: the mean flow on pairs of minibatch optimal transport, whose paths are nearly straight.

In the plane, W2 is an average over `draws` sets of samples. It is mostly its floor (data to fresh data) and, on eight
Gaussians, the weights of the modes, and it forgives bridges between modes. So the *stray share* counts the samples
farther from a large reference set than all but 0.5% of real ones: there one step is worse than 100, several times
over, and the figure shows its arcs thinner than those of the data. One Euler step of the diagonal,
$x_0 + u(x_0, 0, 0)$, is the control: what the same net does without the identity. On coupled pairs its W2 is as good,
since the paths are straight; only its stray share shows the difference. Digits are drawn given the class, rounded to
the 17 levels, and held against held-out digits beside re-splits of real ones.

Times enter raw: Fourier features have steep time derivatives, which multiply the noise of the target.

**See** Geng et al., Mean flows for one-step generative modeling (2025), eqs. 6 and 11; You et al., Modular MeanFlow
(2025), for the modulation; Tong et al., Minibatch optimal transport (2023), for the coupling.
"""

import dataclasses
from collections.abc import Callable
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
    claim="one evaluation of a mean flow is within 1.3 x the W2 of 100 steps of the same net in the plane, and near "
    "them on digits; one Euler step is not",
    time="5 min, smoke 25 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, the optimiser, and the bounds of the claims."""

    kinds: tuple[str, ...] = ("mean flow", "modular", "coupled")
    steps: int = 12_000
    batch_size: int = 512
    width: int = 64
    depth: int = 5
    learning_rate: float = 5e-3
    ema_decay: float = 0.999
    flow_ratio: float = 0.5
    modulation: float = 1.0  # lambda at the end of its warm-up
    warm_up: float = 0.5  # the share of the steps in which lambda rises from 0
    blocks: int = 100  # batches of coupled pairs, drawn once and shuffled
    samples: int = 2000
    draws: int = 3  # sets of samples and of fresh data; distances are averaged
    flow_steps: int = 100
    digit_kinds: tuple[str, ...] = ("mean flow",)
    digit_steps: int = 4000
    digit_batch: int = 128
    digit_width: int = 256
    digit_learning_rate: float = 1e-3
    weight_decay: float = 2.0  # of the digits' net: there are 1437 of them
    digit_draws: int = 3  # samples for each held-out digit
    # the bounds of the claims
    one_over_flow: float = 1.3
    one_over_floor: float = 1.5
    flow_over_floor: float = 1.5
    stray: float = 0.15
    coupled_stray: float = 0.75  # of the stray share of an Euler step
    euler_over_flow: float = 2.0
    digit_one_over_flow: float = 1.1
    digit_energy_ratio: float = 6.0
    digit_energy_over_flow: float = 2.0
    digit_euler: float = 0.5
    agreement: float = 0.95

    def __post_init__(self):
        for name in ("kinds", "digit_kinds"):
            if unknown := set(getattr(self, name)) - set(KINDS):
                raise ValueError(f"config.{name} must be some of {', '.join(KINDS)}; got {', '.join(unknown)}")
        if "coupled" in self.digit_kinds:
            raise ValueError("config.digit_kinds cannot hold 'coupled': the coupling does not know the classes")
        for field in dataclasses.fields(self):
            if field.type in (int, "int") and getattr(self, field.name) < 1:
                raise ValueError(f"config.{field.name} must be at least 1, got {getattr(self, field.name)}")
        if not self.learning_rate > 0 or not 0 < self.warm_up <= 1:
            raise ValueError(f"learning_rate > 0 and 0 < warm_up <= 1; got {self.learning_rate}, {self.warm_up}")


KINDS = ("mean flow", "modular", "coupled")
PAPER = Config()
# Seconds instead of minutes: the bounds say what small nets reach in a fraction of the steps.
SMOKE = Config(
    kinds=("modular",), steps=800, batch_size=256, width=32, depth=3, ema_decay=0.99, samples=500, draws=2, flow_steps=40,
    digit_kinds=("mean flow",), digit_steps=500, digit_batch=64, digit_width=96, digit_learning_rate=3e-3, digit_draws=1,
    one_over_flow=1.6, one_over_floor=2.0, flow_over_floor=1.8, stray=0.7, digit_energy_ratio=8.0, digit_euler=0.7, agreement=0.9,
)  # fmt: skip

PATH, DIM = matching.linear(), 64
LAWS: dict[str, Callable[[Key, int], Array]] = {
    "gaussians": lambda key, n: data.eight_gaussians(key, n, scale=1.4, variance=0.01),
    "moons": lambda key, n: data.moons(key, n, noise=0.1, scale=1.4, shift=-0.5),
}


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Train the nets of each law and of the digits, and measure."""
    total = len(LAWS) * len(config.kinds) + len(config.digit_kinds)
    with progress_bar(total, "mean_flow", "net", show=progress) as bar:
        parts = [_plane(config, law, jax.random.fold_in(key, i), bar) for i, law in enumerate(LAWS)]
        parts.append(_digits(config, jax.random.fold_in(key, len(LAWS)), bar))
    claims, numbers, arrays = zip(*parts, strict=True)
    return Result(
        tuple(claim for part in claims for claim in part),
        {name: float(value) for part in numbers for name, value in part.items()},
        {name: np.asarray(value) for part in arrays for name, value in part.items()},
    )


def _loss(config, kind, steps):
    """The loss of a batch (x0, x1, label or None, number of the step)."""

    def loss(model: Any, batch: tuple, *, key: Key) -> Array:
        x0, x1, label, step = batch
        if kind != "modular":
            return matching.mean_flow_loss(model, PATH, x0, x1, key=key, args=label, flow_ratio=config.flow_ratio)
        # Records teach the velocity, the velocity teaches the mean: no noise is left where lambda would be biased by it.
        flow_key, mean_key = jax.random.split(key)
        n = round(config.flow_ratio * len(x0))
        head = jax.tree.map(lambda a: a[:n], (x0, x1, label))
        tail = jax.tree.map(lambda a: a[n:], (x0, x1, label))
        velocity = matching.instantaneous(model)
        still = matching.instantaneous(jax.lax.stop_gradient(model))
        rise = config.modulation * jnp.minimum(step / (config.warm_up * steps), 1.0)
        flow = matching.match(velocity, PATH, *head[:2], key=flow_key, args=head[2])
        mean = matching.mean_flow_loss(
            model, PATH, *tail[:2], key=mean_key, args=tail[2], flow_ratio=0.0, modulation=rise, velocity=still
        )
        return config.flow_ratio * flow + (1.0 - config.flow_ratio) * mean

    return loss


def _fit(config, kind, net, batches, steps, rate, key, weight_decay=0.0):
    """The averaged net after `steps` batches `batches(key) -> (x0, x1, label)`, in one compiled scan."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 2), steps)
    optimizer, loss = optax.adamw(schedule, weight_decay=weight_decay), _loss(config, kind, steps)
    state, frozen = train.init_state(net, optimizer, ema_decay=config.ema_decay)

    def step(state, i):
        data_key, loss_key = jax.random.split(jax.random.fold_in(key, i))
        x0, x1, label = batches(data_key)
        batch = (x0, x1, label, i.astype(x1.dtype))
        options = {"loss": loss, "optimizer": optimizer, "ema_decay": config.ema_decay}
        return train.train_step(state, frozen, batch, key=loss_key, **options)[0], None

    state = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(steps))[0])(state)
    return eqx.combine(state.ema, frozen)


@eqx.filter_jit
def _samples(net, x0, label, steps):
    """From the sources x0 (n, d): one evaluation, the flow of the diagonal, and one Euler step of the diagonal."""
    velocity = matching.instantaneous(net)
    one = lambda x, label: matching.one_step(net, x, args=label)
    flow = lambda x, label: matching.sample(velocity, x, steps=steps, args=label)
    euler = lambda x, label: x + velocity(0.0, x, label)
    return {name: jax.vmap(f)(x0, label) for name, f in (("one", one), ("flow", flow), ("euler", euler))}


def _plane(config, law, key, bar):
    draw, n, size = LAWS[law], config.samples * config.draws, config.batch_size
    keys = jax.random.split(key, 8)
    real, fresh, known, other = (draw(k, m) for k, m in zip(keys[:4], (n, n, 20_000, 20_000), strict=True))
    source = jax.random.normal(keys[4], (n, 2))
    stray, floor = _stray_share(known, other), _mean_w2(real, fresh, config.draws)

    def independent(key):
        source_key, data_key = jax.random.split(key)
        return jax.random.normal(source_key, (size, 2)), draw(data_key, size), None

    def coupled(key):
        rows = jax.random.randint(key, (size,), 0, len(pairs[0]))
        return pairs[0][rows], pairs[1][rows], None

    if "coupled" in config.kinds:
        x0, x1 = jax.random.normal(keys[5], (config.blocks * size, 2)), draw(keys[6], config.blocks * size)
        pairs = matching.Assignment(batches=config.blocks)(x0, x1, key=key)

    claims, numbers, arrays = [], {f"{law}_floor": floor, f"{law}_stray": stray(real)}, {f"{law}_data": real}
    for kind in config.kinds:
        net_key, train_key = jax.random.split(keys[7])  # the same for each kind, and so are the fresh batches
        net = nn.MLP(
            2, width=config.width, depth=config.depth, times=2, frequencies=0, activation=jax.nn.gelu, key=net_key
        )
        batches = coupled if kind == "coupled" else independent
        net = _fit(config, kind, net, batches, config.steps, config.learning_rate, train_key)
        x = _samples(net, source, None, config.flow_steps)
        w2 = {way: _mean_w2(x[way], fresh, config.draws) for way in x}
        strays = {way: stray(x[way]) for way in x}
        label, against = f"{law}, {kind}", f"{config.flow_steps} steps of the same net"
        claims += [
            at_most(f"{label}: W2 of one step over {against}", w2["one"] / w2["flow"], config.one_over_flow, "1.3 asked"),
            at_most(f"{label}: W2 of one step over the floor", w2["one"] / floor, config.one_over_floor, "data to fresh data"),
            at_most(f"{label}: W2 of {against} over the floor", w2["flow"] / floor, config.flow_over_floor, "data to fresh data"),
            at_most(f"{label}: stray share of one step", strays["one"], config.stray, "0.005 of real samples"),
        ]  # fmt: skip
        if kind == "coupled":  # straight paths: an Euler step has the W2 of 100, but strays
            claims.append(at_most(f"{label}: stray share of one step over an Euler step's", strays["one"] / strays["euler"], config.coupled_stray, "control, the same net"))  # fmt: skip
        else:
            claims.append(at_least(f"{label}: W2 of an Euler step over {against}", w2["euler"] / w2["flow"], config.euler_over_flow, "control"))  # fmt: skip
        for way in x:
            name = f"{law}_{kind.replace(' ', '_')}_{way}"
            numbers |= {f"{name}_w2": w2[way], f"{name}_stray": strays[way]}
            arrays[name] = x[way]
        bar.update()
    return claims, numbers, arrays


def _mean_w2(x, y, draws):
    pairs = zip(x.reshape(draws, -1, x.shape[1]), y.reshape(draws, -1, y.shape[1]), strict=True)
    return float(np.mean([metrics.wasserstein2(a, b) for a, b in pairs]))


def _stray_share(known, other):
    """The share of samples farther from `known` real ones than all but 0.5% of the `other` real ones."""
    from scipy.spatial import KDTree

    tree = KDTree(np.asarray(known))
    distance = lambda x: tree.query(np.asarray(x))[0]
    cut = np.quantile(distance(other), 0.995)
    return lambda x: float(np.mean(distance(x) > cut))


def _digits(config, key, bar):
    digits, size = data.digits(), config.digit_batch
    keys = jax.random.split(key, 6)
    real = lambda x, key: data.scale(data.dequantise(jnp.asarray(x), 17, key=key))
    held, known = _image(real(digits.test_x, keys[0])), _image(real(digits.train_x, keys[1]))
    label, n = np.tile(digits.test_y, config.digit_draws), len(held)
    source = jax.random.normal(keys[2], (len(label), DIM))
    judge = _classifier(known, digits.train_y)
    floor, w2_floor = _resplits(jnp.concatenate([held, known]), n, keys[3])
    train_x, train_y = jnp.asarray(digits.train_x), jnp.asarray(digits.train_y)

    def batches(key):
        row_key, noise_key, source_key = jax.random.split(key, 3)
        rows = jax.random.randint(row_key, (size,), 0, len(train_x))
        return jax.random.normal(source_key, (size, DIM)), real(train_x[rows], noise_key), train_y[rows]

    claims, arrays = [], {"digits_data": held[np.argsort(digits.test_y, kind="stable")]}
    numbers = {"flow_steps": config.flow_steps, "digits_energy_floor": floor, "digits_w2_floor": w2_floor, "classifier_accuracy": judge.score(held, digits.test_y)}  # fmt: skip
    for kind in config.digit_kinds:
        net_key, train_key = jax.random.split(keys[4])
        net = nn.ResidualMLP(DIM, classes=10, width=config.digit_width, depth=3, times=2, frequencies=0, key=net_key)
        rate = config.digit_learning_rate
        net = _fit(config, kind, net, batches, config.digit_steps, rate, train_key, weight_decay=config.weight_decay)
        x = {
            way: _image(images) for way, images in _samples(net, source, jnp.asarray(label), config.flow_steps).items()
        }
        energy = {way: _mean_energy(x[way], held, config.digit_draws) for way in x}
        w2 = {way: _mean_w2(x[way], jnp.tile(held, (config.digit_draws, 1)), config.digit_draws) for way in x}
        agree = {way: judge.score(x[way], label) for way in x}
        name, against = f"digits, {kind}", f"{config.flow_steps} steps of the same net"
        stderr = np.sqrt(max(agree["one"] * (1 - agree["one"]), 1 / len(label)) / len(label))
        claims += [
            at_most(f"{name}: W2 of one step over {against}", w2["one"] / w2["flow"], config.digit_one_over_flow, "to held-out digits"),
            at_most(f"{name}: energy distance of one step", energy["one"], config.digit_energy_ratio * floor, f"{config.digit_energy_ratio:g} x re-splits of real digits"),
            at_most(f"{name}: the same over {against}", energy["one"] / energy["flow"], config.digit_energy_over_flow, "to held-out digits"),
            at_most(f"{name}: the same over an Euler step", energy["one"] / energy["euler"], config.digit_euler, "control, the same net"),
            at_least(f"{name}: one step has the requested class", agree["one"], config.agreement, "SVM trained on real digits", stderr),
        ]  # fmt: skip
        for way in x:
            short = f"digits_{kind.replace(' ', '_')}_{way}"
            numbers |= {f"{short}_energy": energy[way], f"{short}_w2": w2[way], f"{short}_agreement": agree[way]}
            arrays[short] = x[way][np.argsort(label[:n], kind="stable")]
        bar.update()
    return claims, numbers, arrays


def _image(x):
    """Samples as digits: rounded to the 17 levels, in [-1, 1]."""
    return data.quantise(data.unscale(x), 17).astype(x.dtype) / 8 - 1


def _mean_energy(x, held, draws):
    return float(np.mean([_energy_distance(part, held) for part in x.reshape(draws, *held.shape)]))


def _resplits(pool, n, key):
    """Energy distance and W2 of two random halves of real digits, n each: what no model can beat on average."""
    halves = jax.jit(lambda k: jax.random.permutation(k, pool)[: 2 * n].reshape(2, n, -1))
    pairs = [halves(k) for k in jax.random.split(key, 10)]
    return tuple(float(np.mean([f(*pair) for pair in pairs])) for f in (_energy_distance, metrics.wasserstein2))


_energy_distance = jax.jit(metrics.energy_distance)


def _classifier(x, y):
    from sklearn.svm import SVC

    return SVC(C=10.0, gamma="scale").fit(np.asarray(x), y)


def plot(result: Result) -> Any:
    """Data, 100 steps and one step of every net in the plane; digits from both; W2 of one step over 100 steps."""
    import matplotlib.pyplot as plt

    arrays, numbers = result.arrays, result.metrics
    kinds = {p: [k for k in KINDS if f"{p}_{k.replace(' ', '_')}_one" in arrays] for p in (*LAWS, "digits")}
    many = f"{numbers['flow_steps']:.0f} steps"
    columns = 1 + 2 * len(kinds["moons"])
    figure = plt.figure(figsize=(2.1 * columns, 8.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2, 1.9))
    for row, law in zip(top.subplots(len(LAWS), columns, squeeze=False), LAWS, strict=True):
        _cloud(row[0], arrays[f"{law}_data"], "k", f"data\nfloor {numbers[f'{law}_floor']:.3f}")
        for j, kind in enumerate(kinds[law]):
            for axis, way, title in ((row[2 * j + 1], "flow", many), (row[2 * j + 2], "one", "one step")):
                name = f"{law}_{kind.replace(' ', '_')}_{way}"
                _cloud(axis, arrays[name], f"C{j}", f"{kind}, {title}\nW2 {numbers[f'{name}_w2']:.3f}, stray {numbers[f'{name}_stray']:.3f}")  # fmt: skip

    shown = f"digits_{kinds['digits'][-1].replace(' ', '_')}"
    data_axis, flow, one, ratio, bars = bottom.subplots(1, 5, width_ratios=(1, 1, 1, 1.1, 1.1))
    for axis, name, title in (
        (data_axis, "digits_data", "held-out digits"),
        (flow, f"{shown}_flow", f"{kinds['digits'][-1]}, {many}"),
        (one, f"{shown}_one", f"{kinds['digits'][-1]}, one evaluation"),
    ):
        _mosaic(axis, arrays[name], title)
    for i, place in enumerate(kinds):
        for kind in kinds[place]:
            names = [f"{place}_{kind.replace(' ', '_')}_{way}_w2" for way in ("one", "flow")]
            colour = f"C{KINDS.index(kind)}"
            ratio.plot(i + 0.2 * (KINDS.index(kind) - 1), numbers[names[0]] / numbers[names[1]], "o", color=colour)
    limit = next(c.reference for c in result.claims if "W2 of one step over" in c.quantity)
    ratio.axhline(limit, color="k", lw=1, ls=":")
    ratio.axhline(1.0, color="k", lw=1)
    ratio.set(ylim=(0.8, 1.1 * limit), xlim=(-0.5, len(kinds) - 0.5), title=f"W2, one step over {many}")
    ratio.set_xticks(range(len(kinds)), list(kinds))
    ways = ("flow", "one", "euler")
    for j, kind in enumerate(kinds["digits"]):
        heights = [
            numbers[f"digits_{kind.replace(' ', '_')}_{way}_energy"] / numbers["digits_energy_floor"] for way in ways
        ]
        bars.bar(
            np.arange(3) + 0.35 * (j - (len(kinds["digits"]) - 1) / 2),
            heights,
            0.33,
            color=f"C{KINDS.index(kind)}",
            label=kind,
        )
    bars.axhline(1.0, color="k", lw=1)
    bars.set(yscale="log", title="digits: energy distance / floor")
    bars.set_xticks(np.arange(3), (many, "one step", "Euler"))
    bars.legend(fontsize=8)
    return figure


def _cloud(axis, x, colour, title):
    axis.scatter(*x[:2000].T, s=2, alpha=0.5, color=colour, lw=0, rasterized=True)
    axis.set(xlim=(-2.6, 2.9), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)


def _mosaic(axis, x, title):
    """Ten rows of ten, evenly taken from images sorted by class."""
    rows = x[np.linspace(0, len(x) - 1, 100).astype(int)].reshape(10, 10, 8, 8).transpose(0, 2, 1, 3)
    padded = np.pad(rows, ((0, 0), (0, 1), (0, 0), (0, 1)), constant_values=np.nan)
    axis.imshow(padded.reshape(90, 90), cmap="gray_r", vmin=-1, vmax=1)
    axis.set(xticks=[], yticks=[], title=title)
