r"""The light Schrodinger bridge: a Gaussian-mixture potential that makes the whole bridge closed.

For the cost $|x_0 - x_1|^2/2$ at temperature $\epsilon$ every entropic plan is a product
$\pi(x_0, x_1) \propto e^{x_0 \cdot x_1/\epsilon}\, u(x_0)\, v(x_1)$. With
$v = \sum_k a_k N(r_k, \epsilon S_k)$, $S_k$ diagonal, the conditional plan is

$$\pi(x_1 | x_0) = \sum_k w_k(x_0)\, N(r_k + S_k x_0, \epsilon S_k),\qquad
  \ln w_k = \ln a_k + \frac{x_0^\top S_k x_0 + 2 r_k^\top x_0}{2\epsilon} - \ln c(x_0),$$

and the drift of the bridge, from the same Gaussian integrals (derived in the theory pages),

$$g(t, x) = \sum_k w_k(t, x)\, \frac{r_k + (S_k - 1) x}{D_k},\quad D_k = 1 + (S_k - 1) t,\quad
  \ln w_k = \ln a_k + \tfrac12 \sum_d \Big[\frac{(S_k - 1) x^2 + 2 x r_k - t r_k^2}{\epsilon D_k} - \ln D_k\Big] + c,$$

which is regular up to t = 1. **See** Korotin, Gushchin and Burnaev, Light Schrodinger bridge (2024).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from physml.core import check
from physml.core.program import program
from physml.core.progress import progress_bar
from physml.core.types import Key, Scalar
from physml.integrate import Trajectory
from physml.matching.bridges.gaussian_plan import simulate_bridge


class Conditional(NamedTuple):
    """The Gaussian mixture x1 | x0: log-weights (K,), means (K, d), diagonal variances (K, d)."""

    log_weights: Array
    means: Array
    variances: Array


class LightBridge(eqx.Module):
    r"""An entropic plan and its bridge: `log_a` (K,), `r` (K, d), `log_s` (K, d), temperature `epsilon`."""

    log_a: Array
    r: Array
    log_s: Array
    epsilon: Array

    @program
    def conditional(self, x: Array) -> Conditional:
        """The law of x1 given one source sample x (d,)."""
        s = jnp.exp(self.log_s)
        return Conditional(self._log_weights(0.0, x), self.r + s * x[None, :], self.epsilon * s)

    @program
    def sample(self, x: Array, *, key: Key) -> Array:
        """One x1 for one source sample x (d,), exactly; batches by vmap over (x, key)."""
        which, normal = jax.random.split(key)
        law = self.conditional(x)
        k = jax.random.categorical(which, law.log_weights)
        return law.means[k] + jnp.sqrt(law.variances[k]) * jax.random.normal(normal, x.shape, x.dtype)

    @program
    def mean(self, x: Array) -> Array:
        """The barycentric projection E[x1 | x0 = x]."""
        law = self.conditional(x)
        return jnp.exp(law.log_weights) @ law.means

    @program
    def drift(self, t: Scalar, x: Array, args: PyTree = None) -> Array:
        r"""The drift of the bridge $dx = g\,dt + \sqrt\epsilon\,dW$ at one (t, x), t in [0, 1]."""
        t = jnp.asarray(t, x.dtype)
        s1 = jnp.expm1(self.log_s)
        pull = (self.r + s1 * x[None, :]) / (1.0 + s1 * t)
        return jnp.exp(self._log_weights(t, x)) @ pull

    def simulate(self, x: Array, ts: Array, *, key: Key) -> Trajectory:
        """The bridge from one source sample along the times ts, by Euler and Maruyama; `.xs` (len(ts), d)."""
        return simulate_bridge(self.drift, self.epsilon, x, ts, key=key)

    @program
    def log_normaliser(self, x: Array) -> Array:
        """ln c(x), the log-partition function of the conditional plan."""
        return jax.scipy.special.logsumexp(self._energies(0.0, x))

    @program
    def log_potential(self, y: Array) -> Array:
        """ln v(y)."""
        var = self.epsilon * jnp.exp(self.log_s)
        log_n = -0.5 * ((y[None, :] - self.r) ** 2 / var + jnp.log(2 * jnp.pi * var)).sum(1)
        return jax.scipy.special.logsumexp(self.log_a + log_n)

    def _energies(self, t: Any, x: Array) -> Array:
        s1 = jnp.expm1(self.log_s)
        d = 1.0 + s1 * t
        quadratic = (s1 * x[None, :] ** 2 + 2.0 * x[None, :] * self.r - t * self.r**2) / (self.epsilon * d)
        # At t = 0 the terms without s drop from the weights; |x|^2 is put back so that c(x) is the paper's.
        shift = 0.5 * jnp.sum(x * x) / self.epsilon
        return self.log_a + 0.5 * (quadratic - jnp.log(d)).sum(1) + shift

    def _log_weights(self, t: Any, x: Array) -> Array:
        return jax.nn.log_softmax(self._energies(t, x))


@program
def bridge_loss(plan: LightBridge, batch: tuple[Array, Array], *, key: Key | None = None) -> Array:
    r"""$E_{x_0} \ln c(x_0) - E_{x_1} \ln v(x_1)$: KL of the true plan to this one, up to a constant (their eq. 12).

    Means over the rows of a batch (x0 (n, d), x1 (m, d)). The sums over d are matrix products, so that no array has
    more than batch x K entries; beside `log_normaliser` and `log_potential`, which take differences first, they lose
    the digits of |x1|^2 / (epsilon S). Rows go last, where a CPU vectorises over them.
    """
    x0, x1 = (x.T for x in batch)
    s, eps = jnp.exp(plan.log_s), plan.epsilon
    log_c = plan.log_a[:, None] + (0.5 * s @ (x0 * x0) + plan.r @ x0) / eps
    precision = 1.0 / (eps * s)
    norm = plan.log_a - 0.5 * (plan.r**2 * precision - jnp.log(precision / (2 * jnp.pi))).sum(1)
    log_v = norm[:, None] - 0.5 * precision @ (x1 * x1) + (plan.r * precision) @ x1
    return jnp.mean(jax.nn.logsumexp(log_c, axis=0)) - jnp.mean(jax.nn.logsumexp(log_v, axis=0))


def light_bridge(
    x0: Array | Callable,
    x1: Array | Callable,
    *,
    epsilon: Scalar,
    components: int = 50,
    key: Key,
    steps: int = 3000,
    batch_size: int = 512,
    growth: int = 16,
    learning_rate: Scalar = 0.05,
    progress: bool = False,
) -> LightBridge:
    r"""Fit the Schrodinger bridge between two laws, at temperature epsilon, by maximum likelihood.

    Adam acts on the image of the source's mean, $c_k = r_k + S_k m$, in standard deviations of the data, on
    $\ln S_k$, and on $b_k = \ln a_k + [\tfrac12 \sum_d S_k (m^2 + V) + r_k \cdot m]/\epsilon$, the mean exponent of
    component k over the source (mean m, variances V): moving S or r then leaves the components balanced.
    In three stages the batch grows to `growth` times its size and the rate falls; the result is an average over the
    last stage. Small batches find the components, large ones their masses.

    **Arguments.** `x0`, `x1`: unpaired samples (n, d), (m, d), or samplers `x0(key) -> (batch, d)` that compile and
    bring fresh samples at every step. `components`: K. `steps`: in all. `batch_size`: rows taken from arrays at first;
    of samplers it is what they return. `growth`: 1 for one stage. `learning_rate`: of Adam, at the start of a cosine.
    **Returns** a `LightBridge` with `sample`, `drift`, `conditional`.
    **Cost** O(batch K d) a step. **Accuracy.** At small epsilon the plan is close to a map with jumps, whose place
    is known no better than the masses of the components, to $n^{-1/2}$: there n samples bind, and a sampler is worth
    having. **Errors** `ValueError` for samples of different dimension, epsilon <= 0, steps < 3.
    """
    epsilon = check.number(epsilon, "epsilon", above=0)
    components, steps = check.count(components, "components"), check.count(steps, "steps", least=3)
    growth = check.count(growth, "growth")
    start_key, fit_key = jax.random.split(key)
    key0, key1, start_key = jax.random.split(start_key, 3)
    sample0, some0 = _source(x0, batch_size, key0)
    sample1, some1 = _source(x1, batch_size, key1)
    if some0.ndim != 2 or some1.ndim != 2 or some0.shape[1] != some1.shape[1]:
        raise ValueError(f"x0 and x1 must be (n, d) and (m, d); got {some0.shape} and {some1.shape}")
    model = _start(some0, some1, epsilon, components, start_key)
    rate, total = jnp.asarray(learning_rate, some1.dtype), jnp.asarray(steps, some1.dtype)
    stages = 3 if growth > 1 else 1
    with progress_bar(steps, "light_bridge", "step", show=progress) as bar:
        for stage in range(stages):
            times = jnp.int32(round(growth ** (stage / 2)))
            first, end = stage * steps // stages, (stage + 1) * steps // stages
            carry = (model, _ADAM.init(model.free), model.free)
            for begin in range(first, end, 500 if progress else steps):
                last = min(end, begin + 500) if progress else end
                ks = (jnp.int32(first), jnp.int32(begin), jnp.int32(last))
                carry = _descend(carry, (sample0, sample1), times, ks, rate, total, fit_key)
                bar.update(last - begin)
            model = eqx.tree_at(lambda m: m.free, carry[0], carry[2] if stage == stages - 1 else carry[0].free)
    return model.plan()


_ADAM = optax.scale_by_adam(b2=0.99)


@eqx.filter_jit
def _descend(carry, samples, times, ks, rate, total, key):
    """Steps k = begin, ..., last - 1 of a stage that started at `first`, on `times` batches each.

    Sizes of the stages are traced, so one program serves all stages, and all calls of one shape.
    """
    first, begin, last = ks

    def loss(free, model, key):
        batch = tuple(sample(k) for sample, k in zip(samples, jax.random.split(key), strict=True))
        return bridge_loss(eqx.tree_at(lambda m: m.free, model, free).plan(), batch)

    def step(k, carry):
        model, state, average = carry
        more = lambda i, g: jax.tree.map(
            jnp.add, g, jax.grad(loss)(model.free, model, jax.random.fold_in(jax.random.fold_in(key, k), i))
        )
        gradient = jax.lax.fori_loop(0, times, more, jax.tree.map(jnp.zeros_like, model.free))
        with jax.numpy_dtype_promotion("standard"):  # optax divides by 1 - b**count, of mixed types
            updates, state = _ADAM.update(jax.tree.map(lambda g: g / times.astype(g.dtype), gradient), state)
        # A cosine down to a hundredth; the average forgets its start within the first tenth of the stage.
        lr = rate * (0.01 + 0.495 * (1 + jnp.cos(jnp.pi * k.astype(total.dtype) / total)))
        free = jax.tree.map(lambda p, u: p - lr * u, model.free, updates)
        age = (k - first).astype(total.dtype)
        keep = jnp.minimum(0.995, (1 + age) / (10 + age))
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, free)
        return eqx.tree_at(lambda m: m.free, model, free), state, average

    return jax.lax.fori_loop(begin, last, step, carry)


class _Rows(eqx.Module):
    """A sampler of rows of an array."""

    x: Array
    size: int = eqx.field(static=True)

    def __call__(self, key: Key) -> Array:
        return self.x[jax.random.randint(key, (self.size,), 0, len(self.x))]


class _Balanced(eqx.Module):
    """The parameters that are trained, `free`: balance, image and log_s; with the moments that scale them."""

    free: tuple[Array, Array, Array]
    mean: Array
    variance: Array
    scale: Array
    epsilon: Array

    @eqx.filter_jit
    def plan(self) -> LightBridge:
        balance, image, log_s = self.free
        s = jnp.exp(log_s)
        r = self.scale * image - s * self.mean
        exponent = (0.5 * s * (self.mean**2 + self.variance) + r * self.mean).sum(1) / self.epsilon
        return LightBridge(balance - exponent, r, log_s, self.epsilon)


def _source(x: Array | Callable, batch_size: int, key: Key) -> tuple[Callable, Array]:
    """A sampler of batches, and samples to start from: the array, or some 5000 fresh ones."""
    if callable(x):
        few = x(key)
        if few.ndim != 2:
            return x, few
        few = jax.lax.map(x, jax.random.split(key, -(-5000 // len(few))))
        return x, few.reshape(-1, few.shape[-1])
    x = jnp.asarray(x)
    return _Rows(x, batch_size), x


@eqx.filter_jit
def _start(x0: Array, x1: Array, epsilon: Scalar, components: int, key: Key) -> _Balanced:
    """Components that carry the mean of the source to data points, balanced by Sinkhorn to one mass under the source.

    The balance differs between components by up to |r|^2 / epsilon, too far for the steps of Adam.
    """
    key, few = jax.random.split(key)
    mean, variance, spread = x0.mean(0), x0.var(0), x1.var(0)
    eps = jnp.asarray(epsilon, x1.dtype)
    y = x1[jax.random.randint(key, (components,), 0, len(x1))]
    # Each component is to be narrow in units of the data: eps s = var / 10, and s at most 1.
    log_s = jnp.log(jnp.clip(0.1 * spread / eps, 1e-3, 1.0))
    scale = jnp.sqrt(jnp.maximum(spread, jnp.finfo(spread.dtype).tiny))
    row = lambda v: v[None, :]
    balance = jnp.zeros(components, x1.dtype)
    log_s = jnp.broadcast_to(row(log_s), y.shape)
    model = _Balanced((balance, y / row(scale), log_s), row(mean), row(variance), row(scale), eps)
    x0 = x0[jax.random.randint(few, (4096,), 0, len(x0))].T
    return eqx.tree_at(lambda m: m.free[0], model, _one_mass(model.plan(), x0))


def _one_mass(plan: LightBridge, x0: Array) -> Array:
    """What to add to ln a, for each component to have the mass 1/K over the columns of x0."""
    energy = plan.log_a[:, None] + (0.5 * jnp.exp(plan.log_s) @ (x0 * x0) + plan.r @ x0) / plan.epsilon

    def sweep(_, b):
        log_w = jax.nn.log_softmax(energy + b[:, None], axis=0)
        return b - jax.nn.logsumexp(log_w, axis=1) + jnp.log(jnp.asarray(x0.shape[1] / len(b), b.dtype))

    return jax.lax.fori_loop(0, 300, sweep, jnp.zeros_like(plan.log_a))
