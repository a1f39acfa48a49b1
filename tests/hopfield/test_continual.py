"""Two tasks in a row: limits in which one task, the planted entropy or plain mixing remain, derivatives, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from physml.core._status import Code, Failure
from physml.hopfield.theory.continual import two_tasks
from physml.hopfield.theory.perceptron import planted_entropy, teacher_student


def test_without_field_task_2_alone_is_learned():
    """q = r2 of the teacher-student problem; the overlaps with the rest follow by products."""
    with jax.enable_x64(True):
        out, alone, first = two_tasks(0.8, 0.6, 0.5, field=0.0).check(), teacher_student(0.6), teacher_student(0.8)
        assert abs(out.r2 - alone.r) < 1e-9 and abs(out.q - alone.r) < 1e-9
        assert abs(out.entropy - alone.entropy) < 1e-9 and abs(out.error2 - alone.error) < 1e-9
        assert abs(out.reference - first.r) < 1e-9
        assert abs(out.p - 0.5 * first.r * alone.r) < 1e-9 and abs(out.r1 - 0.5 * alone.r) < 1e-9


def test_a_perfect_reference_of_the_same_teacher():
    """s(p) is then the planted entropy, and all overlaps with teachers are p."""
    with jax.enable_x64(True):
        out, planted = two_tasks(1.3, 0.6, 1.0, overlap=0.5).check(), planted_entropy(0.6, 0.5)
        assert abs(out.entropy - planted.entropy) < 1e-9 and abs(out.q - planted.q) < 1e-9
        assert abs(out.r1 - 0.5) < 1e-9 and abs(out.r2 - 0.5) < 1e-9


def test_without_examples():
    """w mixes freely at overlap p: s is its entropy, and the teachers are seen through the reference alone."""
    with jax.enable_x64(True):
        out = two_tasks(0.8, 0.0, 0.5, overlap=0.4).check()
        up = 0.7
        assert abs(out.entropy + up * np.log(up) + (1 - up) * np.log(1 - up)) < 1e-9
        assert abs(out.field - np.arctanh(0.4)) < 1e-9
        assert abs(out.r1 - 0.4 * out.reference) < 1e-9 and abs(out.r2 - 0.2 * out.reference) < 1e-9


@pytest.mark.slow
def test_slopes_of_the_potential():
    """ds/dp = -hat p, by differences and by the implicit derivative; the same state from the field."""
    with jax.enable_x64(True):
        e = 1e-5

        def f(x):
            out = two_tasks(0.8, 0.6, x[1], overlap=x[0])
            return jnp.stack([out.entropy, out.r1])

        at = jnp.asarray([0.4, 0.5])
        out, slopes = two_tasks(0.8, 0.6, 0.5, overlap=0.4), jax.jacfwd(f)(at)
        numeric = np.stack([(f(at + d) - f(at - d)) / (2 * e) for d in e * np.eye(2)], 1)
        assert np.max(np.abs(slopes / numeric - 1)) < 1e-6
        assert abs(slopes[0, 0] / -out.field - 1) < 1e-9
        same = two_tasks(0.8, 0.6, 0.5, field=out.field)
        assert abs(same.p - 0.4) < 1e-9 and abs(same.r1 - out.r1) < 1e-9


def test_forgetting():
    """Without the field more is forgotten; unlike teachers make the errors conflict."""
    free, held = two_tasks(0.8, 0.6, 0.5, field=0.0), two_tasks(0.8, 0.6, 0.5, field=0.6)
    assert held.error1 < free.error1 and held.stability < 1
    against = two_tasks(0.8, 0.6, -0.5, field=0.6)
    assert against.error2 > free.error2
    assert against.r1.dtype == jnp.float32


@pytest.mark.slow
def test_errors():
    with pytest.raises(ValueError, match="alpha2"):
        two_tasks(0.8, -0.1, 0.5, field=0.0)
    with pytest.raises(ValueError, match="similarity"):
        two_tasks(0.8, 0.1, 1.5, field=0.0)
    with pytest.raises(ValueError, match="either"):
        two_tasks(0.8, 0.1, 0.5)
    with pytest.raises(ValueError, match="overlap must"):
        two_tasks(0.8, 0.1, 0.5, overlap=1.0)
    with pytest.raises(ValueError, match="field must"):
        two_tasks(0.8, 0.1, 0.5, field=float("nan"))
    lost = two_tasks(0.8, 0.6, 0.5, overlap=0.97)
    assert int(lost.status.code) == Code.unphysical
    with pytest.raises(Failure, match="two_tasks"):
        lost.check()
