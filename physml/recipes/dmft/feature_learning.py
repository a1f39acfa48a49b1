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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from physml import dmft
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.data import digits
from physml.dmft import MonteCarlo, WideNetwork
from physml.recipes._result import Info, Result, at_most, close_to

INFO = Info(
    paper="Bordelon and Pehlevan, Self-consistent dynamical field theory of kernel evolution (2022)",
    claim="kernels and outputs of wide networks through training, lazy to rich, against trained networks",
    time="80 min, smoke 20 s",
)


@dataclasses.dataclass(frozen=True)
class Config:
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
    seeds: int = 6
    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    width_seeds: int = 16
    width_samples: int = 40_000
    # the bounds of the claims
    linear: float = 0.01
    slope: float = 0.1
    forward: float = 0.03  # relative Frobenius distance of Phi
    backward: float = 0.03  # and of G

    def __post_init__(self):
        for name in ("samples", "t_max", "steps"):
            if len(getattr(self, name)) != len(self.gammas):
                raise ValueError(f"{name} goes with gammas, got {len(getattr(self, name))} and {len(self.gammas)}")


PAPER = Config()
SMOKE = Config(
    depths=(2,), gammas=(1.0,), train=2, test=1, t_max=(1.0,), steps=(10,), samples=(1000,), width=200, seeds=2,
    widths=(), linear=0.02, forward=0.15, backward=0.25,
)  # fmt: skip


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Exact case, scaling with width, kernels of deep networks."""
    claims: list = []
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    linear_key, width_key, deep_key = jax.random.split(key, 3)
    with progress_bar(2 + len(config.depths) * len(config.gammas), "feature learning", "stage", show=progress) as bar:
        _linear(config, linear_key, claims, metrics)
        bar.update()
        _widths(config, width_key, claims, metrics, arrays)
        bar.update()
        for i, depth in enumerate(config.depths):
            for j in range(len(config.gammas)):
                one_key = jax.random.fold_in(deep_key, 100 * i + j)
                _kernels(config, depth, j, one_key, claims, metrics, arrays)
                bar.update()
    return Result(tuple(claims), {name: float(value) for name, value in metrics.items()}, arrays)


def _linear(config, key, claims, metrics):
    gamma, dt = 2.0, 0.05
    model = WideNetwork(jnp.ones((1, 1)), jnp.ones(1), 1, gamma, None, 2.0, dt)
    order = dmft.solve(model, key=key, noise=MonteCarlo(2000)).check().order
    delta, exact = 1.0, [1.0]
    for i in range(1, 8001):
        delta += -2 * np.sqrt(1 + gamma**2 * (1 - delta) ** 2) * delta * dt / 200
        if i % 200 == 0:
            exact.append(delta)
    gap = float(np.max(np.abs(1 - np.asarray(order.f[:, 0]) - exact)))
    metrics["linear network, largest error"] = gap
    claims.append(at_most("two-layer linear network: largest error of the output", gap, config.linear, "exact ODE"))


def _images(config):
    """Cosines between images of two digits, and their labels; the last `test` images are not trained on."""
    data = digits()
    images, labels = np.asarray(data[0], np.float64), np.asarray(data[1])
    images = images.reshape(len(images), -1)
    images = images - images.min()
    n = config.train + config.test
    zero, one = images[labels == 0][: (n + 1) // 2], images[labels == 1][: n // 2]
    chosen = np.empty((n, images.shape[1]))
    chosen[::2], chosen[1::2] = zero, one
    chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
    y = np.where(np.arange(config.train) % 2 == 0, 1.0, -1.0)
    return jnp.asarray(chosen @ chosen.T, jnp.float32), jnp.asarray(y, jnp.float32)


def _widths(config, key, claims, metrics, arrays):
    arrays |= {"widths": np.asarray(config.widths), "width errors": np.zeros(0)}
    if not config.widths:
        return
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6))
    kernel = jnp.asarray(x @ x.T / 6, jnp.float32)
    model = WideNetwork(kernel, jnp.asarray([1.0, -1.0]), 1, 1.0, jnp.tanh, 2.0, 0.1)
    theory_key, net_key = jax.random.split(key)
    theory = dmft.solve(model, key=theory_key, noise=MonteCarlo(config.width_samples)).check().order
    errors = []
    for width in config.widths:
        train = jax.jit(lambda k, width=width: model.finite_n(width, key=k).f)
        seen = [train(jax.random.fold_in(net_key, 100 * width + i)) for i in range(config.width_seeds)]
        errors.append(float(np.sqrt(np.mean((np.stack(seen) - np.asarray(theory.f)[None]) ** 2))))
    slope = np.polyfit(np.log(config.widths), np.log(errors), 1)[0]
    arrays |= {"widths": np.asarray(config.widths), "width errors": np.asarray(errors)}
    metrics["slope of the error over width"] = slope
    claims.append(close_to("rms error of single networks over width, exponent", slope, -0.5, config.slope, "N^(-1/2)"))


def _kernels(config, depth, j, key, claims, metrics, arrays):
    """Theory and networks of one depth at the j-th gamma."""
    kernel, y = _images(config)
    gamma, samples, t_max = config.gammas[j], config.samples[j], config.t_max[j]
    model = WideNetwork(kernel, y, depth, gamma, jnp.tanh, t_max, t_max / config.steps[j])
    theory_key, net_key = jax.random.split(key)
    # A few samples find the neighbourhood of the solution, many the solution.
    few = samples // 160 * 10
    near = dmft.solve(model, key=theory_key, noise=MonteCarlo(few)).unknowns if few >= 500 else None
    solution = dmft.solve(model, key=theory_key, noise=MonteCarlo(samples), start=near).check()
    order = solution.order
    train = jax.jit(lambda k: model.finite_n(config.width, key=k))
    nets = [train(jax.random.fold_in(net_key, i)) for i in range(config.seeds)]
    name = f"depth {depth}, gamma {gamma:g}"
    norm = lambda a: np.sqrt(np.sum(a**2, axis=tuple(range(1, a.ndim))))
    for field, bound in (("Phi", config.forward), ("G", config.backward)):
        each = np.stack([np.asarray(getattr(net, field)) for net in nets])
        mean, theory = each.mean(0), np.asarray(getattr(order, field))
        size = norm(mean)
        distance = norm(theory - mean) / size
        # What sampling alone explains: units of the networks, samples of the theory.
        networks = np.sqrt(np.mean([norm(net - mean) ** 2 for net in each], 0) / (len(each) - 1)) / size
        drawn = norm(np.asarray(getattr(solution.error, field))) / size
        rest = np.sqrt(np.maximum(distance**2 - networks**2 - drawn**2, 0))
        for key_, value in (("distance", distance), ("networks' noise", networks), ("samples' noise", drawn)):
            metrics[f"{name}: {field}, {key_}, worst layer"] = np.max(value)
        claims.append(
            at_most(f"{name}: {field}, distance {np.max(distance):.3f} to networks of width {config.width}, beyond noise",
                    np.max(rest), bound, f"mean of {config.seeds}", error=np.max(np.hypot(networks, drawn)))
        )  # fmt: skip
    f = np.stack([np.asarray(net.f) for net in nets])
    gap = float(np.max(np.abs(np.asarray(order.f - order.output))))
    test = float(np.max(np.abs(np.asarray(order.f)[:, config.train :] - f.mean(0)[:, config.train :])))
    metrics |= {f"{name}: outputs two ways": gap, f"{name}: test outputs": test}
    # The samples' noise of the average over the last layer, five standard errors of its noisiest entry.
    noise = 5 * float(np.max(np.asarray(solution.error.output)))
    claims.append(
        at_most(f"{name}: output by the loss and by the last layer differ by", gap, noise, "sampling of the second")
    )
    arrays |= {f"{name} loss": np.asarray(order.loss), f"{name} nets": np.stack([np.asarray(net.loss) for net in nets])}
    last = np.einsum("kakb->kab", np.asarray(order.Phi[-1]))
    arrays |= {f"{name} t": np.asarray(order.t), f"{name} kernel": last[[0, -1]]}
    arrays[f"{name} alignment"] = np.asarray(
        [_alignment(k[: config.train, : config.train], np.asarray(y)) for k in last]
    )


def _alignment(kernel, y):
    return float(y @ kernel @ y / (np.linalg.norm(kernel) * (y @ y)))


def plot(result: Result) -> Any:
    """Losses, alignment, kernels before and after, error over width."""
    import matplotlib.pyplot as plt

    a = result.arrays
    names = [k.removesuffix(" loss") for k in a if k.endswith(" loss")]
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.8), layout="constrained")
    for i, name in enumerate(names):
        t = a[f"{name} t"]
        axes[0, 0].semilogy(t, a[f"{name} loss"], color=f"C{i}", label=name)
        for net in a[f"{name} nets"]:
            axes[0, 0].semilogy(t, net, color=f"C{i}", lw=0.5, alpha=0.5)
        axes[0, 1].plot(t, a[f"{name} alignment"], color=f"C{i}")
    axes[0, 0].set(xlabel="t", title="training loss; thin: networks")
    axes[0, 0].legend(fontsize=6)
    axes[0, 1].set(xlabel="t", title="alignment of the last kernel with the labels")
    if len(a["widths"]):
        axes[0, 2].loglog(a["widths"], a["width errors"], "o-")
        axes[0, 2].loglog(a["widths"], a["width errors"][0] * (a["widths"] / a["widths"][0]) ** -0.5, "k--", lw=1)
    axes[0, 2].set(xlabel="width", title=r"rms error of the output; dashed: $N^{-1/2}$")
    shown = a[f"{names[-1]} kernel"]
    for axis, kernel, when in zip(
        axes[1], (shown[0], shown[1], shown[1] - shown[0]), ("start", "end", "change"), strict=True
    ):
        image = axis.imshow(kernel, cmap="viridis" if when != "change" else "coolwarm")
        axis.set(title=f"{names[-1]}: last kernel, {when}", xticks=[], yticks=[])
        figure.colorbar(image, ax=axis, shrink=0.8)
    return figure
