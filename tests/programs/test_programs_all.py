"""Every public function stands in one of these files, or here with the reason why not."""

import importlib
import inspect
import re
from pathlib import Path

ROOMS = (
    "core", "integrate", "train", "nn", "metrics", "data", "matching", "particles", "dmft", "hopfield",
    "hopfield.theory",
)  # fmt: skip
LEFT_OUT = {
    "bricks, a part of the program that calls them": """status divergence largest solve_linear march scan_range
        gauss_hermite gauss_hermite_grid gauss_legendre gauss_legendre_panels trapezoid_matrix trapezoid_weights bisect
        bracketed descend newton log_2cosh mills normal_tail normalise_log_weights sech2 tanh_family rk4
        adaptive_layer_norm log_jacobian nonnegative over_lanes fill site_paths""",
    "decorators": "program float64_program in_float64",
    "NumPy, nothing is compiled": """jackknife mean_and_error power_law straight_line digits mnist_small
        stationary_density dynamic_temperature threshold_energy row_indices shuffled discrepancy pade""",
    "processes": "launch start_processes",
    "parts of `fit`, and files": "data_parallel local replicate init_state train_step load save",
    "adapters of other libraries, compiled as those are": "from_flax from_blackjax",
    "made of functions that are here": "cusp folds monotone_boltzmann",
}


def test_every_public_function_is_called_twice():
    source = "\n".join(file.read_text() for file in Path(__file__).parent.glob("*.py") if file != Path(__file__))
    named = set(re.findall(r"\w+", source))
    left_out = {name for names in LEFT_OUT.values() for name in names.split()}
    public = {
        name
        for room in ROOMS
        for name, thing in vars(importlib.import_module(f"physml.{room}")).items()
        if not name.startswith("_") and callable(thing) and not inspect.isclass(thing)
    }
    assert len(public) > 200
    assert public - named == left_out & public - named and not left_out - public, (public - named) ^ left_out
