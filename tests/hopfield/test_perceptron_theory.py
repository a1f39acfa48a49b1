"""The binary perceptron by quadrature: known transitions, the planted entropy, derivatives, branches and their ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core._status import Code, Failure
from physml.hopfield.theory.perceptron import (
    output,
    planted_entropy,
    random_label_capacity,
    student_transitions,
    teacher_student,
)


def test_known_loads():
    """Perfect generalisation at 1.245 and the spinodal at 1.493; the capacity of Krauth and Mezard, .833."""
    with jax.enable_x64(True):
        first, spinodal = student_transitions()
        assert abs(first - 1.2447) < 5e-5 and abs(spinodal - 1.4926) < 5e-5
        assert abs(random_label_capacity() - 0.83308) < 5e-6


@pytest.mark.slow
def test_branches():
    with jax.enable_x64(True):
        before, after = teacher_student(1.2446).check(), teacher_student(1.2448).check()
        assert 0 < before.entropy < 1e-3 and float(after.r) == 1 and float(after.error) == 0
        poor, unstable = teacher_student(1.3, branch="poor").check(), teacher_student(1.3, branch="unstable").check()
        assert poor.entropy < 0 and poor.r < unstable.r < 1
        assert abs(poor.error - np.arccos(poor.r) / np.pi) < 1e-12
        none = teacher_student(0.0).check()
        assert abs(none.entropy - np.log(2)) < 1e-12 and abs(none.r) < 1e-12 and abs(none.error - 0.5) < 1e-12
        gone = teacher_student(1.5, branch="poor")
        assert int(gone.status.code) == Code.unphysical and np.isnan(gone.r)
        with pytest.raises(Failure, match="teacher_student"):
            gone.check()
        assert teacher_student(1.5, branch="perfect").entropy == 0


def test_few_examples():
    """To first order in alpha, r = alpha 2 / pi and each example halves the solutions."""
    with jax.enable_x64(True):
        out = teacher_student(1e-4)
        assert abs(out.r / (2e-4 / np.pi) - 1) < 1e-3
        assert abs((out.entropy - np.log(2)) / (-1e-4 * np.log(2)) - 1) < 1e-3


def test_slope_in_alpha():
    with jax.enable_x64(True):
        e = 1e-5
        slope = jax.grad(lambda a: teacher_student(a).r)(0.8)
        assert abs(slope / ((teacher_student(0.8 + e).r - teacher_student(0.8 - e).r) / (2 * e)) - 1) < 1e-6


def test_planted_entropy():
    """Its maximum is the typical solution, with the typical entropy; its slope is the derivative; without examples it
    is the entropy of mixing."""
    with jax.enable_x64(True):
        r = teacher_student(0.8).r
        top = planted_entropy(0.8, r)
        assert abs(top.slope) < 1e-9 and abs(top.q - r) < 1e-9
        assert abs(top.entropy - teacher_student(0.8).entropy) < 1e-9
        e, at = 1e-5, lambda r: planted_entropy(0.8, r)
        numeric = (at(0.4 + e).entropy - at(0.4 - e).entropy) / (2 * e)
        assert abs(at(0.4).slope / numeric - 1) < 1e-6
        assert abs(jax.grad(lambda r: at(r).entropy)(0.4) / numeric - 1) < 1e-6
        up = 0.65
        assert abs(planted_entropy(0.0, 0.3).entropy + up * np.log(up) + (1 - up) * np.log(1 - up)) < 1e-9


def test_output_is_the_gradient_of_its_energy():
    """The averages by parts against differentiation of E; exchanging q and r is noticed."""
    with jax.enable_x64(True):
        q, r = jnp.asarray(0.5), jnp.asarray(0.45)
        out = jax.jit(output)(q, r, 1 - q)
        by_q, by_r = jax.jit(jax.grad(lambda q, r: output(q, r, 1 - q).energy, (0, 1)))(q, r)
        assert abs(out.noise + 2 * by_q) < 1e-10 and abs(out.signal - by_r) < 1e-10
        assert abs(out.noise + 2 * by_r) > 0.1


def test_float32_and_errors():
    assert teacher_student(jnp.asarray(0.8, jnp.float32)).r.dtype == jnp.float32
    with pytest.raises(ValueError, match="alpha"):
        teacher_student(-0.1)
    with pytest.raises(ValueError, match="alpha"):
        teacher_student(float("nan"))
    with pytest.raises(ValueError, match="r must"):
        planted_entropy(0.5, 1.0)
