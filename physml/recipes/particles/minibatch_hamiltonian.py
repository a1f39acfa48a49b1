r"""Hamiltonian dynamics with minibatches: how the order of a splitting falls from 2 to 1, and how shuffled epochs keep it.

A Gaussian posterior, $E(x) = \sum_i a(x - z_i)^2/2$, is sampled with all data in every step, with batches drawn with
replacement, and with epochs that visit the data once in random order. A step is affine, $s' = Ms + vb + \text{noise}$ with
the offset b of its batch, so the stationary variance of x is known exactly from $S = MSM^T + G + v\,\mathrm{Var}(b)\,v^T$
(over a whole epoch, with the negative correlations of its batches). Its error is measured with chains at several steps h, held
against the exact one, and its slope in h is the weak order, with an error bar.

**See** Franzese, Milios, Filippone and Michiardi, Hamiltonian SDEs with minibatches, and the order 2 at which they stop.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.particles.chains.run import run_chains
from physml.particles.kernels.minibatch import MinibatchEnergy, sghmc
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Franzese, Milios, Filippone and Michiardi, Hamiltonian SDEs with minibatches",
    claim="weak order of splittings: 2 with all data, 1 with batches drawn with replacement, 2 in shuffled epochs",
    time="3 min, smoke 10 s",
)
# Of the variance of x as h -> 0, from `exact_variance`. BAOAB has no error with all data, since the energy is quadratic;
# in shuffled epochs its term of order 2 vanishes too, because all data share one curvature.
ORDERS = {
    ("OBABO", "full"): 2, ("OBABO", "replacement"): 1, ("OBABO", "shuffled"): 2,
    ("BAOAB", "full"): None, ("BAOAB", "replacement"): 1, ("BAOAB", "shuffled"): 3,
    ("euler", "full"): 2, ("euler", "replacement"): 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, and what the claims ask for."""

    cases: tuple[tuple[Any, str], ...] = tuple(ORDERS)
    data: int = 8
    batch_size: int = 2
    friction: float = 1.0
    steps: tuple[float, ...] = (0.12, 0.18, 0.27, 0.4)  # in units of the inverse frequency 1/sqrt(N a)
    chains: int = 4000
    moves: int = 2400  # of one step; an epoch counts for N/n of them
    z: float = 4.0
    gain: float = 0.75

    def __post_init__(self):
        unknown = set(self.cases) - set(ORDERS)
        if unknown:
            raise ValueError(f"config.cases must be pairs of {list(ORDERS)}; got {sorted(unknown)}")
        if self.data % self.batch_size or self.moves % (4 * self.data // self.batch_size):
            raise ValueError(f"batch_size must divide data, and 4 data/batch_size the moves; got {self}")


PAPER = Config()
SMOKE = Config(
    cases=(("OBABO", "replacement"), ("OBABO", "shuffled")), steps=(0.2, 0.4), chains=2000, moves=1200, gain=0.4
)


def data(n: int) -> np.ndarray:
    """The n data, spread as quantiles of a logistic law around 0."""
    u = (np.arange(n) + 0.5) / n
    return np.log(u / (1 - u))


def term(x, z):
    """One datum's energy, for a = 1/N: the posterior has variance 1."""
    return z[1] * jnp.sum((x - z[0]) ** 2) / 2


def exact_variance(scheme: str, mode: str, h: float, friction: float, n_data: int, n: int) -> float:
    """Stationary variance of x for unit frequency and temperature, from 2 x 2 matrices."""
    m, v, g = np.eye(2), np.zeros(2), np.zeros((2, 2))

    def then(matrix, push=0.0, spread=0.0):
        nonlocal m, v, g
        m, v = matrix @ m, matrix @ v + np.array([0.0, push])
        g = matrix @ g @ matrix.T + np.diag([0.0, spread])

    if scheme == "euler":
        then(np.array([[1, 0], [-h, 1 - friction * h]]), h, 2 * friction * h)
        then(np.array([[1, h], [0, 1]]))
    else:
        for letter in scheme:
            t = h / scheme.count(letter)
            if letter == "A":
                then(np.array([[1, t], [0, 1]]))
            elif letter == "B":
                then(np.array([[1, 0], [-t, 1]]), t)
            else:
                c = np.exp(-friction * t)
                then(np.diag([1, c]), 0.0, 1 - c**2)
    scatter = data(n_data).var() / n
    if mode == "full":
        return solve_discrete_lyapunov(m, g)[0, 0]
    if mode == "replacement":
        return solve_discrete_lyapunov(m, g + scatter * np.outer(v, v))[0, 0]
    count = n_data // n
    powers = [np.linalg.matrix_power(m, k) for k in range(count)]
    responses = np.stack([p @ v for p in powers], 1)
    covariance = np.full((count, count), -data(n_data).var() / (n_data - 1))
    np.fill_diagonal(covariance, scatter * (n_data - n) / (n_data - 1))
    noise = sum(p @ g @ p.T for p in powers) + responses @ covariance @ responses.T
    return solve_discrete_lyapunov(powers[-1] @ m, noise)[0, 0]


def _square(x):
    return x**2


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """Every case at every step."""
    n = config.data
    z = jnp.asarray(np.stack([data(n), np.full(n, 1 / n)], 1), jnp.float32)
    claims, numbers, arrays = [], {}, {"steps": np.asarray(config.steps)}
    with progress_bar(len(config.cases) * len(config.steps), "orders", "run", show=progress) as bar:
        for i, (scheme, mode) in enumerate(config.cases):
            size = n if mode == "full" else config.batch_size
            epoch = n // config.batch_size if mode == "shuffled" else 1
            energy = MinibatchEnergy(term, z, size)
            rows = []
            for j, h in enumerate(config.steps):
                draw = jax.random.fold_in(jax.random.fold_in(key, i), j)
                kernel = sghmc(energy, h, config.friction, scheme=scheme, shuffle=mode != "replacement")
                x0 = jax.random.normal(jax.random.fold_in(draw, 0), (config.chains, 1))
                moves = config.moves // epoch
                burn = run_chains(kernel, x0, moves // 4, key=draw, stats=False, keep=False, thin=moves // 4)
                out = run_chains(
                    kernel, burn.state, moves, key=jax.random.fold_in(draw, 1), thin=max(1, 4 // epoch), keep=False, observe=_square
                )  # fmt: skip
                assert out.stats is not None
                value, error = float(out.stats.mean[0]), float(np.sqrt(out.stats.variance[0] / out.stats.ess[0]))
                rows.append((value - 1, error, exact_variance(scheme, mode, h, config.friction, n, size) - 1))
                bar.update()
            name, table = f"{scheme}, {mode}", np.asarray(rows)
            arrays[f"errors_{name}"] = table
            worst = np.max(np.abs(table[:, 0] - table[:, 2]) / table[:, 1])
            claims.append(
                at_most(
                    f"{name}: variance of x against the exact one",
                    worst,
                    config.z,
                    "largest difference in standard errors",
                )
            )
            order = ORDERS[scheme, mode]
            if order is not None:
                slope, error = _slope(np.log(config.steps), table[:, 0], table[:, 1])
                numbers[f"slope_{name}"] = slope
                there, _ = _slope(np.log(config.steps), table[:, 2], table[:, 1])
                source = (
                    f"slope of the exact error at these steps, {order} as h -> 0; within {config.z:g} standard errors"
                )
                claims.append(close_to(f"{name}: weak order", slope, there, config.z * error, source, error))
    for scheme in ("OBABO", "BAOAB"):
        shuffled, replacement = (numbers.get(f"slope_{scheme}, {mode}") for mode in ("shuffled", "replacement"))
        if shuffled is not None and replacement is not None:
            what = f"{scheme}: order that shuffling restores"
            claims.append(at_least(what, shuffled - replacement, config.gain, "1 for batches of any kind, as h -> 0"))
    return Result(tuple(claims), numbers, arrays)


def _slope(log_h, value, error):
    """Slope of ln|value| by weighted least squares, and its standard error."""
    y, weight = np.log(np.abs(value)), (np.abs(value) / error) ** 2
    centre = np.sum(weight * log_h) / np.sum(weight)
    spread = np.sum(weight * (log_h - centre) ** 2)
    return np.sum(weight * (log_h - centre) * y) / spread, spread**-0.5


def plot(result: Result) -> Any:
    """Error of the variance against the step, measured and exact, for each way to take batches."""
    import matplotlib.pyplot as plt

    arrays = result.arrays
    names = [k.removeprefix("errors_") for k in arrays if k.startswith("errors_")]
    modes = list(dict.fromkeys(name.split(", ")[1] for name in names))
    figure, axes = plt.subplots(
        1, len(modes), figsize=(4 * len(modes), 3.8), layout="constrained", sharey=True, squeeze=False
    )
    h = arrays["steps"]
    for axis, mode in zip(axes[0], modes, strict=True):
        for name in (name for name in names if name.endswith(mode)):
            value, error, exact = arrays[f"errors_{name}"].T
            scheme = name.split(", ")[0]
            slope = result.metrics.get(f"slope_{name}")
            label = scheme + ("" if slope is None else f", order {slope:.2f}")
            color = f"C{('OBABO', 'BAOAB', 'euler').index(scheme)}"
            axis.errorbar(h, np.abs(value), error, fmt="o", color=color, label=label)
            if np.abs(exact).max() > 1e-9:
                axis.plot(h, np.abs(exact), color=color)
        axis.set(xscale="log", yscale="log", xlabel="step", title=mode, ylim=(3e-4, 1))
        axis.set_xticks(h, [f"{x:g}" for x in h])
        axis.minorticks_off()
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("|error of the variance of x|; lines: exact")
    return figure
