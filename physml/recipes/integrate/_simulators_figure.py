"""The figure of the recipe `simulators`."""

from typing import Any

import numpy as np

from physml.recipes._result import Result
from physml.recipes.integrate._simulators_orders import STRONG, WEAK


def plot(result: Result) -> Any:
    """Six panels: variance, strong and weak errors, density, escape rates, parameters along the descent."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(2, 3, figsize=(13.5, 7.6), layout="constrained")
    _plot_moments(axes[0, 0], a)
    _plot_strong(axes[0, 1], a)
    _plot_weak(axes[0, 2], a)
    _plot_density(axes[1, 0], a)
    _plot_escape(axes[1, 1], a)
    _plot_fit(axes[1, 2], a)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(11)
    return figure


def _plot_moments(axis, a):
    axis.plot(a["ou_grid"], a["ou_var_exact"], "k--", lw=1, label="equation")
    axis.plot(a["ou_grid"], a["ou_var_scheme"], "C0", lw=1.5, label="scheme's recursion")
    axis.errorbar(a["ou_t"], a["ou_var"], 5 * a["ou_var_error"], fmt="C0o", ms=5, label="simulated, ±5 s.e.")
    axis.set(xlabel="time t", ylabel="variance of x(t)", title="Ornstein-Uhlenbeck, Euler-Maruyama")
    axis.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1.0, 0.86))
    inset = axis.inset_axes((0.52, 0.12, 0.45, 0.42))
    inset.axhline(0, color="k", ls="--", lw=1)
    inset.plot(a["ou_grid"], a["ou_var_scheme"] - a["ou_var_exact"], "C0", lw=1.2)
    gap = a["ou_var"] - np.interp(a["ou_t"], a["ou_grid"], a["ou_var_exact"])
    inset.errorbar(a["ou_t"], gap, 5 * a["ou_var_error"], fmt="C0o", ms=3, lw=1)
    inset.set_title("minus the equation's", fontsize=8)
    inset.tick_params(labelsize=7)


def _orders(axis, h, values, bars, slopes, orders, labels):
    """Errors against h, each with a line of its theoretical slope through the geometric mean of its points."""
    for i, (value, bar, slope, order, label) in enumerate(zip(values, bars, slopes, orders, labels, strict=True)):
        colour, marker = f"C{i}", "osD^v"[i]
        middle, scale = np.exp(np.log(h).mean()), np.exp(np.log(value).mean())
        axis.plot(h, scale * (h / middle) ** order, colour, lw=1, alpha=0.6)
        axis.errorbar(h, value, bar, fmt=marker, color=colour, ms=5, label=f"{label}: {slope:.2f} ({order:g})")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("step h")
    axis.legend(frameon=False, fontsize=8, title="measured slope (theory, line)", title_fontsize=8)


def _plot_strong(axis, a):
    orders = [order for _, _, order, _ in STRONG]
    labels = [f"{type(m).__name__}, {'GBM' if name == 'gbm' else 'double well'}" for name, m, *_ in STRONG]
    _orders(axis, a["strong_h"], a["strong_error"], a["strong_error_bar"], a["strong_slope"], orders, labels)
    axis.set(ylabel="root mean square error at t = 1", title="Strong order")
    axis.set_ylim(bottom=a["strong_error"].min() / 60)  # room for the legend
    axis.get_legend().set_loc("lower right")


def _plot_weak(axis, a):
    orders, labels = [order for _, order, _ in WEAK], [type(m).__name__ for m, *_ in WEAK]
    for theory in a["weak_theory"]:
        axis.plot(a["weak_fine_h"], theory, "k--", lw=1)
    _orders(axis, a["weak_h"], a["weak_error"], a["weak_error_bar"], a["weak_slope"], orders, labels)
    axis.set(ylabel=r"$|E\,x_h(1)^2 - E\,x(1)^2|$", title="Weak order, OU (dashed: exact recursion)")


def _plot_density(axis, a):
    axis.bar(a["well_x"], a["well_histogram"], np.diff(a["well_x"])[0], color="C0", alpha=0.4, label="SRA1")
    axis.plot(a["well_grid"], a["well_density"], "k", lw=1.2, label=r"$e^{-V/T}/Z$")
    axis.set(xlabel="x", ylabel="stationary density", title="Double well")
    axis.legend(frameon=False, fontsize=9, loc="upper right")


def _plot_escape(axis, a):
    axis.plot(1 / a["escape_curve_temperature"], a["escape_curve"], "k", lw=1.2, label="first-passage integral")
    axis.plot(1 / a["escape_curve_temperature"], a["escape_kramers"], "k:", lw=1.2, label="Kramers")
    axis.errorbar(
        1 / a["escape_temperature"],
        a["escape_rate"],
        5 * a["escape_error"],
        fmt="C0o",
        ms=5,
        label="simulated, ±5 s.e.",
    )
    axis.set_yscale("log")
    axis.set(xlabel="inverse temperature 1/T", ylabel="rate of passage from -1 to 1", title="Escape from a well")
    axis.legend(frameon=False, fontsize=9)


def _plot_fit(axis, a):
    for i, name in enumerate(("rate k", r"amplitude $\sigma$")):
        truth, error = a["fit_truth"][i], a["fit_error"][i]
        axis.axhspan(truth - 5 * error, truth + 5 * error, color=f"C{i}", alpha=0.2, lw=0)
        axis.axhline(truth, color=f"C{i}", ls="--", lw=1)
        axis.plot(a["fit_path"][:, i], f"C{i}", lw=1.5, label=name)
    axis.set(xlabel="step of Adam", ylabel="parameter", title="Recovered through the simulator (band: ±5 s.e.)")
    axis.legend(frameon=False, fontsize=9)
