"""The command line: what it prints, writes and returns."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from physml import cli, recipes
from physml.metrics import Estimate
from physml.recipes import Claim, Noticed, RecipeInfo, Result, Sabotage, Settings, Study, experiment, setting


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    value: float = setting(0.5, least=-10.0)
    count: int = 3


def fake(name, value):
    """A recipe that takes no time, whose one claim holds for value <= 1."""

    @experiment
    def run(study, config, key):
        if config.value < 0:
            raise ValueError(f"config.value must not be negative, got {config.value}")
        study.at_most("value", config.value, 1.0, "by hand")
        study.measure(twice=2 * config.value)
        if config.count == 99:
            raise KeyboardInterrupt

    def plot(result):
        import matplotlib.pyplot as plt

        return plt.figure()

    module = type(sys)(name)
    module.__doc__ = "A fake."
    module.INFO = RecipeInfo("p", "c", "1 s")
    module.Config, module.PAPER, module.SMOKE = Config, Config(value), Config(0.1)
    module.run, module.plot = run, plot
    return module


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setattr(recipes, "load_recipe", lambda name: fake(name, 0.5))


def test_a_run_writes_what_it_printed(recipe, tmp_path, capsys):
    assert cli.main(["run", "fake", "--out", str(tmp_path), "--seed", "3", "--config.value", "0.25"]) == 0
    assert "holds  value: 0.25" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text()) == {"value": 0.25, "count": 3, "seed": 3}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["ok"] and metrics["claims"][0]["holds"] and metrics["metrics"] == {"twice": 0.5}
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_a_failing_claim_is_exit_status_1(recipe, tmp_path, capsys):
    assert cli.main(["run", "fake", "--out", str(tmp_path), "--config.value", "2"]) == 1
    assert "FAILS" in capsys.readouterr().out


def test_smoke_takes_the_small_configuration(recipe, tmp_path, capsys):
    assert cli.main(["run", "fake", "--smoke", "--out", str(tmp_path)]) == 0
    assert "value: 0.1" in capsys.readouterr().out


def test_full_takes_the_largest_configuration(monkeypatch, tmp_path, capsys):
    recipe = fake("fake", 0.5)
    recipe.FULL = Config(0.05)
    monkeypatch.setattr(recipes, "load_recipe", lambda name: recipe)
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
        (["--config.count", "0"], "config.count must be positive"),
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


def test_an_interrupted_run_keeps_what_it_found(recipe, tmp_path, capsys):
    assert cli.main(["run", "fake", "--out", str(tmp_path), "--config.count", "99"]) == 130
    assert "stopped after 1 claims" in capsys.readouterr().out
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["claims"][0]["quantity"] == "value" and not saved["complete"]


def test_a_folder_that_cannot_be_written_costs_no_run(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["run", "fake", "--out", str(tmp_path / "file" / "below")]) == 2
    captured = capsys.readouterr()
    assert "--out" in captured.err and "holds" not in captured.out


def test_show_prints_the_last_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["show", "digits"]) == 2
    assert "no run is written" in capsys.readouterr().err
    monkeypatch.setattr(recipes, "load_recipe", lambda name: fake(name, 0.5))
    assert cli.main(["run", "digits", "--smoke"]) == 0
    printed = capsys.readouterr().out.splitlines()[0]
    assert cli.main(["show", "digits"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == printed
    assert cli.main(["show", "nothing"]) == 2


def test_unknown_recipe_room_and_command(capsys):
    assert cli.main(["run", "digit"]) == 2
    assert "digits" in capsys.readouterr().err
    assert cli.main(["run", "nosuchthing"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert cli.main(["list", "kitchen"]) == 2
    assert "the rooms are" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["jump"])
    assert stop.value.code == 2
    assert cli.main(["run"]) == 2


def test_list_names_paper_claim_and_time(capsys):
    assert cli.main(["list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name in recipes.names():
        info = recipes.info(name)
        assert all(words in printed for words in (name, info.paper, info.claim, info.time))
    assert cli.main(["list", "hopfield"]) == 0
    printed = capsys.readouterr().out
    assert "multitasking" in printed and "flexible_diffusion" not in printed


def test_info_is_read_without_importing_the_recipe():
    code = "import sys; from physml import recipes; print(recipes.info('digits').time, 'jax' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip().endswith("False")
    assert recipes.info("pfgm") == recipes.load_recipe("pfgm").INFO


# ---- the protocol


def test_claims_can_fail():
    study = Study("trial")
    study.at_most("a", 1.0, 1.0, "s")
    study.at_most("b", 1.1, 1.0, "s")
    study.at_least("c", 1.0, 1.0, "s")
    study.at_least("d", 0.9, 1.0, "s")
    study.near("e", 1.1, 1.0, "s", atol=0.2)
    study.near("f", 1.3, 1.0, "s", rtol=0.2)
    study.near("g", Estimate(1.3, 0.1), 1.0, "s", sigmas=4)
    study.near("h", 1.3, 1.0, "s", error=0.1, sigmas=2)
    holds = {claim.quantity: claim.holds for claim in study.claims}
    assert holds == dict(a=True, b=False, c=True, d=False, e=True, f=False, g=True, h=False)
    assert study.claims[6].error == 0.1
    for relation in ("<=", ">=", "~"):
        assert not Claim("q", float("nan"), relation, 1.0, "s", 10.0).holds
    with pytest.raises(RuntimeError, match=r"b: 1\.1"):
        study.result().check()
    with pytest.raises(ValueError, match="twice"):
        study.at_most("a", 0.0, 1.0, "s")


def test_a_study_may_stop_at_the_first_failure():
    study = Study("trial", stop=True)
    study.at_most("a", 0.0, 1.0, "s")
    with pytest.raises(Noticed, match="b: 2"):
        study.at_most("b", 2.0, 1.0, "s")


def test_results_survive_json():
    study = Study("trial")
    study.near("q", Estimate(1.0, 0.5), 1.0, "s", atol=0.1)
    study.measure(other=np.float32(2.0))
    result = study.result()
    again = Result.from_dict(json.loads(json.dumps(result.as_dict())))
    assert again.claims == result.claims and again.metrics == {"other": 2.0}


def test_settings_check_themselves():
    @dataclasses.dataclass(frozen=True)
    class Sizes(Settings):
        n: int = 3
        shift: float = setting(0.0, least=-1.0, below=1.0)
        kinds: tuple[str, ...] = setting(("a",), choices=("a", "b"))
        steps: tuple[float, ...] = (0.1,)

        def rules(self):
            return ((self.n % 2 == 1, "n must be odd"),)

    assert Sizes().n == 3
    for wrong, said in (
        ({"n": 0}, "config.n must be positive, got 0"),
        ({"shift": -2.0}, "at least -1"),
        ({"shift": 1.0}, "below 1"),
        ({"kinds": ("c",)}, "among a, b"),
        ({"steps": ()}, "at least 1 entries"),
        ({"steps": (0.1, -0.1)}, "config.steps must be positive"),
        ({"n": 4}, "n must be odd"),
    ):
        with pytest.raises(ValueError, match=said):
            Sizes(**wrong)


def test_a_recipe_that_lacks_something_is_told_what():
    recipe = fake("fake", 0.5)
    assert recipes.missing(recipe) == ["SABOTAGE, a Sabotage or a tuple of them"]
    recipe.SABOTAGE = Sabotage("nothing", sys, "path", lambda exact: exact)
    assert not recipes.missing(recipe)
    del recipe.plot
    recipe.SMOKE = {"n": 1}
    assert recipes.missing(recipe) == ["SMOKE, a Settings", "plot, a function"]


def test_importing_physml_is_cheap():
    code = (
        "import time, jax, equinox; start = time.perf_counter(); import physml; physml.core; "
        "print(time.perf_counter() - start)"
    )
    seconds = float(np.min([float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2)]))
    assert seconds < 0.6  # 0.3 s on an idle machine; twice that under a parallel test run
