"""Two processes and one: the same numbers, one checkpoint, and an end within seconds when one of them dies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_refused

from physml import train

PROGRAM = Path(__file__).parent / "program.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


def launch(folder, processes, fate="run", devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "physml", "launch", "--processes", str(processes), str(PROGRAM), str(folder), fate]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=140)


def found(folder, rank=0):
    return dict(np.load(folder / f"found{rank}.npz"))


def same(a, b, exact):
    for name in ("model", "loss", "mean", "position", "end"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4 * (name not in exact), atol=1e-5 * (name not in exact))


def test_two_processes_agree_with_one_and_continue_after_a_death(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    done = launch(one, 1, devices=2)
    assert done.returncode == 0, done.stderr[-3000:]
    start = time.monotonic()
    died = launch(two, 2, "die")
    assert died.returncode == 128 + 9 and "process 1 of 2 was killed by signal 9" in died.stderr, died.stderr[-3000:]
    assert time.monotonic() - start < 60 and not (two / "found0.npz").exists()
    done = launch(two, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    # Chains and paths know nothing of each other: the same bits. Sums of gradients come in another order.
    assert found(one)["devices"] == found(two)["devices"] == 2
    same(found(one), found(two), exact=("position", "end"))
    same(found(two), found(two, 1), exact=("model", "loss", "mean", "position", "end"))
    # The checkpoints of two processes are those of one, on two devices or on four.
    steps = sorted(int(path.name) for path in (two / "checkpoints").iterdir() if path.name.isdigit())
    assert steps == [20, 40, 60]
    for devices in (2, 4):
        (two / "found0.npz").unlink()
        done = launch(two, 1, devices=devices)
        assert done.returncode == 0, done.stderr[-3000:]
        np.testing.assert_array_equal(found(two)["model"], found(two, 1)["model"])


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_agree_with_one(devices):
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    program = PROGRAM.with_name("devices.py")
    done = subprocess.run([sys.executable, str(program)], env=env, capture_output=True, text=True, timeout=200)
    assert f"{devices} devices agree with one" in done.stdout, done.stderr[-3000:]


def test_a_recipe_on_two_processes(tmp_path):
    """The same claims as one process makes, up to the order of sums."""
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    run = [sys.executable, "-m", "physml", "run", "nonequilibrium", "--smoke", "--no-progress"]
    metrics = []
    for options in ([], ["--processes", "2"]):
        out = tmp_path / str(len(metrics))
        done = subprocess.run([*run, "--out", str(out), *options], env=env, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr[-3000:]
        metrics.append(json.loads((out / "metrics.json").read_text()))
    one, two = ({c["quantity"]: c["value"] for c in m["claims"]} for m in metrics)
    assert one.keys() == two.keys() and len(one) > 2
    assert done.stdout.count("all claims hold") == 1


def test_mistakes(monkeypatch):
    assert_refused(lambda: train.start_processes("localhost:1"), "all three")
    assert_refused(lambda: train.start_processes(timeout=0), "timeout")
    assert_refused(lambda: train.launch(["x.py"], 0), "processes")
    for name in (
        "SLURM_NTASKS",
        "OMPI_COMM_WORLD_SIZE",
        "JAX_COORDINATOR_ADDRESS",
        "JOBSET_NAME",
        "TPU_WORKER_HOSTNAMES",
    ):
        monkeypatch.delenv(name, raising=False)
    assert train.start_processes() == 0
