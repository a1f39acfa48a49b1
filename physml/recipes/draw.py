"""How the figures of all recipes are drawn: theory as lines, measurements as points with bars, in the same colours."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def panels(
    rows: int, columns: int, *, width: float | int = 4.2, height: float | int = 3.7, **options: Any
) -> tuple[Any, Any]:
    """A figure with rows x columns axes of this size each; axes as an array (rows, columns), squeezed where one is 1."""
    import matplotlib.pyplot as plt

    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


def label(
    axis: Any, title: str = "", x: str = "", y: str = "", *, log: str = "", legend: Any = None, **limits: Any
) -> None:
    """Title, axis labels, logarithmic axes ("x", "y" or "xy"), limits; a legend if anything has a label.

    `legend`: False leaves it out, a `dict` goes to `axis.legend`.
    """
    axis.set(title=title, xlabel=x, ylabel=y, **limits)
    axis.title.set_fontsize(11)
    for name in log:
        getattr(axis, f"set_{name}scale")("log")
    if legend is not False and axis.get_legend_handles_labels()[1]:
        axis.legend(**({"fontsize": 8, "frameon": False} | (legend or {})))


def measured(axis: Any, x: Any, y: Any, error: Any = None, *, sigmas: float | int = 2.0, **style: Any) -> None:
    """Measurements as points, with bars of `sigmas` standard errors."""
    bars = None if error is None else sigmas * np.asarray(error)
    axis.errorbar(np.asarray(x), np.asarray(y), bars, **({"fmt": "o", "ms": 4, "lw": 1.2} | style))


def theory(axis: Any, x: Any, y: Any, *style: Any, **options: Any) -> None:
    """A law as a line, black unless the style says otherwise."""
    options = {"lw": 1.3} | ({} if style or "color" in options else {"color": "k"}) | options
    axis.plot(np.asarray(x), np.asarray(y), *style, **options)


def slope(axis: Any, x: Any, y: Any, power: float | int, **options: Any) -> None:
    """A line of slope `power` on logarithmic axes through the geometric mean of the points."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    middle, height = np.exp(np.mean(np.log(x))), np.exp(np.mean(np.log(y)))
    axis.plot(x, height * (x / middle) ** power, **({"color": "k", "lw": 1, "ls": ":"} | options))


def cloud(
    axis: Any, points: Any, title: str = "", *, reach: float | None = None, size: float | int = 2.0, **style: Any
) -> None:
    """Points (n, 2) of the plane, axes equal and without ticks."""
    points = np.asarray(points)
    axis.plot(points[:, 0], points[:, 1], **({"ls": "", "marker": ".", "ms": size, "alpha": 0.5} | style))
    axis.set(title=title, aspect="equal", xticks=[], yticks=[])
    if reach is not None:
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach))


def beside(
    axis: Any, reference: Any, points: Any, title: str = "", *, names: Sequence[str] = ("data", "samples"), **style: Any
) -> None:
    """A cloud on a grey one, with a legend."""
    cloud(axis, reference, color="0.7", label=names[0])
    cloud(axis, points, label=names[1], **style)
    label(axis, title, legend={"markerscale": 4})


def image(axis: Any, pixels: Any, title: str = "", **options: Any) -> None:
    """One grey image, dark on light, without ticks."""
    axis.imshow(np.asarray(pixels), **({"cmap": "gray_r"} | options))
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def mosaic(images: Any, columns: int, *, gap: int = 1, fill: float | int = 0.0) -> np.ndarray:
    """Images (n, height, width) side by side in rows of `columns`, as one image."""
    images = np.asarray(images)
    rows = -(-len(images) // columns)
    blank = np.full((rows * columns - len(images), *images.shape[1:]), fill, images.dtype)
    padded = np.pad(np.concatenate([images, blank]), ((0, 0), (0, gap), (0, gap)), constant_values=fill)
    height, width = padded.shape[1:]
    whole = padded.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    return whole[: whole.shape[0] - gap, : whole.shape[1] - gap]


def histogram(axis: Any, values: Any, edges: Any, **options: Any) -> None:
    """A histogram as a density."""
    axis.hist(np.ravel(values), edges, **({"density": True, "alpha": 0.4} | options))


def keys(axis: Any, labels: Sequence[str], values: Any, error: Any = None, **options: Any) -> None:
    """Named values as horizontal bars, the first on top."""
    place = np.arange(len(labels))[::-1]
    axis.barh(place, np.asarray(values), xerr=None if error is None else np.asarray(error), **options)
    axis.set_yticks(place, labels)
