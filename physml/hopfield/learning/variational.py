r"""Networks of binary weights that are trained as distributions, and learn the next task with the last one as prior.

Weights are independent signs of means $m = \tanh\theta$. A unit adds up many, so by the central limit theorem its field
is Gaussian; with inputs of means $\mu$ and variances s

$$\bar h = \frac1{\sqrt n}\sum_im_i\mu_i, \qquad v = \frac1n\sum_i\bigl[\mu_i^2(1 - m_i^2) + s_i\bigr]$$

Its sign has mean $2\Phi(\bar h/\sqrt v) - 1$ and variance one minus the square of that, which feeds the next layer; the
last field gives the probability $\Phi(y\bar h/\sqrt v)$ of a label. Training minimises over the fields theta

$$F = -\sum_\mu\ln\Phi\Bigl(\frac{y_\mu\bar h_\mu}{\sqrt{v_\mu}}\Bigr) + \lambda\sum_i\mathrm{KL}(m_i|m_i^0), \qquad
  \mathrm{KL} = \tfrac{1+m}2\ln\tfrac{1+m}{1+m^0} + \tfrac{1-m}2\ln\tfrac{1-m}{1-m^0}$$

where the prior $m^0 = \tanh\theta^0$ is zero, or the outcome of the tasks before. One layer with one unit is the binary
perceptron, whose overlaps are those of `theory.variational_tasks`.

**See** Baldassi et al., Phys. Rev. Lett. 120, 268103 (2018); Li, Huang, Zou and Huang, Statistical mechanics of
continual learning (2023).
"""

import math

import jax.numpy as jnp
import optax
from jax.scipy.special import log_ndtr, ndtr
from jaxtyping import Array, Float

from physml.core import check
from physml.core.program import program
from physml.core.special import log_2cosh, sech2
from physml.core.types import Scalar
from physml.hopfield.learning.perceptron import check_examples
from physml.train import minimise

Fields = tuple[Array, ...]  # theta of each layer, (inputs, outputs)


@program
def margins(fields: Fields, inputs: Float[Array, "m n"]) -> Float[Array, " m"]:
    r"""$\bar h/\sqrt v$ of the last unit, for each input: positive where the label +1 is more probable."""
    if fields[0].shape[0] != inputs.shape[1] or fields[-1].shape[1] != 1:
        raise ValueError(f"layers {[f.shape for f in fields]} do not lead from {inputs.shape[1]} inputs to one unit")
    mean, spread, ratio = inputs, jnp.zeros_like(inputs), inputs
    for layer, theta in enumerate(fields):
        m, n = jnp.tanh(theta), theta.shape[0]
        if layer:
            mean = 2 * ndtr(ratio) - 1
            spread = 1 - mean**2
        # sech^2 from the field itself: 1 - m^2 loses the variance of weights that are nearly certain.
        variance = (mean**2 @ sech2(theta) + jnp.sum(spread, 1, keepdims=True)) / n
        ratio = mean @ m / math.sqrt(n) / jnp.sqrt(variance + 1e-6)
    return ratio[:, 0]


@program
def log_likelihood(fields: Fields, inputs: Float[Array, "m n"], labels: Float[Array, " m"]) -> Array:
    """The sum over examples of ln Phi."""
    return jnp.sum(log_ndtr(labels * margins(fields, inputs)))


@program
def kl_divergence(fields: Fields, prior: Fields) -> Array:
    """KL of all weights, finite for every field."""
    one = lambda a, b: jnp.sum(jnp.tanh(a) * (a - b) - log_2cosh(a) + log_2cosh(b))
    return sum((one(a, b) for a, b in zip(fields, prior, strict=True)), jnp.zeros((), fields[0].dtype))


def learn(
    inputs: Float[Array, "m n"],
    labels: Float[Array, " m"],
    prior: Fields,
    *,
    start: Fields | None = None,
    weight: Scalar = 1.0,
    steps: int = 300,
    rate: float = 0.05,
) -> tuple[Fields, Array]:
    r"""One task: fields that minimise F.

    **Arguments.** `labels` +-1; `prior` $\theta^0$, zeros at first, then the fields of the task before; `start`: where
    to begin, by default at the prior, which in a network of several layers must not be zero; `weight` lambda >= 0 of
    the prior; `steps` and `rate` of Adam on all examples. **Returns** the fields and F at each step (steps,).
    **Cost.** Four products of the examples with each layer's weights a step.
    """
    check_examples(inputs, labels)
    check.number(weight, "weight", least=0)
    check.number(rate, "rate", above=0)
    start = prior if start is None else start
    return _learn(inputs, labels, prior, start, weight, check.count(steps, "steps"), rate)


@program
def _learn(inputs, labels, prior, start, weight, steps, rate):
    weight = jnp.asarray(weight, inputs.dtype)
    loss = lambda fields: weight * kl_divergence(fields, prior) - log_likelihood(fields, inputs, labels)
    found = minimise(loss, start, optax.adam(optax.cosine_decay_schedule(rate, steps)), steps=steps)
    return found.x, found.losses
