"""The figure of a comparison."""

from typing import Any

import numpy as np

from physml.metrics import straight_line

GRIDS = ("t", "tau", "times", "frequencies")  # leaves that are what others are drawn against
LARGEST = 9  # panels


def draw(rows: list[tuple[str, Any, Any, Any]], n: Any, sigmas: float) -> Any:
    """A panel for each quantity (name, theory, mean, error) that is a number or a curve; `n` one size or several."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("a figure needs matplotlib: pip install 'physml[recipes]'") from error
    several = not isinstance(n, int)
    leading = 1 if several else 0
    grids = {name: theory[0] if several else theory for name, theory, _, _ in rows if name.split(".")[-1] in GRIDS}
    shown = [row for row in rows if row[0] not in grids and row[1].ndim <= leading + 1][:LARGEST]
    columns = min(3, len(shown))
    shape = (-(-len(shown) // columns), columns)
    size = (4.2 * columns, 3.5 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, (name, theory, mean, error) in zip(axes.flat, shown, strict=False):
        if theory.ndim > leading:
            grid = next((g for g in grids.values() if len(g) == theory.shape[-1]), np.arange(theory.shape[-1]))
            if several:
                theory, mean, error = theory[-1], mean[-1], error[-1]
            _curve(axis, grid, theory, mean, error, sigmas, next(iter(grids), "index"))
        elif several:
            _sizes(axis, np.asarray(n), theory, mean, error, sigmas)
        else:
            axis.axhline(theory, color="k", lw=1.3, label="theory")
            axis.errorbar([n], [mean], [sigmas * error], fmt="C0o", ms=5, label="finite system")
            axis.set_xlabel("n")
        axis.set_title(name)
        axis.legend(fontsize=8, frameon=False)
    return figure


def _curve(axis, grid, theory, mean, error, sigmas, label):
    axis.plot(grid, theory, "k", lw=1.3, label="theory")
    every = max(1, len(grid) // 25)
    axis.errorbar(grid[::every], mean[::every], sigmas * error[::every], fmt="C0o", ms=3, lw=1, label="finite system")
    axis.set_xlabel(label.split(".")[-1])


def _sizes(axis, n, theory, mean, error, sigmas):
    """Against 1/n: the theory where it lives, on the left for a limit; the measured line reaches it or does not."""
    x = 1 / n
    if np.ptp(theory) == 0:
        axis.axhline(theory[0], color="k", lw=1.3, label="theory")
    else:
        axis.plot(x, theory, "k", lw=1.3, label="theory")
    axis.errorbar(x, mean, sigmas * error, fmt="C0o", ms=4, label="finite system")
    if len(n) > 1:
        end, slope, _ = straight_line(x, mean, np.maximum(error, 1e-12 * np.abs(mean)))
        axis.plot([0, x.max()], [end.value, end.value + slope.value * x.max()], "C0--", lw=1)
        axis.errorbar([0], [end.value], [sigmas * end.error], fmt="C0s", ms=4, mfc="w", label="extrapolated")
    axis.set_xlabel("1/n")
    axis.set_xlim(left=-0.04 * x.max())
