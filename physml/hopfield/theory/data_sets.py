r"""Dense Hebbian networks that never see their patterns, only M noisy examples: $\eta^a = \xi\chi^a$, <chi> = r.

With $\rho = (1 - r^2)/(Mr^2)$, the entropy of the data set, and the load a of `dense` (distinct indices):

*Supervised*, $H = -\frac{N}{p}\sum_\mu \hat n_\mu^p$, where $\hat n$ is the overlap with the mean example, scaled to
variance one. The mean is $\xi(1 + \sqrt\rho z)$, so the signal itself is noisy, with
$s = (1 + \rho)^{p/2-1}n^{p-1}$:

$$m = \langle\tanh\beta(s + \sqrt V z)\rangle,\quad V = \rho s^2 + aq^{p-1},\quad n = \frac{m + \rho\chi s}{1 + \rho}$$

*Unsupervised*, $H = -\frac{N}{pMr^p}\sum_{\mu,a} n_{\mu a}^p$. Examples of one pattern overlap by $r^2$, so that
of the M^2 terms of the variance of a field M are larger by $r^{-2p}$; with $\rho_p = (1 - r^{2p})/(Mr^{2p})$
and $\nu = n_a/r$:

$$m = \langle\tanh\beta(\nu^{p-1} + \sqrt V z)\rangle,\quad V = \rho\nu^{2p-2} + a(1 + \rho_p)q^{p-1},\quad
  \nu = m + \rho\chi\nu^{p-1}$$

so M must exceed $r^{-2}$ with a teacher and $r^{-2p}$ without. For finite M the mean of the $\chi^a$ is binomial:
$1 + \sqrt\rho z$ becomes $c = (2k - M)/(Mr)$, and $\rho\chi s$ becomes the average of (c - 1) tanh.

**See** Agliari, Albanese, Alemanno, Alessandrelli, Barra et al., Dense Hebbian neural networks: a replica symmetric
picture of supervised and of unsupervised learning, Physica A (2023).
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from physml.core import check
from physml.core._status import Checked, Status
from physml.core.float64 import float64_program
from physml.core.roots import descend, newton
from physml.core.types import Scalar
from physml.hopfield.theory.replica import check_order, check_state
from physml.hopfield.theory.site import site


class DataSetOrder(Checked):
    r"""`m` overlap with the pattern, which the network never saw; `n` with the mean example (supervised) or $\nu$ with
    one example (unsupervised), scaled to be m where rho = 0; `q`, `noise` variance of the field, `status`."""

    computation: ClassVar[str] = "data sets"

    m: Array
    n: Array
    q: Array
    noise: Array
    status: Status


def entropy(quality: Scalar, count: Scalar, power: int = 1) -> Any:
    r"""$\rho_p = (1 - r^{2p})/(Mr^{2p})$; power 1 is $\rho$."""
    return (1 - quality ** (2 * power)) / (count * quality ** (2 * power))


def data_set(
    p: int,
    load: Scalar,
    temperature: Scalar,
    *,
    quality: Scalar,
    count: int,
    learning: Literal["supervised", "unsupervised"] = "supervised",
    law: Literal["gaussian", "binomial"] = "gaussian",
) -> DataSetOrder:
    r"""The retrieval state of a network trained on `count` = M examples of `quality` = r; see the module.

    **Arguments.** `p` >= 3. `load` >= 0: a, with $K = aN^{p-1}/(p-1)!$. `temperature` >= 0. `law`: of the mean of M
    signs; "binomial" is exact for finite M and takes M + 1 times as long.
    **Returns** the branch reached from m = 1; m = 0 where it does not exist. **Derivatives** in `load`, `temperature`
    and `quality` are implicit.
    """
    check_order(p, "distinct")
    if p < 3:
        raise ValueError(f"p must be at least 3, got {p}: with two spins the noise responds, see amit")
    check_state(load, temperature, "load")
    count = check.count(count, "count")
    check.number(quality, "quality", above=0, most=1)
    check.choice(learning, "learning", ("supervised", "unsupervised"))
    check.choice(law, "law", ("gaussian", "binomial"))
    terms = count if law == "binomial" else None
    return _data_set(p, load, temperature, quality, float(count), learning == "supervised", terms)


@float64_program(static=("p", "supervised", "terms"))
def _data_set(p, load, t, quality, count, supervised, terms):
    rho = entropy(quality, count)
    own = 0.0 if supervised else entropy(quality, count, p)

    def respond(x, load, t, quality):
        """m, chi, n and the variance from (chi, n)."""
        chi, n = x
        q = 1 - t * chi
        s = (1 + rho) ** (p / 2 - 1) * n ** (p - 1) if supervised else n ** (p - 1)
        scale = 1 + rho if supervised else 1.0
        others = load * (1 + own) * q ** (p - 1)
        if terms is None:
            out = site(s, rho * s**2 + others, t)
            return out.m, out.chi, (out.m + rho * out.chi * s) / scale, rho * s**2 + others
        k = np.arange(terms + 1.0)
        up = 0.5 * (1 + quality)
        choose = jax.scipy.special.gammaln(terms + 1.0) - sum(
            jax.scipy.special.gammaln(v + 1.0) for v in (k, terms - k)
        )
        # A perfect teacher leaves one term; the logarithm of its complement must not meet 0.
        weight = jnp.exp(choose + k * jnp.log(up) + (terms - k) * jnp.log(jnp.maximum(1 - up, 1e-300)))
        c = (2 * k - terms) / (terms * quality)
        out = jax.vmap(lambda c: site(s * c, others, t))(c)
        return weight @ out.m, weight @ out.chi, (weight * c) @ out.m / scale, rho * s**2 + others

    step = lambda x: (lambda new: (new[1], new[2]))(respond(x, load, t, quality))
    frozen = jax.lax.stop_gradient(descend(step, (jnp.zeros_like(t), jnp.ones_like(t))))
    x, state = newton(lambda u: jnp.stack(step((u[0], u[1]))) - u, jnp.stack(frozen))
    m, chi, n, noise = respond((x[0], x[1]), load, t, quality)
    return DataSetOrder(m, n, 1 - t * chi, noise, state)
