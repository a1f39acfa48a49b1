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

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from physml import data, matching, nn, train
from physml.recipes import RecipeInfo, Sabotage, Settings, digits_kit, draw, experiment, setting
from physml.recipes.digits_kit import CLASSES, DIM, binomial, image
from physml.recipes.distances import batchwise, energy_distance, wasserstein2

INFO = RecipeInfo(
    paper="Geng et al., Mean flows for one-step generative modeling (2025); You et al., Modular MeanFlow (2025)",
    claim="one evaluation of a mean flow is within 1.3 x the W2 of 100 steps of the same net in the plane, and near "
    "them on digits; one Euler step is not",
    time="5 min, smoke 25 s",
)


KINDS = ("mean flow", "modular", "coupled")
WAYS = ("flow", "one", "euler")
PATH = matching.linear()
LAWS = {
    "gaussians": lambda key, n: data.eight_gaussians(n, key=key, scale=1.4, variance=0.01),
    "moons": lambda key, n: data.moons(n, key=key, noise=0.1, scale=1.4, shift=-0.5),
}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, the optimiser, and the bounds of the claims."""

    kinds: tuple[str, ...] = setting(KINDS, choices=KINDS)
    steps: int = 12_000
    batch_size: int = 512
    width: int = 64
    depth: int = 5
    learning_rate: float = 5e-3
    ema_decay: float = setting(0.999, least=0.0, below=1.0)
    flow_ratio: float = setting(0.5, least=0.0, most=1.0)
    modulation: float = setting(1.0, least=0.0)  # lambda at the end of its warm-up
    warm_up: float = setting(0.5, most=1.0)  # the share of the steps in which lambda rises from 0
    blocks: int = 100  # batches of coupled pairs, drawn once and shuffled
    samples: int = 2000
    draws: int = 3  # sets of samples and of fresh data; distances are averaged
    flow_steps: int = 100
    # Not "coupled": the coupling does not know the classes.
    digit_kinds: tuple[str, ...] = setting(("mean flow",), choices=KINDS[:2])
    digit_steps: int = 4000
    digit_batch: int = 128
    digit_width: int = 256
    digit_learning_rate: float = 1e-3
    weight_decay: float = setting(2.0, least=0.0)  # of the digits' net: there are 1437 of them
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


PAPER = Config()
# Seconds instead of minutes: the bounds say what small nets reach in a fraction of the steps.
SMOKE = Config(
    kinds=("modular",), steps=800, batch_size=256, width=32, depth=3, ema_decay=0.99, samples=500, draws=2,
    flow_steps=40, digit_steps=500, digit_batch=64, digit_width=96, digit_learning_rate=3e-3, digit_draws=1,
    one_over_flow=1.6, one_over_floor=2.0, flow_over_floor=1.8, stray=0.7, digit_energy_ratio=8.0, digit_euler=0.7,
    agreement=0.9,
)  # fmt: skip


SABOTAGE = Sabotage(
    "the loss drops du/dt, which leaves flow matching at every pair of times", matching, "mean_flow_loss",
    lambda loss: lambda field, *rest, **options:
        loss(lambda times, x, args: field(*jax.lax.stop_gradient((times, x)), args), *rest, **options),
)  # fmt: skip


@experiment
def run(study, config, key):
    study.keep(config=config, real={}, samples={}, w2={})
    for i, law in study.each(enumerate(LAWS), "law"):
        _plane(study, config, law, jax.random.fold_in(key, i))
    _digits(study, config, jax.random.fold_in(key, len(LAWS)))


def _loss(config, kind, steps):
    """The loss of a batch (x0, x1, label or None, number of the step)."""

    def loss(model, batch, *, key):
        x0, x1, label, step = batch
        if kind != "modular":
            return matching.mean_flow_loss(model, PATH, x0, x1, key=key, args=label, flow_ratio=config.flow_ratio)
        # Records teach the velocity, the velocity teaches the mean: no noise is left that would bias lambda.
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
    """The averaged net after `steps` batches `batches(key) -> (x0, x1, label)`, in one compiled scan.

    The loss asks for the number of the step, which `train.fit` does not tell.
    """
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
    """From the sources x0 (n, d): the flow of the diagonal, one evaluation, and one Euler step of the diagonal."""
    velocity = matching.instantaneous(net)
    one = lambda x, label: matching.one_step(net, x, args=label)
    flow = lambda x, label: matching.sample(velocity, x, steps=steps, args=label)
    euler = lambda x, label: x + velocity(0.0, x, label)
    return {way: jax.vmap(f)(x0, label) for way, f in zip(WAYS, (flow, one, euler), strict=True)}


def _mean_distance(distance, x, y, draws):
    """A mean over that many equal parts of x and y."""
    return batchwise(distance, x.reshape(draws, -1, x.shape[1]), y.reshape(draws, -1, y.shape[1])).mean()


def _plane(study, config, law, key):
    """Nets of every kind on one law, the same but for the training."""
    sample, n, size = LAWS[law], config.samples * config.draws, config.batch_size
    keys = jax.random.split(key, 8)
    real, fresh, known, other = (sample(k, m) for k, m in zip(keys[:4], (n, n, 20_000, 20_000), strict=True))
    source = jax.random.normal(keys[4], (n, 2))
    far, w2_to_fresh = _stray_share(known, other), lambda x: _mean_distance(wasserstein2, x, fresh, config.draws)
    floor = w2_to_fresh(real)
    study.metrics |= {f"{law}: floor of W2": floor, f"{law}: stray share of data": far(real)}
    study.data.real[law] = real, floor

    def independent(key):
        source_key, data_key = jax.random.split(key)
        return jax.random.normal(source_key, (size, 2)), sample(data_key, size), None

    def coupled(key):
        rows = jax.random.randint(key, (size,), 0, len(pairs[0]))
        return pairs[0][rows], pairs[1][rows], None

    if "coupled" in config.kinds:
        x0, x1 = jax.random.normal(keys[5], (config.blocks * size, 2)), sample(keys[6], config.blocks * size)
        pairs = matching.Assignment(batches=config.blocks)(x0, x1, key=key)

    many = f"{config.flow_steps} steps of the same net"
    for kind in config.kinds:
        net_key, train_key = jax.random.split(keys[7])  # the same for each kind, and so are the fresh batches
        options = {"width": config.width, "depth": config.depth, "times": 2, "frequencies": 0}
        net = nn.MLP(2, activation=jax.nn.gelu, key=net_key, **options)
        batches = coupled if kind == "coupled" else independent
        net = _fit(config, kind, net, batches, config.steps, config.learning_rate, train_key)
        x = _samples(net, source, None, config.flow_steps)
        w2, stray = ({way: f(x[way]) for way in x} for f in (w2_to_fresh, far))
        ratio, data_to_data = w2["one"] / w2["flow"], "data to fresh data"
        at_most = lambda quantity, *rest, label=f"{law}, {kind}": study.at_most(f"{label}: {quantity}", *rest)
        at_most(f"W2 of one step over {many}", ratio, config.one_over_flow, "1.3 asked")
        at_most("W2 of one step over the floor", w2["one"] / floor, config.one_over_floor, data_to_data)
        at_most(f"W2 of {many} over the floor", w2["flow"] / floor, config.flow_over_floor, data_to_data)
        at_most("stray share of one step", stray["one"], config.stray, "0.005 of real samples")
        if kind == "coupled":  # straight paths: an Euler step has the W2 of 100, but strays
            share, control = stray["one"] / stray["euler"], "control, the same net"
            at_most("stray share of one step over an Euler step's", share, config.coupled_stray, control)
        else:
            quantity = f"{law}, {kind}: W2 of an Euler step over {many}"
            study.at_least(quantity, w2["euler"] / w2["flow"], config.euler_over_flow, "control")
        study.metrics |= {f"{law}, {kind}: stray share, {way}": share for way, share in stray.items()}
        study.data.samples[law, kind] = {way: (x[way], w2[way], stray[way]) for way in x}
        study.data.w2[law, kind] = ratio


def _stray_share(known, other):
    """The share of samples farther from `known` real ones than all but 0.5% of the `other` real ones."""
    from scipy.spatial import KDTree

    tree = KDTree(np.asarray(known))
    distance = lambda x: tree.query(np.asarray(x))[0]
    cut = np.quantile(distance(other), 0.995)
    return lambda x: float(np.mean(distance(x) > cut))


def _digits(study, config, key):
    """Nets that draw digits given the class."""
    digits, size, draws, keys = data.digits(), config.digit_batch, config.digit_draws, jax.random.split(key, 6)
    held, known = (image(digits_kit.numbers(x, k)) for x, k in ((digits.test_x, keys[0]), (digits.train_x, keys[1])))
    label, many_held = np.tile(digits.test_y, draws), jnp.tile(held, (draws, 1))
    source = jax.random.normal(keys[2], (len(label), DIM))
    judge = digits_kit.classifier(known, digits.train_y)
    pool = jnp.concatenate([held, known])
    floor = digits_kit.resplits(energy_distance, pool, len(held), keys[3], 10).mean()
    train_x, train_y = jnp.asarray(digits.train_x), jnp.asarray(digits.train_y)

    def batches(key):
        row_key, noise_key, source_key = jax.random.split(key, 3)
        rows = jax.random.randint(row_key, (size,), 0, len(train_x))
        return jax.random.normal(source_key, (size, DIM)), digits_kit.numbers(train_x[rows], noise_key), train_y[rows]

    by_class = np.argsort(digits.test_y, kind="stable")
    study.data.real["digits"] = held[by_class], floor
    many, held_out = f"{config.flow_steps} steps of the same net", "to held-out digits"
    for kind in config.digit_kinds:
        net_key, train_key = jax.random.split(keys[4])
        options = {"width": config.digit_width, "depth": 3, "times": 2, "frequencies": 0}
        net = nn.ResidualMLP(DIM, classes=CLASSES, key=net_key, **options)
        rate, decay = config.digit_learning_rate, config.weight_decay
        net = _fit(config, kind, net, batches, config.digit_steps, rate, train_key, weight_decay=decay)
        x = jax.tree.map(image, _samples(net, source, jnp.asarray(label), config.flow_steps))
        to_held = lambda distance, x=x: {way: _mean_distance(distance, x[way], many_held, draws) for way in x}
        energy, w2, agree = to_held(energy_distance), to_held(wasserstein2), judge.score(x["one"], label)
        ratio, one = w2["one"] / w2["flow"], energy["one"]
        at_most = lambda quantity, *rest, name=f"digits, {kind}": study.at_most(f"{name}: {quantity}", *rest)
        at_most(f"W2 of one step over {many}", ratio, config.digit_one_over_flow, held_out)
        splits = f"{config.digit_energy_ratio:g} x re-splits of real digits"
        at_most("energy distance of one step", one, config.digit_energy_ratio * floor, splits)
        at_most(f"the same over {many}", one / energy["flow"], config.digit_energy_over_flow, held_out)
        at_most("the same over an Euler step", one / energy["euler"], config.digit_euler, "control, the same net")
        quantity, error = f"digits, {kind}: one step has the requested class", binomial(agree, len(label))
        study.at_least(quantity, agree, config.agreement, "SVM trained on real digits", error=error)
        study.metrics |= {f"digits, {kind}: W2, {way}": value for way, value in w2.items()}
        study.data.samples["digits", kind] = {way: (x[way][by_class], energy[way]) for way in x}
        study.data.w2["digits", kind] = ratio


def plot(result):
    """Data, 100 steps and one step of every net in the plane; digits from both; W2 of one step over 100 steps."""
    import matplotlib.pyplot as plt

    d, many = result.data, f"{result.data.config.flow_steps} steps"
    columns = 1 + 2 * len(d.config.kinds)
    figure = plt.figure(figsize=(max(2.1 * columns, 13), 8.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2, 1.9))
    for row, law in zip(top.subplots(len(LAWS), columns, squeeze=False), LAWS, strict=True):
        draw.cloud(row[0], d.real[law][0][:2000], f"data\nfloor {d.real[law][1]:.3f}", reach=2.9, color="k")
        shown = [(j, kind, way) for j, kind in enumerate(d.config.kinds) for way in WAYS[:2]]
        for axis, (j, kind, way) in zip(row[1:], shown, strict=True):
            x, w2, stray = d.samples[law, kind][way]
            title = f"{kind}, {many if way == 'flow' else 'one step'}\nW2 {w2:.3f}, stray {stray:.3f}"
            draw.cloud(axis, x[:2000], title, reach=2.9, color=f"C{j}")
    *mosaics, ratio, bars = bottom.subplots(1, 5, width_ratios=(1, 1, 1, 1.1, 1.1))
    kind, (held, floor) = d.config.digit_kinds[-1], d.real["digits"]
    images = {"held-out digits": held} | {
        f"{kind}, {title}": d.samples["digits", kind][way][0]
        for way, title in (("flow", many), ("one", "one evaluation"))
    }
    for axis, (title, x) in zip(mosaics, images.items(), strict=True):
        # Ten rows of ten, evenly taken from images sorted by class.
        digits_kit.mosaic(axis, x[np.linspace(0, len(x) - 1, 100).astype(int)], 10, title)
    places = [*LAWS, "digits"]
    for (place, kind), value in d.w2.items():
        at = KINDS.index(kind)
        ratio.plot(places.index(place) + 0.2 * (at - 1), value, "o", color=f"C{at}")
    ratio.axhline(d.config.one_over_flow, color="k", lw=1, ls=":")
    ratio.axhline(1.0, color="k", lw=1)
    ratio.set_xticks(range(3), places)
    limits = {"ylim": (0.8, 1.1 * d.config.one_over_flow), "xlim": (-0.5, 2.5)}
    draw.label(ratio, f"W2, one step / {many}", **limits)
    for j, kind in enumerate(d.config.digit_kinds):
        heights, at = [d.samples["digits", kind][way][1] / floor for way in WAYS], KINDS.index(kind)
        bars.bar(np.arange(3) + 0.35 * j, heights, 0.33, color=f"C{at}", label=kind)
    bars.axhline(1.0, color="k", lw=1)
    bars.set_xticks(range(3), (many, "one step", "Euler"))
    draw.label(bars, "energy distance / floor", log="y")
    return figure
