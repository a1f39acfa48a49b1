r"""Learning a quadratic teacher with a network that can do it lazily or by learning features.

$$f(x) = \frac{\alpha}{N}\sum_{i=1}^N \phi(w_i\cdot x), \quad \phi(h) = h + \tfrac\epsilon2 h^2, \quad
  y = \tfrac12(\beta_*\cdot x)^2, \quad x \sim N(0, I_D),\ |\beta_*| = 1$$

The output scale $\alpha$ sets how far the weights must move to fit ($\sim 1/\alpha$: large is lazy), $\epsilon$ how
well the kernel of the first weights suits the task. Grokking is the delay between fitting P points and fitting the
law.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from physml.core import check
from physml.core._status import Checked, Code, Status, status
from physml.core.types import Key, Scalar

ZERO_PREDICTOR = 0.75  # <y^2> = 3/4: the test loss of f = 0


class QuadraticActivation(eqx.Module):
    r"""The activation $\phi(h) = h + \epsilon h^2/2$."""

    eps: Scalar

    def __call__(self, h: Array) -> Array:
        return h + 0.5 * self.eps * h**2


def teacher(h: Array) -> Array:
    r"""$y = h_*^2/2$ of the overlap $h_* = \beta_*\cdot x$."""
    return 0.5 * h**2


class Problem(eqx.Module):
    """Weights `w` (N, D) to start from, teacher `beta` (D,), samples `x` (P, D)."""

    w: Float[Array, "N D"]
    beta: Float[Array, " D"]
    x: Float[Array, "P D"]


def problem(dim: int, width: int, samples: int, *, key: Key, overlap: Scalar = 0.0) -> Problem:
    r"""A random problem: $w_i \sim N(0, I/D) + $ `overlap` $\beta_*$, Gaussian samples, a teacher on the unit
    sphere."""
    dim, width, samples = check.count(dim, "dim"), check.count(width, "width"), check.count(samples, "samples")
    weight_key, beta_key, x_key = jax.random.split(key, 3)
    beta = jax.random.normal(beta_key, (dim,))
    beta = beta / jnp.linalg.norm(beta)
    w = jax.random.normal(weight_key, (width, dim)) / dim**0.5
    return Problem(w + overlap * beta[None, :], beta, jax.random.normal(x_key, (samples, dim)))


def predict(w: Array, x: Array, alpha: Scalar, eps: Scalar) -> Array:
    """f at every row of x (P, D)."""
    return jnp.asarray(alpha * jnp.mean(QuadraticActivation(eps)(x @ w.T), -1))


def test_loss(
    w: Float[Array, "N D"], beta: Float[Array, " D"], alpha: Scalar, eps: Scalar, start: Array | None = None
) -> Float[Array, ""]:
    r"""$\langle(f - y)^2\rangle$ over all x, exactly.

    $$L = \alpha^2|\bar w|^2 + \tfrac12|A|_F^2 + \tfrac14(\operatorname{Tr}A)^2,\quad
      A = \alpha\epsilon M - \beta_*\beta_*^\top,\ \bar w = \tfrac1N\sum_i w_i,\ M = \tfrac1N\sum_i w_iw_i^\top$$

    since $f - y = \alpha\,\bar w\cdot x + \tfrac12x^\top Ax$, and odd and even parts do not meet. The full mean
    square: no factor 1/2. `start`: weights whose output is taken off, $f(w) - f(w_0)$: $\bar w$ and M are then
    differences. **Cost.** N D min(N, D).
    """
    n, dim = w.shape
    if n < dim and start is None:
        gram = w @ w.T
        return overlap_loss(gram, w @ beta, alpha, eps, norm=beta @ beta)
    mean, second = jnp.mean(w, 0), w.T @ w / n
    if start is not None:
        mean, second = mean - jnp.mean(start, 0), second - start.T @ start / n
    A = alpha * eps * second - beta[:, None] * beta[None, :]
    return jnp.asarray(alpha**2 * jnp.sum(mean**2) + 0.5 * jnp.sum(A**2) + 0.25 * jnp.trace(A) ** 2)


test_loss.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever collects names


def overlap_loss(gram: Array, m: Array, alpha: Scalar, eps: Scalar, norm: Scalar = 1.0) -> Array:
    r"""`test_loss` from $w_i\cdot w_j$ (..., N, N), $w_i\cdot\beta_*$ (..., N) and $|\beta_*|^2$ alone."""
    mean = lambda a, axis: jnp.mean(a, axis)
    strength = alpha * eps
    square = strength**2 * mean(gram**2, (-2, -1)) - 2 * strength * mean(m**2, -1) + norm**2
    trace = strength * mean(jnp.diagonal(gram, axis1=-2, axis2=-1), -1) - norm
    return jnp.asarray(alpha**2 * mean(gram, (-2, -1)) + 0.5 * square + 0.25 * trace**2)


def kernel_alignment(w: Array, x: Array, y: Array, eps: Scalar) -> Array:
    r"""How well the tangent kernel suits the labels: $\frac{y^\top Ky}{|K|_F|y|^2}$, both centred over the samples, for
    $K_{\mu\nu} = \frac1N\sum_i\phi'(w_i\cdot x_\mu)\phi'(w_i\cdot x_\nu)\,x_\mu\cdot x_\nu$. In [0, 1]."""
    slope = 1 + eps * (x @ w.T)
    K = (slope @ slope.T) * (x @ x.T)
    K = K - jnp.mean(K, 0)[None, :]
    K = K - jnp.mean(K, 1)[:, None]
    y = y - jnp.mean(y)
    return y @ K @ y / (jnp.linalg.norm(K) * jnp.sum(y**2))


def weight_alignment(w: Array, beta: Array) -> Array:
    r"""Share of the weights' power along the teacher, $\sum_i(w_i\cdot\beta_*)^2/\sum_i|w_i|^2$: 1/D at random
    weights."""
    return jnp.sum((w @ beta) ** 2) / (jnp.sum(w**2) * jnp.sum(beta**2))


class TrainingRun(Checked):
    """A run at the times `t` (saved,): losses `train` and `test` (mean squares), alignments of `kernel` and `weights`
    with the teacher, the last weights `w`, and `status` (`diverged` with the index of the saved time)."""

    computation: ClassVar[str] = "train"
    counted: ClassVar[str] = "saved time"

    t: Array
    train: Array
    test: Array
    kernel: Array
    weights: Array
    w: Array
    status: Status


def train(
    problem: Problem,
    alpha: Scalar,
    eps: Scalar,
    *,
    steps: int,
    step_size: float = 0.4,
    save_every: int = 1,
    centred: bool = False,
) -> TrainingRun:
    r"""Full-batch gradient descent on $\frac1{2P}\sum_\mu(f - y)^2$ with step $\eta N/\alpha^2$.

    $$w_i \leftarrow w_i - \frac{\eta}{\alpha P}\sum_\mu (f_\mu - y_\mu)\,\phi'(w_i\cdot x_\mu)\,x_\mu,
      \qquad t = \eta k$$

    so that f moves at a speed that does not depend on $\alpha$ or N. Batches of problems, alphas or eps: `jax.vmap`.

    **Arguments.** `centred`: the network is $f(w) - f(w_0)$, which starts at zero, so that large $\alpha$ is lazy;
    otherwise a first output of order $\alpha$ must be unlearned and moves the weights by O(1). `steps`, `save_every`:
    static; save_every must divide steps. `step_size`: $\eta$; stable below about $2/(1 + \sqrt{D/P})^2$, less where
    features grow. **Cost.** 4 N D P flops a step; a saved time P^2 (N + D) more.
    **See** Kumar, Bordelon, Gershman and Pehlevan, Grokking as the transition from lazy to rich training dynamics
    (2024).
    """
    steps = check.count(steps, "steps")
    save_every = check.count(save_every, "save_every", divides=steps)
    check.within(step_size, "step_size", above=0)
    x, beta = problem.x, problem.beta
    y = teacher(x @ beta)
    count = len(x)
    start = problem.w if centred else None
    goal = y + predict(problem.w, x, alpha, eps) if centred else y

    def measure(w):
        train = jnp.mean((predict(w, x, alpha, eps) - goal) ** 2)
        return train, test_loss(w, beta, alpha, eps, start), kernel_alignment(w, x, y, eps), weight_alignment(w, beta)

    def step(w, _):
        h = x @ w.T
        error = alpha * jnp.mean(QuadraticActivation(eps)(h), -1) - goal
        force = (error[:, None] * (1 + eps * h)).T @ x
        return w - step_size / (alpha * count) * force, None

    def block(w, _):
        w, _ = lax.scan(step, w, length=save_every)
        return w, measure(w)

    w, saved = lax.scan(block, problem.w, length=steps // save_every)
    first = measure(problem.w)
    train, test, kernel, aligned = (jnp.concatenate([a[None], b]) for a, b in zip(first, saved, strict=True))
    t = step_size * save_every * jnp.arange(steps // save_every + 1).astype(x.dtype)
    bad = ~jnp.isfinite(train)
    outcome = status(jnp.where(bad.any(), Code.diverged, Code.ok), jnp.where(bad.any(), jnp.argmax(bad), len(t) - 1))
    return TrainingRun(t, train, test, kernel, aligned, w, outcome)


def threshold_time(t: Float[Array, " saved"], loss: Float[Array, " saved"], level: Scalar) -> Float[Array, ""]:
    """First time at which `loss` is below `level`, between saved times by interpolation of log loss; inf if never."""
    below = loss < level
    k = jnp.argmax(below)
    before = jnp.maximum(k - 1, 0)
    ratio = jnp.log(loss[before] / level) / jnp.log(loss[before] / jnp.where(k > 0, loss[k], 0.5 * loss[before]))
    first = jnp.where(k > 0, t[before] + ratio * (t[k] - t[before]), t[0])
    return jnp.where(below.any(), first, jnp.inf)
