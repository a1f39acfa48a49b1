r"""How wide networks learn features: the mean-field theory of training, and networks that approach it.

$$h = u + \gamma\int\!\!\sum_\nu[\ldots]\Delta_\nu g_\nu, \qquad \dot f = \sum_l G^{l+1}\Phi^l\,\Delta$$

(`physml.dmft.WideNetwork`): at $\gamma \to 0$ the kernels stand still (lazy), at larger $\gamma$ they align with the task.

1. The two-layer linear network with one input obeys $\dot\Delta = -2\sqrt{1 + \gamma^2(y - \Delta)^2}\,\Delta$.
2. Outputs of trained networks approach the theory as width$^{-1/2}$.
3. Kernels of deep tanh networks on images of digits over training, at weak and strong feature learning; outputs on test images.
4. Two routes to the output, the equation of the loss and the average over the last layer, agree.

**See** Bordelon and Pehlevan, Self-consistent dynamical field theory of kernel evolution in wide neural networks (2022).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from physml import dmft
from physml.data import digits
from physml.dmft import MonteCarlo
from physml.metrics import power_law
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting

INFO = RecipeInfo(
    paper="Bordelon and Pehlevan, Self-consistent dynamical field theory of kernel evolution (2022)",
    claim="kernels and outputs of wide networks through training, lazy to rich, against trained networks",
    time="80 min, smoke 20 s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    depths: tuple[int, ...] = (2, 3)
    gammas: tuple[float, ...] = (0.1, 1.0, 3.0)
    train: int = 8
    test: int = 2
    # For each gamma: training at 3 is over by then, and what is remembered afterwards amplifies noise most.
    t_max: tuple[float, ...] = (2.0, 2.0, 1.0)
    steps: tuple[int, ...] = (100, 100, 50)
    samples: tuple[int, ...] = (8000, 40_000, 96_000)  # for each gamma: memory amplifies their noise
    width: int = 2500
    seeds: int = setting(6, least=2.0)
    widths: tuple[int, ...] = setting((32, 64, 128, 256, 512, 1024), length=0)
    width_seeds: int = 16
    width_samples: int = 40_000
    # the bounds of the claims
    linear: float = 0.01
    slope: float = 0.1
    forward: float = 0.03  # relative Frobenius distance of Phi
    backward: float = 0.03  # and of G

    def rules(self):
        sizes = {len(entries) for entries in (self.gammas, self.samples, self.t_max, self.steps)}
        return ((len(sizes) == 1, "samples, t_max and steps go with gammas"),)


PAPER = Config()
SMOKE = Config(
    depths=(2,), gammas=(1.0,), train=2, test=1, t_max=(1.0,), steps=(10,), samples=(1000,), width=200, seeds=2,
    widths=(), linear=0.02, forward=0.15, backward=0.25,
)  # fmt: skip

SABOTAGE = Sabotage(
    "features are learned a fifth too strongly", dmft, "WideNetwork",
    lambda exact: lambda kernel, y, depth, gamma, *rest: exact(kernel, y, depth, 1.2 * gamma, *rest),
)  # fmt: skip


@experiment
def run(study, config, key):
    linear_key, width_key, deep_key = jax.random.split(key, 3)
    study.keep(networks={}, widths=None)
    stages = [(_linear, linear_key), (_widths, width_key)]
    for i, depth in enumerate(config.depths):
        stages += [(_kernels, jax.random.fold_in(deep_key, 100 * i + j), depth, j) for j in range(len(config.gammas))]
    for stage, stage_key, *which in study.each(stages, "stage"):
        stage(study, config, stage_key, *which)


def _linear(study, config, key):
    """The two-layer linear network against its ordinary differential equation."""
    gamma, dt = 2.0, 0.05
    model = dmft.WideNetwork(jnp.ones((1, 1)), jnp.ones(1), 1, gamma, None, 2.0, dt)
    order = dmft.solve(model, key=key, noise=MonteCarlo(2000)).check().order
    delta, exact = 1.0, [1.0]
    for i in range(1, 8001):
        delta += -2 * np.sqrt(1 + gamma**2 * (1 - delta) ** 2) * delta * dt / 200
        if i % 200 == 0:
            exact.append(delta)
    gap = np.max(np.abs(1 - np.asarray(order.f[:, 0]) - exact))
    study.at_most("two-layer linear network: largest error of the output", gap, config.linear, "exact ODE")


def _images(config):
    """Cosines between images of two digits, and their labels; the last `test` images are not trained on."""
    data, n = digits(), config.train + config.test
    images, labels = np.asarray(data.train_x, np.float64), np.asarray(data.train_y)
    images = images - images.min()
    chosen = np.empty((n, images.shape[1]))
    chosen[::2], chosen[1::2] = images[labels == 0][: (n + 1) // 2], images[labels == 1][: n // 2]
    chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
    y = np.where(np.arange(config.train) % 2 == 0, 1.0, -1.0)
    return jnp.asarray(chosen @ chosen.T, jnp.float32), jnp.asarray(y, jnp.float32)


def _widths(study, config, key):
    """How single networks of growing width approach the theory."""
    if not config.widths:
        return
    x = np.random.default_rng(0).normal(size=(3, 6))
    kernel = jnp.asarray(x @ x.T / 6, jnp.float32)
    model = dmft.WideNetwork(kernel, jnp.asarray([1.0, -1.0]), 1, 1.0, jnp.tanh, 2.0, 0.1)
    theory_key, net_key = jax.random.split(key)
    theory = dmft.solve(model, key=theory_key, noise=MonteCarlo(config.width_samples)).check().order
    errors = []
    for width in config.widths:
        train = jax.jit(lambda k, width=width: model.finite_n(width, key=k).f)
        seen = [train(jax.random.fold_in(net_key, 100 * width + i)) for i in range(config.width_seeds)]
        errors.append(float(np.sqrt(np.mean((np.stack(seen) - np.asarray(theory.f)[None]) ** 2))))
    slope = power_law(config.widths, errors)[0].value
    study.near("rms error of single networks over width, exponent", slope, -0.5, "N^(-1/2)", atol=config.slope)
    study.keep(widths=(config.widths, errors))


def _kernels(study, config, key, depth, j):
    """Theory and networks of one depth at the j-th gamma."""
    kernel, y = _images(config)
    gamma, samples, t_max = config.gammas[j], config.samples[j], config.t_max[j]
    model = dmft.WideNetwork(kernel, y, depth, gamma, jnp.tanh, t_max, t_max / config.steps[j])
    theory_key, net_key = jax.random.split(key)
    # A few samples find the neighbourhood of the solution, many the solution.
    few = samples // 160 * 10
    near = dmft.solve(model, key=theory_key, noise=MonteCarlo(few)).unknowns if few >= 500 else None
    solution = dmft.solve(model, key=theory_key, noise=MonteCarlo(samples), start=near).check()
    order, error = solution.order, solution.error
    train = jax.jit(lambda k: model.finite_n(config.width, key=k))
    nets = [train(jax.random.fold_in(net_key, i)) for i in range(config.seeds)]
    name = f"depth {depth}, gamma {gamma:g}"
    norm = lambda a: np.sqrt(np.sum(np.asarray(a) ** 2, axis=tuple(range(1, a.ndim))))
    for field, bound in (("Phi", config.forward), ("G", config.backward)):
        each = np.stack([np.asarray(getattr(net, field)) for net in nets])
        mean = each.mean(0)
        size = norm(mean)
        distance = norm(np.asarray(getattr(order, field)) - mean) / size
        # What sampling alone explains: units of the networks, samples of the theory.
        networks = np.sqrt(np.mean([norm(net - mean) ** 2 for net in each], 0) / (len(each) - 1)) / size
        drawn = norm(getattr(error, field)) / size
        rest = np.sqrt(np.maximum(distance**2 - networks**2 - drawn**2, 0))
        for what, value in (("distance", distance), ("networks' noise", networks), ("samples' noise", drawn)):
            study.metrics[f"{name}: {field}, {what}, worst layer"] = np.max(value)
        quantity = f"distance to networks of width {config.width}, beyond noise"
        noise = np.max(np.hypot(networks, drawn))
        study.at_most(f"{name}: {field}, {quantity}", np.max(rest), bound, f"mean of {config.seeds}", error=noise)
    test = order.f[:, config.train :] - np.mean([net.f for net in nets], 0)[:, config.train :]
    study.metrics[f"{name}: test outputs"] = np.max(np.abs(test))
    # The samples' noise of the average over the last layer, five standard errors of its noisiest entry.
    gap, noise = np.max(np.abs(order.f - order.output)), 5 * np.max(error.output)
    quantity = f"{name}: output by the loss and by the last layer differ by"
    study.at_most(quantity, gap, noise, "sampling of the second")
    study.data.networks[name] = (order, [net.loss for net in nets], np.asarray(y))


def _alignment(kernel, y):
    kernel = kernel[: len(y), : len(y)]
    return float(y @ kernel @ y / (np.linalg.norm(kernel) * (y @ y)))


def plot(result):
    """Losses, alignment, kernels before and after, error over width."""
    figure, ((losses, alignment, widths), lower) = draw.panels(2, 3, width=4.0, height=3.4)
    for i, (name, (order, nets, y)) in enumerate(result.data.networks.items()):
        last = np.einsum("kakb->kab", np.asarray(order.Phi[-1]))
        draw.theory(losses, order.t, order.loss, f"C{i}", label=name)
        for net in nets:
            losses.plot(order.t, net, f"C{i}", lw=0.5, alpha=0.5)
        draw.theory(alignment, order.t, [_alignment(kernel, y) for kernel in last], f"C{i}")
    draw.label(losses, "training loss; thin: networks", "t", "loss", log="y", legend={"fontsize": 6})
    draw.label(alignment, "alignment of the last kernel with the labels", "t")
    if result.data.widths is None:
        widths.remove()
    else:
        widths.plot(*result.data.widths, "o")
        draw.slope(widths, *result.data.widths, power=-0.5)
        draw.label(widths, r"rms error of the output; dotted: $N^{-1/2}$", "width", log="xy")
    shown = {"start": last[0], "end": last[-1], "change": last[-1] - last[0]}
    for axis, (when, kernel) in zip(lower, shown.items(), strict=True):
        image = axis.imshow(kernel, cmap="viridis" if when != "change" else "coolwarm")
        axis.set(title=f"{name}: last kernel, {when}", xticks=[], yticks=[])
        axis.title.set_fontsize(9)
        figure.colorbar(image, ax=axis, shrink=0.8)
    return figure
