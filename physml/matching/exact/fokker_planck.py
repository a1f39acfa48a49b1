r"""Do a velocity and a score belong to one law? The residual of the Fokker-Planck equation.

The law $p_t$ of $\dot x = v$ obeys $\partial_t \ln p + \nabla\!\cdot v + v \cdot \nabla\ln p = 0$. For a potential
$\psi \approx \ln p$ and for a score s the equations that should hold are

$$R = \partial_t \psi + \nabla\!\cdot v + v\cdot\nabla\psi, \qquad
  \mathcal R = \partial_t s + \nabla(\nabla\!\cdot v + v \cdot s), \qquad \mathcal R = \nabla R \text{ if } s =
  \nabla\psi .$$

Where they vanish the flow and every diffusion with this score have the same law; R measures the gap, and penalised in
training it closes the gap. On a one-sided path $v$ is a function of s and the residual is that of the score alone.

**See** Deveney, Stanczuk, Kreusser, Budd and Schoenlieb, Closing the ODE-SDE gap in score-based diffusion models
through the Fokker-Planck equation (2023); Lai et al., FP-Diffusion (2023), for the equation of the score.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from physml.core.derivative import divergence
from physml.core.program import program
from physml.core.types import Field, Scalar


@program
def potential_residual(
    potential: Callable, velocity: Field, t: Scalar, x: Array, args: PyTree = None, *, probe: Array | None = None
) -> Array:
    r"""$R(t, x)$, a scalar, for a potential `psi(t, x, args) -> scalar`; known up to a function of t alone.

    **Arguments.** One sample x and its time. `probe`: of unit covariance, for Hutchinson's divergence. **Cost** d
    tangents of the velocity (one with a probe) and one gradient.
    """
    t = jnp.asarray(t, x.dtype)
    v, div = divergence(lambda x: velocity(t, x, args), x, probe)
    _, slope = jax.jvp(lambda t, x: potential(t, x, args), (t, x), (jnp.ones_like(t), v))
    return slope + div


@program
def score_residual(
    velocity: Field, score: Field, t: Scalar, x: Array, args: PyTree = None, *, probe: Array | None = None
) -> Array:
    r"""$\mathcal R(t, x)$, shaped like x, for a velocity and a score.

    **Arguments.** As `potential_residual`. **Cost** the gradient of d tangents (of one with a probe).
    **Errors** `ValueError` for fields whose output is not shaped like x.
    """
    t = jnp.asarray(t, x.dtype)
    _, change = jax.jvp(lambda t: score(t, x, args), (t,), (jnp.ones_like(t),))
    if change.shape != x.shape:
        raise ValueError(f"the score must return the shape of one sample, {x.shape}; got {change.shape}")

    def rate(x):
        v, div = divergence(lambda x: velocity(t, x, args), x, probe)
        if v.shape != x.shape:
            raise ValueError(f"the velocity must return the shape of one sample, {x.shape}; got {v.shape}")
        return div + jnp.sum(v * score(t, x, args))

    return change + jax.grad(rate)(x)
