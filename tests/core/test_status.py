"""Statuses: what they say, and that they pass through transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core import Code, Failure, status
from physml.core._status import _REASON
from physml.core.progress import progress_bar


def test_single():
    good = status()
    assert good.ok and good.check() is good
    assert status(Code.precision_limited, 3).check().ok
    with pytest.raises(Failure, match=r"^solve: max_steps at step 7: the adaptive solver used up its steps$"):
        status(Code.max_steps, 7).check("solve")
    with pytest.raises(Failure, match=r"^run: diverged at time 0.7: the state is no longer finite$"):
        status(Code.diverged, 7).check(where=lambda step: f"time {step / 10}")


def test_batched_names_the_first_failure_in_time():
    batch = status(jnp.array([0, 2, 1, 4, 0]), jnp.array([9, 8, 9, 3, 1]))
    assert batch.ok.tolist() == [True, False, True, False, True]
    with pytest.raises(Failure, match=r"^runs: 2 of 5 runs failed; the first, run 3: stagnated at step 3: "):
        batch.check("runs")
    grid = status(jnp.zeros((2, 3), jnp.int32).at[1, 2].set(Code.overflow), jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(Failure, match=r"1 of 6 runs failed; the first, run \(1, 2\): overflow"):
        grid.check()


def test_every_failure_has_a_reason():
    for code in Code:
        if code > Code.precision_limited:
            with pytest.raises(Failure, match=f"{code.name}.*{_REASON[code]}"):
                status(code).check()


def test_repr_and_transformations():
    assert repr(status(Code.diverged, 4)) == "Status(diverged, step=4)"
    many = jax.jit(jax.vmap(lambda c: status(c, 1)))(jnp.array([0, 0, 2]))
    assert many.code.dtype == many.step.dtype == jnp.int32
    assert repr(many) == "Status({'ok': 2, 'diverged': 1})"
    seen = []

    @jax.jit
    def inside(code):
        seen.append(repr(status(code)))
        return status(code).check()

    with pytest.raises(ValueError, match="outside jit"):
        inside(np.int32(0))
    assert seen == ["Status(traced)"]


def test_progress_bar(capsys):
    with progress_bar(10, "label", show=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
    with progress_bar(10, "label") as bar:
        bar.update(3)
    assert "label" in capsys.readouterr().err
