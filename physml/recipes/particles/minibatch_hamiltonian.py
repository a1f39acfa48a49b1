r"""Hamiltonian dynamics with minibatches: how the order of a splitting falls from 2 to 1, and how shuffled epochs keep it.

A Gaussian posterior, $E(x) = \sum_i a(x - z_i)^2/2$, is sampled with all data in every step, with batches drawn with
replacement, and with epochs that visit the data once in random order. A step is affine, $s' = Ms + vb + \text{noise}$ with
the offset b of its batch, so the stationary variance of x is known exactly from $S = MSM^T + G + v\,\mathrm{Var}(b)\,v^T$
(over a whole epoch, with the negative correlations of its batches). Its error is measured with chains at several steps h, held
against the exact one, and its slope in h is the weak order, with an error bar.

**See** Franzese, Milios, Filippone and Michiardi, Hamiltonian SDEs with minibatches, and the order 2 at which they stop.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from physml.metrics import power_law
from physml.particles.kernels.minibatch import MinibatchEnergy, StochasticGradient, sghmc
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment
from physml.recipes.particles._stationary import stationary

INFO = RecipeInfo(
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
class Config(Settings):
    """Sizes, and what the claims ask for."""

    cases: tuple[tuple[str, str], ...] = tuple(ORDERS)
    data: int = 8
    batch_size: int = 2
    friction: float = 1.0
    steps: tuple[float, ...] = (0.12, 0.18, 0.27, 0.4)  # in units of the inverse frequency 1/sqrt(N a)
    chains: int = 4000
    moves: int = 2400  # of one step; an epoch counts for N/n of them
    z: float = 4.0
    gain: float = 0.75

    def rules(self):
        return (
            (set(self.cases) <= set(ORDERS), f"cases are pairs of {list(ORDERS)}"),
            (self.data % self.batch_size == 0, "batch_size divides data"),
            (self.moves % (4 * self.data // self.batch_size) == 0, "4 data/batch_size divides moves"),
        )


PAPER = Config()
SMOKE = Config(
    cases=(("OBABO", "replacement"), ("OBABO", "shuffled")), steps=(0.2, 0.4), chains=2000, moves=1200, gain=0.4
)


def _in_order(exact):
    """Epochs that see the data in the order in which they are stored."""

    def draw(self, key, position, lanes):
        xi, order = exact(self, key, position, lanes)
        if self.shuffle:
            order = jnp.sort(order.reshape(-1, *order.shape[2:]), axis=0).reshape(order.shape)
        return xi, order

    return draw


SABOTAGE = Sabotage("the batches of an epoch come in a fixed order", StochasticGradient, "draw", _in_order)


def data(n: int) -> np.ndarray:
    """The n data, spread as quantiles of a logistic law around 0."""
    u = (np.arange(n) + 0.5) / n
    return np.log(u / (1 - u))


def term(x, z):
    """One datum's energy, for a = 1/N: the posterior has variance 1."""
    return z[1] * jnp.sum((x - z[0]) ** 2) / 2


def exact_variance(scheme: str, mode: str, h: float, friction: float, n_data: int, n: int) -> float:
    """Stationary variance of x for unit frequency and temperature, from 2 x 2 matrices."""
    # Matrix on (x, p), push of p by a batch, variance that p gains.
    decay = lambda t: np.exp(-friction * t)
    parts = {
        "A": lambda t: ([[1, t], [0, 1]], 0.0, 0.0),
        "B": lambda t: ([[1, 0], [-t, 1]], t, 0.0),
        "O": lambda t: ([[1, 0], [0, decay(t)]], 0.0, 1 - decay(t) ** 2),
    }
    if scheme == "euler":
        factors = [([[1, 0], [-h, 1 - friction * h]], h, 2 * friction * h), parts["A"](h)]
    else:
        factors = [parts[letter](h / scheme.count(letter)) for letter in scheme]
    m, v, g = np.eye(2), np.zeros(2), np.zeros((2, 2))
    for matrix, push, gain in factors:
        m, v = matrix @ m, matrix @ v + [0.0, push]
        g = matrix @ g @ np.transpose(matrix) + np.diag([0.0, gain])
    # An epoch of batches, whose offsets add up to nothing; all data are an epoch of one batch.
    count, scatter = 1 if mode == "replacement" else n_data // n, data(n_data).var()
    covariance = scatter / (n_data - 1) * (count * np.eye(count) - 1) if mode != "replacement" else [[scatter / n]]
    powers = [np.linalg.matrix_power(m, k) for k in range(count)]
    responses = np.stack([p @ v for p in powers], 1)
    noise = sum(p @ g @ p.T for p in powers) + responses @ covariance @ responses.T
    return solve_discrete_lyapunov(powers[-1] @ m, noise)[0, 0]


def _square(x):
    return x**2


@experiment
def run(study, config, key):
    study.keep(steps=config.steps, tables={})
    slopes = {case: _case(study, config, case, jax.random.fold_in(key, i))
              for i, case in enumerate(study.each(config.cases, "case"))}  # fmt: skip
    for scheme in ("OBABO", "BAOAB"):
        if {(scheme, "shuffled"), (scheme, "replacement")} <= set(slopes):
            gain = slopes[scheme, "shuffled"] - slopes[scheme, "replacement"]
            source = "1 for batches of any kind, as h -> 0"
            study.at_least(f"{scheme}: order that shuffling restores", gain, config.gain, source)


def _case(study, config, case, key):
    """Errors of the variance at every step, and their order."""
    (scheme, mode), n = case, config.data
    rows = jnp.asarray(np.stack([data(n), np.full(n, 1 / n)], 1), jnp.float32)
    size = n if mode == "full" else config.batch_size
    epoch = n // size if mode == "shuffled" else 1
    energy, moves = MinibatchEnergy(term, rows, size), config.moves // epoch
    table = []
    for j, h in enumerate(config.steps):
        draw_key = jax.random.fold_in(key, j)
        kernel = sghmc(energy, h, config.friction, scheme=scheme, shuffle=mode != "replacement")
        x0 = jax.random.normal(jax.random.fold_in(draw_key, 0), (config.chains, 1))
        thin = max(1, 4 // epoch)
        found, _ = stationary(kernel, x0, moves, _square, key=draw_key, burn=moves // 4, save_every=thin)
        exact = exact_variance(scheme, mode, h, config.friction, n, size)
        table.append((found.value[0] - 1, found.error[0], exact - 1))
    value, error, exact = np.transpose(table)
    name = f"{scheme}, {mode}"
    worst = np.max(np.abs(value - exact) / error)
    quantity = f"{name}: variance of x against the exact one"
    study.at_most(quantity, worst, config.z, "largest difference in standard errors")
    order, slope = ORDERS[case], np.nan
    if order is not None:
        power, _ = power_law(config.steps, np.abs(value), error)
        there, _ = power_law(config.steps, np.abs(exact), error)
        source = f"slope of the exact error at these steps, {order} as h -> 0; within {config.z:g} standard errors"
        study.near(f"{name}: weak order", power, there.value, source, sigmas=config.z)
        slope = power.value
    study.data.tables[case] = (value, error, exact, slope)
    return slope


def plot(result):
    """Error of the variance against the step, measured and exact, for each way to take batches."""
    h, tables = result.data.steps, result.data.tables
    modes = list(dict.fromkeys(mode for _, mode in tables))
    figure, axes = draw.panels(1, len(modes), sharey=True, squeeze=False)
    axes = dict(zip(modes, axes[0], strict=True))
    for (scheme, mode), (value, error, exact, slope) in tables.items():
        style = {"color": f"C{('OBABO', 'BAOAB', 'euler').index(scheme)}"}
        name = f"{scheme}, order {slope:.2f}" if np.isfinite(slope) else scheme
        draw.measured(axes[mode], h, np.abs(value), error, sigmas=1.0, label=name, **style)
        if np.abs(exact).max() > 1e-9:
            draw.theory(axes[mode], h, np.abs(exact), **style)
    for mode, axis in axes.items():
        draw.label(axis, mode, "step", "|error of the variance of x|; lines: exact", log="xy", ylim=(3e-4, 1))
        axis.set_xticks(h, [f"{x:g}" for x in h])
        axis.minorticks_off()
        axis.label_outer()
    return figure
