r"""Proximal Langevin kernels for $e^{-(f + g)/T}$, f smooth and g known by its proximity operator.

| scheme | x' with $\xi \sim N(0, I)$ | law left invariant as $h \to 0$ |
|---|---|---|
| `MYULA` | $x - h\nabla f(x) - h\nabla g_\lambda(x) + \sqrt{2Th}\,\xi$ | $e^{-(f + g_\lambda)/T}$ |
| `P-ULA` | $\mathrm{prox}_{hg}(x) + \sqrt{2Th}\,\xi$, g the whole energy | $e^{-g/T}$ |
| `forward-backward` | $\mathrm{prox}_{hg}(x - h\nabla f(x)) + \sqrt{2Th}\,\xi$ | $e^{-(f + g)/T}$ |
| `proximal-gradient` | $\mathrm{prox}_{hg}(x - h\nabla f(x) + \sqrt{2Th}\,\xi)$ | $e^{-(f + g)/T}$ |

`proximal-gradient` never leaves the domain of g, and puts mass on the kinks (an L1 energy gives exact zeros).
"""

from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.types import Energy, Key, Scalar
from physml.particles.energies.nonsmooth import AbstractNonsmooth
from physml.particles.kernels.base import (
    AbstractKernel,
    Info,
    Position,
    accepted,
    check_energy,
    check_position,
    check_start,
    gradient,
    metropolis,
    normals,
    plus,
    scaled,
    total,
    uniforms,
    value_and_gradient,
)

Scheme = Literal["MYULA", "P-ULA", "forward-backward", "proximal-gradient"]
SCHEMES = ("MYULA", "P-ULA", "forward-backward", "proximal-gradient")


class Drifting(NamedTuple):
    """A position with its energy f + g and the move that its proposal makes on average."""

    position: PyTree
    energy: Array
    drift: PyTree


class Proximal(AbstractKernel):
    """See `proximal`."""

    smooth: Energy | None
    nonsmooth: AbstractNonsmooth
    step_size: Array
    smoothing: Array | None
    temperature: Array
    scheme: Scheme = eqx.field(static=True)
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Position:
        _check_parts(self.smooth, self.nonsmooth, position, self.lanes)
        return Position(position)

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        return normals(key, position, lanes)

    def move(self, state: Position, noise: PyTree) -> tuple[Position, Info]:
        x, h = state.position, self.step_size
        kick = scaled(jnp.sqrt(2 * self.temperature * h), noise)
        if self.scheme == "proximal-gradient":
            x = _prox(self.nonsmooth, plus(_forward(self.smooth, x, h, self.lanes), kick), h, self.lanes)
        else:
            x = plus(x, _drift(self, x), kick)
        return Position(x), accepted(noise, self.lanes)


class ProximalMala(AbstractKernel):
    """See `proximal_mala`."""

    rejects: ClassVar[bool] = True

    smooth: Energy | None
    nonsmooth: AbstractNonsmooth
    step_size: Array
    smoothing: Array | None
    temperature: Array
    scheme: Scheme = eqx.field(static=True)
    lanes: int = eqx.field(static=True, default=0)

    def init(self, position: PyTree, rng_key: Key | None = None) -> Drifting:
        _check_parts(self.smooth, self.nonsmooth, position, self.lanes)
        value = self._energy(position)
        check_start(value)
        return Drifting(position, value, _drift(self, position))

    def draw(self, key: Key, position: PyTree, lanes: ArrayLike) -> PyTree:
        return normals(key, position, lanes), uniforms(key, position, lanes)

    def move(self, state: Drifting, noise: PyTree) -> tuple[Drifting, Info]:
        (x, value, drift), (xi, uniform), T = state, noise, self.temperature
        spread = jnp.sqrt(2 * T * self.step_size)
        y = plus(x, drift, scaled(spread, xi))
        new = Drifting(y, self._energy(y), _drift(self, y))
        # The noise that would lead back is -(drift + drift')/spread - xi.
        back = plus(scaled(-1 / spread, plus(drift, new.drift)), scaled(-1.0, xi))
        proposals = total(jax.tree.map(lambda a, b: (a - b) * (a + b), xi, back), self.lanes) / 2
        return metropolis((value - new.energy) / T.astype(value.dtype) + proposals, uniform, new, state)

    def _energy(self, x):
        nonsmooth = self.nonsmooth(x) if self.lanes == 0 else jax.vmap(self.nonsmooth, -1, -1)(x)
        return nonsmooth if self.smooth is None else nonsmooth + value_and_gradient(self.smooth, x, self.lanes)[0]


def _prox(nonsmooth, x, smoothing, lanes):
    prox = lambda x: nonsmooth.prox(x, smoothing)
    return prox(x) if lanes == 0 else jax.vmap(prox, -1, -1)(x)


def _forward(smooth, x, h, lanes):
    return x if smooth is None else plus(x, scaled(-h, gradient(smooth, x, lanes)))


def _drift(kernel, x):
    """The mean of x' - x."""
    h, lanes = kernel.step_size, kernel.lanes
    if kernel.scheme == "MYULA":
        pull = scaled(
            -h / kernel.smoothing, jax.tree.map(jnp.subtract, x, _prox(kernel.nonsmooth, x, kernel.smoothing, lanes))
        )
        return pull if kernel.smooth is None else plus(pull, scaled(-h, gradient(kernel.smooth, x, lanes)))
    y = _prox(kernel.nonsmooth, _forward(kernel.smooth, x, h, lanes), h, lanes)
    return jax.tree.map(jnp.subtract, y, x)


def proximal(
    smooth: Energy | None,
    nonsmooth: AbstractNonsmooth,
    step_size: Scalar,
    smoothing: Scalar | None = None,
    temperature: Scalar = 1.0,
    *,
    scheme: Scheme = "MYULA",
) -> Proximal:
    r"""Unadjusted proximal Langevin for $e^{-(f + g)/T}$; by default Moreau-Yosida regularised (MYULA):

    $$x' = x - h\,\nabla f(x) - \tfrac h\lambda\bigl(x - \mathrm{prox}_{\lambda g}(x)\bigr) + \sqrt{2Th}\,\xi.$$

    For $f = ax^2/2$ and $g = wx^2/2$ the stationary variances are, with $k = a + w/(1 + \lambda w)$ and
    $q = (1 - ha)/(1 + hw)$: $T/(k(1 - kh/2))$ for `MYULA`, $2Th/(1 - q^2)$ for `forward-backward` (and for `P-ULA`,
    where a = 0), that over $(1 + hw)^2$ for `proximal-gradient`.

    **Arguments.** `smooth`: f, `x -> scalar`, or None for f = 0, as `P-ULA` has it. `nonsmooth`: g, an
    `AbstractNonsmooth`. `step_size`: h > 0; stable for $h < 2/(L_f + 1/\lambda)$. `smoothing`:
    $\lambda > 0$ ($x^2$ over energy), of `MYULA` only; below $1/L_f$ it limits the step. `temperature`: T >= 0.
    **Cost.** One gradient of f, one proximity operator.
    **Errors.** `ValueError` for an unknown scheme, a missing or unused smoothing, energies that are not scalars.
    **See** Durmus, Moulines and Pereyra (2018) for `MYULA`; Pereyra (2016) for `P-ULA` and `forward-backward`; Salim
    and Richtarik (2020) for `proximal-gradient`.

    **Example.**
    ```python
    kernel = proximal(lambda x: jnp.sum((x - 1) ** 2) / 2, L1(2.0), step_size=0.01, smoothing=0.02)
    out = run(kernel, jnp.zeros(3), 10_000, key=jax.random.key(0), save_every=10)
    ```
    """
    temperature = check.number(temperature, "temperature", least=0)
    parts = _parameters(smooth, nonsmooth, step_size, smoothing, scheme)
    return Proximal(**parts, temperature=temperature)


def proximal_mala(
    smooth: Energy | None,
    nonsmooth: AbstractNonsmooth,
    step_size: Scalar,
    smoothing: Scalar | None = None,
    temperature: Scalar = 1.0,
    *,
    scheme: Scheme = "MYULA",
) -> ProximalMala:
    r"""Metropolis-adjusted `proximal`: leaves $e^{-(f + g)/T}$ invariant exactly, whatever $\lambda$.

    **Arguments, errors** as in `proximal`, but T > 0, and no `proximal-gradient`: its proposal has no density. A start
    of infinite energy is refused, a proposal of infinite energy rejected.
    **Cost.** One gradient of f, one proximity operator, one g. **See** Pereyra (2016), proximal MALA.
    """
    if scheme == "proximal-gradient":
        raise ValueError("the proposals of 'proximal-gradient' have no density: adjust another scheme")
    temperature = check.number(temperature, "temperature", above=0)
    parts = _parameters(smooth, nonsmooth, step_size, smoothing, scheme)
    return ProximalMala(**parts, temperature=temperature)


def _parameters(smooth, nonsmooth, step_size, smoothing, scheme):
    check.choice(scheme, "scheme", SCHEMES)
    if (scheme == "MYULA") == (smoothing is None):
        raise ValueError(f"smoothing is lambda of MYULA and of no other scheme; got {smoothing} with {scheme!r}")
    if scheme == "P-ULA" and smooth is not None:
        raise ValueError(
            "P-ULA takes the proximity operator of the whole energy: pass smooth=None, or 'forward-backward'"
        )
    return {
        "smooth": smooth,
        "nonsmooth": nonsmooth,
        "step_size": check.number(step_size, "step_size", above=0),
        "smoothing": None if smoothing is None else check.number(smoothing, "smoothing", above=0),
        "scheme": scheme,
    }


def _check_parts(smooth, nonsmooth, position, lanes):
    check.instance(nonsmooth, "nonsmooth", AbstractNonsmooth, "an AbstractNonsmooth such as L1(1.0)")
    check_position(position)
    check_energy(nonsmooth, position, lanes)
    if smooth is not None:
        check_energy(smooth, position, lanes)
        check_start(value_and_gradient(smooth, position, lanes)[0])
