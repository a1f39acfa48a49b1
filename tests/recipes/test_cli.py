"""The command line: what it prints, writes and returns."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from physml import cli, recipes
from physml.recipes import Claim, Info, Result, at_least, at_most, close_to


def fake(name, value):
    """A recipe that takes no time, whose one claim holds for value <= 1."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        value: float = 0.5
        count: int = 3

        def __post_init__(self):
            if self.count < 1:
                raise ValueError(f"config.count must be at least 1, got {self.count}")

    def run(config, *, key, progress=False):
        if config.value < 0:
            raise ValueError(f"config.value must not be negative, got {config.value}")
        return Result((at_most("value", config.value, 1.0, "by hand"),), {"value": config.value}, {})

    def plot(result):
        import matplotlib.pyplot as plt

        return plt.figure()

    module = type(sys)(name)
    module.__doc__ = "A fake."
    module.INFO, module.Config, module.PAPER, module.SMOKE = Info("p", "c", "1 s"), Config, Config(value), Config(0.1)
    module.run, module.plot = run, plot
    return module


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setattr(recipes, "load", lambda name: fake(name, 0.5))


def test_a_run_writes_what_it_printed(recipe, tmp_path, capsys):
    assert cli.main(["run", "fake", "--out", str(tmp_path), "--seed", "3", "--config.value", "0.25"]) == 0
    assert "holds  value: 0.25" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text()) == {"value": 0.25, "count": 3, "seed": 3}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["ok"] and metrics["claims"][0]["holds"] and metrics["metrics"] == {"value": 0.25}
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_a_failing_claim_is_exit_status_1(recipe, tmp_path, capsys):
    assert cli.main(["run", "fake", "--out", str(tmp_path), "--config.value", "2"]) == 1
    assert "FAILS" in capsys.readouterr().out


def test_smoke_takes_the_small_configuration(recipe, tmp_path, capsys):
    assert cli.main(["run", "fake", "--smoke", "--out", str(tmp_path)]) == 0
    assert "value: 0.1" in capsys.readouterr().out


def test_full_takes_the_largest_configuration(monkeypatch, tmp_path, capsys):
    recipe = fake("fake", 0.5)
    recipe.FULL = recipe.Config(0.05)
    monkeypatch.setattr(recipes, "load", lambda name: recipe)
    assert cli.main(["run", "fake", "--full", "--out", str(tmp_path)]) == 0
    assert "value: 0.05" in capsys.readouterr().out
    assert cli.main(["run", "fake", "--full", "--smoke", "--out", str(tmp_path)]) == 2
    assert "take one of --smoke and --full" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--config.valeu", "1"], "valeu"),
        (["--config.value", "much"], "much"),
        (["--seed", "x"], "seed"),
        (["--config.value=-1"], "must not be negative"),
        (["--config.count", "0"], "at least 1"),
        (["--full"], "leave --full out"),
    ],
)
def test_bad_fields_and_values_are_exit_status_2(recipe, tmp_path, capsys, arguments, said):
    try:
        code = cli.main(["run", "fake", "--out", str(tmp_path), *arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and said in captured.err + captured.out
    assert not list(tmp_path.iterdir())


def test_unknown_recipe_and_command(capsys):
    assert cli.main(["run", "digit"]) == 2
    assert "digits" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["jump"])
    assert stop.value.code == 2
    assert cli.main(["run"]) == 2


def test_list_names_paper_claim_and_time(capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in recipes.names():
        info = recipes.load(name).INFO
        assert name in printed and info.paper in printed and info.claim in printed and info.time in printed


def test_claims_can_fail():
    assert at_most("q", 1.0, 1.0, "s").holds and not at_most("q", 1.1, 1.0, "s").holds
    assert at_least("q", 1.0, 1.0, "s").holds and not at_least("q", 0.9, 1.0, "s").holds
    assert close_to("q", 1.1, 1.0, 0.2, "s").holds and not close_to("q", 1.3, 1.0, 0.2, "s").holds
    for relation in ("<=", ">=", "~"):
        assert not Claim("q", float("nan"), relation, 1.0, "s", 10.0).holds
    result = Result((at_most("q", 2.0, 1.0, "s"),), {}, {})
    with pytest.raises(RuntimeError, match="q: 2"):
        result.check()


def test_importing_physml_is_cheap():
    code = (
        "import time, jax, equinox; start = time.perf_counter(); import physml; physml.core; "
        "print(time.perf_counter() - start)"
    )
    seconds = float(np.min([float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2)]))
    assert seconds < 0.6  # 0.3 s on an idle machine; twice that under a parallel test run
