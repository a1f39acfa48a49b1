"""The README's Python blocks run, in order, and print what they say."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_blocks_run_and_print_what_they_say():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(blocks) == 5
    space, printed = {}, io.StringIO()
    # A reader's session has jax's default promotion rules.
    with (
        contextlib.redirect_stdout(printed),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for block in blocks:
            exec(block, space)
    limit, var, slope, magnetisation, log_prob, stats = printed.getvalue().split("\n")[:6]
    extrapolated, theory = (float(number) for number in re.findall(r"0\.9\d+", limit)[:2])
    assert extrapolated == pytest.approx(theory, abs=0.01)
    assert float(var) == pytest.approx(2 / 3, abs=0.03)
    assert float(slope) == pytest.approx(-4 / 9, abs=0.03)
    m, dm = map(float, magnetisation.split())
    assert m == pytest.approx(0.8586, abs=1e-3) and dm == pytest.approx(0.3726, abs=1e-3)
    assert -3.0 < float(log_prob) < -1.0
    assert float(re.search(r"512 chains, largest r_hat ([\d.]+)", stats).group(1)) < 1.05


def test_commands_are_one_line_each():
    shell = re.search(r"```sh\n(.*?)```", README.read_text(), flags=re.S).group(1).strip().split("\n")
    assert len(shell) == 2 and "physml run digits" in shell[0] and "pytest" in shell[1]
