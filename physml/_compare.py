"""Theory and finite system on the same axes, for everything that has both sides."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from physml.core import Failure, Status, check
from physml.core.noise import check_key
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.metrics.estimate import Estimate, power_law, straight_line


@runtime_checkable
class HasTheory(Protocol):
    """The side of a system that is known: `theory()`, or `theory(n=...)` of a theory of finite sizes."""

    def theory(self) -> Any:
        """The quantities as a pytree of arrays, or a result with `order` and `status`."""


@runtime_checkable
class HasFiniteSystem(Protocol):
    """The side of a system that is simulated."""

    def finite_n(self, n: int, *, key: Key) -> Any:
        """The same quantities, measured in a system of n degrees of freedom."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found: pytrees like the theory, NumPy arrays in float64.

    `theory`: what is expected. `mean`, `error`: over the runs of the finite system, with its standard error. `z`: their
    distance in standard errors, (mean - theory) / error. With several sizes all have a leading axis of their number.
    `n`: the sizes. `runs`: of each size. `statuses`: of both sides, by name, where they have one.
    """

    theory: PyTree
    mean: PyTree
    error: PyTree
    n: int | tuple[int, ...]
    runs: int
    statuses: dict[str, Status]

    @property
    def z(self) -> PyTree:
        """(mean - theory) / error; 0 where both are equal and exact, infinite where they differ without error."""

        def one(mean, theory, error):
            gap = mean - theory
            same = np.abs(gap) <= 1e-6 * np.abs(theory)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.where((error == 0) & same, 0.0, gap / error)

        return jax.tree.map(one, self.mean, self.theory, self.error)

    @property
    def largest_z(self) -> float:
        """The largest |z| of all entries."""
        return max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(self.z))

    def check(self) -> "Comparison":
        """Raise `Failure` that says which side failed; return self otherwise."""
        for side, status in self.statuses.items():
            status.check(f"compare, {side}")
        for side, tree in (("the theory", self.theory), ("the finite system", self.mean)):
            bad = [name for name, leaf in _named(tree) if not np.isfinite(leaf).all()]
            if bad:
                raise Failure(f"compare, {side}: {', '.join(bad)} not finite")
        return self

    @property
    def exponent(self) -> PyTree:
        r"""a of $|\text{mean} - \text{theory}| \propto n^{-a}$ for every quantity, `Estimate`s with their errors.

        Where the distance drowns in its error so does the exponent. Needs two sizes or more.
        """
        return self._fitted(lambda n, mean, error, theory: _decay(n, mean - theory, error))

    def limit(self, power: float = 1.0) -> PyTree:
        r"""The extrapolation of the finite systems: the end of a straight line in $n^{-\text{power}}$, `Estimate`s."""
        return self._fitted(lambda n, mean, error, theory: straight_line(n**-power, mean, error)[0])

    def _fitted(self, fit: Callable) -> PyTree:
        if isinstance(self.n, int):
            raise ValueError("an approach to the limit needs several sizes: compare(system, (100, 200, 400), ...)")
        n = np.asarray(self.n, np.float64)

        def one(mean, error, theory):
            error = np.maximum(error, 1e-12 * np.maximum(np.abs(mean), np.finfo(float).tiny))
            rows = [np.reshape(a, (len(n), -1)) for a in (mean, error, theory)]
            fits = [fit(n, *columns) for columns in zip(*(row.T for row in rows), strict=True)]
            values, errors = (np.reshape(column, mean.shape[1:]) for column in zip(*fits, strict=True))
            return Estimate(values, errors)

        return jax.tree.map(one, self.mean, self.error, self.theory)

    def plot(self, *, sigmas: float = 2.0) -> Any:
        """A figure with a panel for each quantity: theory as lines, the finite system as points with bars of `sigmas`
        standard errors; against 1/n for several sizes, else against the grid `t` or `tau` that the theory carries."""
        from physml._comparison_figure import draw

        trees = (_named(tree) for tree in (self.theory, self.mean, self.error))
        rows = [(name, theory, mean, error) for (name, theory), (_, mean), (_, error) in zip(*trees, strict=True)]
        return draw(rows, self.n, sigmas)

    def __repr__(self) -> str:
        lines = [f"Comparison(n={self.n}, runs={self.runs})"]
        for (name, mean), (_, error), (_, theory) in zip(
            _named(self.mean), _named(self.error), _named(self.theory), strict=True
        ):
            if mean.size <= 4:
                pairs = zip(mean.ravel(), error.ravel(), np.ravel(theory), strict=True)
                lines.append(f"  {name}: " + ", ".join(f"{m:.5g} ± {e:.1g} (theory {t:.5g})" for m, e, t in pairs))
            else:
                z = np.abs(mean - theory) / np.where(error > 0, error, np.inf)
                lines.append(f"  {name}: {mean.shape}, largest |z| {np.max(z):.2g}")
        return "\n".join(lines)


def compare(
    system: Any,
    n: int | Sequence[int],
    *,
    runs: int = 8,
    key: Key,
    theory: Any = None,
    jit: bool = True,
    progress: bool | None = None,
    **options: Any,
) -> Comparison:
    r"""The theory of a system beside `runs` independent finite systems of n degrees of freedom.

    **Arguments.**

    - `system`: anything with the two methods `theory()` and `finite_n(n, *, key)`, which return the same pytree of
      quantities (or a result that has them as `order`, with a `status`): models of `dmft`,
      `particles.QuadraticChains`, `particles.MeanFieldParticles`, `particles.CoulombGas`, `hopfield.MemoryNetwork`, or
      your own. A theory that knows finite sizes takes `n`; one that draws noise takes `key`.
    - `n`: one size, or several; then `.exponent` and `.limit()` tell how the limit is approached.
    - `runs`: at least 2; their scatter gives the error.
    - `key`: of all runs; run i of the j-th size sees `fold_in(fold_in(key, j), i)`.
    - `theory`: a result of `system.theory()` that is there already.
    - `jit`: compile `finite_n`, once for each size. A system that is no pytree must be hashable.
    - `progress`: a bar over runs; by default where stderr is a terminal.
    - `options`: handed to `finite_n`.

    **Returns** a `Comparison`. **Cost.** One theory and `runs` systems of each size.
    **Errors.** `ValueError` for a system with one side only, which names the side that is missing, and for sides that
    do not measure the same; a theory or a run that fails is told by `.check()`.

    **Example.**
    ```python
    pair = physml.compare(physml.dmft.RandomNetwork(g=2.0), 400, runs=4, key=jax.random.key(0)).check()
    pair.plot()
    ```
    """
    for kind, method, side in (
        (HasTheory, "theory()", "theory"),
        (HasFiniteSystem, "finite_n(n, *, key)", "finite system"),
    ):
        if not isinstance(system, kind) or isinstance(system, type):
            raise ValueError(f"{_name(system)} has no {side} to compare: it needs a method {method}")
    check_key(key)
    runs = check.count(runs, "runs", least=2)
    sizes = [check.count(size, "n") for size in (n if isinstance(n, Sequence) else [n])]
    if not sizes:
        raise ValueError("n must be a size or a sequence of sizes, got none")
    statuses: dict[str, Status] = {}
    expected = _theories(system, sizes, key, theory, statuses)
    finite = _compiled if jit else _plain
    means, errors = [], []
    with progress_bar(len(sizes) * runs, "compare", "run", show=progress) as bar:
        for j, size in enumerate(sizes):
            measured = []
            for i in range(runs):
                run_key = jax.random.fold_in(jax.random.fold_in(key, j), i)
                order, status = _parts(finite(system, size, run_key, options))
                measured.append(_numbers(order))
                if status is not None:
                    statuses[f"run {i} of the finite system, n = {size}"] = status
                bar.update()
            means.append(jax.tree.map(lambda *rows: np.mean(rows, axis=0), *measured))
            errors.append(jax.tree.map(lambda *rows: np.std(rows, axis=0, ddof=1) / math.sqrt(runs), *measured))
    expected = [_fitting(e, m, _name(system)) for e, m in zip(expected, means, strict=True)]
    stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if len(trees) > 1 else trees[0]
    several = isinstance(n, Sequence)
    trees = (expected, means, errors)
    if several and len(sizes) == 1:
        trees = tuple([jax.tree.map(lambda leaf: leaf[None], tree[0])] for tree in trees)
    return Comparison(*map(stack, trees), n=tuple(sizes) if several else sizes[0], runs=runs, statuses=statuses)


@eqx.filter_jit
def _compiled(system, n, key, options):
    return system.finite_n(n, key=key, **options)


def _plain(system, n, key, options):
    return system.finite_n(n, key=key, **options)


def _theories(system, sizes, key, given, statuses):
    """What is expected at every size, as numbers."""
    taken = inspect.signature(system.theory).parameters
    ask = {"key": jax.random.fold_in(key, len(sizes))} if "key" in taken else {}
    found = []
    for size in sizes if "n" in taken and given is None else sizes[:1]:
        result = system.theory(**ask, **({"n": size} if "n" in taken else {})) if given is None else given
        order, status = _parts(result)
        if status is not None:
            statuses["the theory" if "n" not in taken else f"the theory, n = {size}"] = status
        found.append(_numbers(order))
    return found if len(found) == len(sizes) else found * len(sizes)


def _parts(result: Any) -> tuple[Any, Status | None]:
    """The quantities of one side, and its status if it has one."""
    status = getattr(result, "status", None)
    return getattr(result, "order", result), status if isinstance(status, Status) else None


def _numbers(order: Any) -> Any:
    """Real arrays of float64 on the host; leaves that are no such numbers, as a status, are left out."""
    host = lambda leaf: np.asarray(leaf, np.float64) if eqx.is_inexact_array_like(leaf) else None
    return jax.tree.map(host, order)


def _fitting(theory, measured, name):
    """The theory at the entries that are measured: a finite system may see fewer of them along an axis."""
    one, other = jax.tree.structure(theory), jax.tree.structure(measured)
    if one != other:
        raise ValueError(f"the two sides of {name} differ: theory {one}, finite system {other}")

    def crop(a, b):
        if a.ndim != b.ndim or any(k < m for k, m in zip(a.shape, b.shape, strict=True)):
            raise ValueError(f"the two sides of {name} have shapes {a.shape} and {b.shape}")
        return a[tuple(slice(m) for m in b.shape)]

    return jax.tree.map(crop, theory, measured)


def _decay(n, gap, error):
    """The exponent of |gap| against n and its error."""
    power, _ = power_law(n, np.maximum(np.abs(gap), np.finfo(float).tiny), error)
    return -power.value, power.error


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    """Leaves with their names."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator=".") or "value", leaf) for path, leaf in leaves]


def _name(system: Any) -> str:
    return system.__name__ if isinstance(system, type) else type(system).__name__
