r"""Kinetic-optimal paths: the Gaussian path to given data along which the flow spends least energy.

On a path $x_t = \alpha x_0 + \beta x_1$ with $x_0 \sim N(0, I)$ the kinetic energy of the flow,
$K = \frac1d \int_0^1 E|v(t, x_t)|^2\, dt$, knows the data through one function of the ratio $s = \beta/\alpha$. Put
$\rho^2 = E|x_1|^2/d$ and use polar coordinates, $\alpha = r\cos\theta$, $\rho\beta = r\sin\theta$. Then (derived in
the theory pages)

$$K = \int_0^1 \dot r^2 + r^2 g(\theta)^2\, \dot\theta^2\, dt, \qquad
  g^2 = \frac{\lambda - \sin^2\theta}{\cos^2\theta} = 1 - \frac{\mathrm{mmse}}{\mathrm{mmse}_{lin}}, \qquad
  \lambda = \frac{E|E[x_1 | x_t]|^2}{E|x_1|^2},$$

$\lambda$ the data separation function. The metric is flat in $(r, \varphi)$ with $\varphi = \int_0^\theta g$: the
optimal path is the straight line from $(1, 0)$ to $(\rho, \Phi)$, and $K = 1 + \rho^2 - 2\rho\cos\Phi$. Points far
apart have $g = 1$, and the line is `linear()`; Gaussian data have $g = 0$ and $K = (1 - \rho)^2$, their transport cost.

**See** Shaul, Chen, Nickel, Le and Lipman, On kinetic optimal probability paths for generative models (2023): the
one-dimensional equation whose solution this is.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from physml.core import check
from physml.core.program import program
from physml.core.quadrature import gauss_legendre
from physml.core.types import Field, Key
from physml.matching.paths.path import Path, trigonometric
from physml.matching.paths.pfgm import StudentNoise, empirical_denoiser


class KineticMetric(eqx.Module):
    r"""What the energy of a path depends on: `scale` $\rho$, and $g(\theta)$ and $\varphi(\theta)$ at `angle` (k,) in
    [0, pi/2]."""

    scale: Array
    angle: Array
    slope: Array
    phi: Array

    @property
    def separation(self) -> Array:
        r"""The data separation function $\lambda = \sin^2\theta + g^2\cos^2\theta$ at `angle`."""
        return jnp.sin(self.angle) ** 2 + (self.slope * jnp.cos(self.angle)) ** 2

    @property
    def minimum(self) -> Array:
        r"""The least energy, $1 + \rho^2 - 2\rho\cos\Phi$."""
        return 1.0 + self.scale**2 - 2.0 * self.scale * jnp.cos(self.phi[-1])

    def energy(self, path: Path, *, nodes: int = 400) -> Array:
        r"""$K$ of a one-sided path, by Gauss-Legendre quadrature in time.

        A path with a `cut` is integrated from cut to 1 - cut. **Errors** `ValueError` for a path with gamma.
        """
        if not path.one_sided:
            raise ValueError("the kinetic energy is that of one-sided paths; this one has gamma")
        t, w = gauss_legendre(nodes, path.cut, 1.0 - path.cut)
        t = jnp.asarray(t, self.scale.dtype)
        (a, b, _), (da, db, _) = jax.vmap(path.coefficients)(t)
        b, db = self.scale * b, self.scale * db
        g = jnp.interp(jnp.arctan2(b, a), self.angle, self.slope)
        power = ((a * da + b * db) ** 2 + (g * (a * db - b * da)) ** 2) / (a * a + b * b)
        return jnp.sum(jnp.asarray(w, t.dtype) * power)

    def optimal(self) -> Path:
        """The path of least energy, from N(0, I) to the data."""
        schedule = _Line(self)
        return Path(_Alpha(schedule), _Beta(schedule), cut=1e-3)


class _Line(eqx.Module):
    """The straight line in (r, phi), as the angle that goes with each time."""

    metric: KineticMetric

    def __call__(self, t: Any) -> tuple[Array, Array]:
        """Radius and angle at time t."""
        m = self.metric
        scale, top = m.scale.astype(t.dtype), m.phi[-1].astype(t.dtype)
        x = (1.0 - t) + t * scale * jnp.cos(top)
        y = t * scale * jnp.sin(top)
        phi = jnp.arctan2(y, x)
        return jnp.sqrt(x * x + y * y), _inverse(phi, m)


class _Alpha(eqx.Module):
    line: _Line

    def __call__(self, t: Any) -> Array:
        r, angle = self.line(t)
        return r * jnp.sin(0.5 * math.pi - angle)


class _Beta(eqx.Module):
    line: _Line

    def __call__(self, t: Any) -> Array:
        r, angle = self.line(t)
        return r * jnp.sin(angle) / self.line.metric.scale.astype(r.dtype)


def _inverse(phi: Array, m: KineticMetric) -> Array:
    r"""theta(phi). Between nodes g is linear, so phi is quadratic and its inverse a square root: $\theta$ has the
    slope 1/g at every phi, steep where g is small, and continuous."""
    table, angle, slope = (a.astype(phi.dtype) for a in (m.phi, m.angle, m.slope))
    k = jnp.clip(jnp.searchsorted(table, phi, side="right") - 1, 0, len(table) - 2)
    g0, rise = slope[k], (slope[k + 1] - slope[k]) / (angle[k + 1] - angle[k])
    # phi - phi_k = g0 u + rise u^2 / 2, in the form that stays finite when rise is zero.
    gap = jnp.maximum(phi - table[k], 0.0)
    root = g0 + jnp.sqrt(jnp.maximum(g0 * g0 + 2.0 * rise * gap, jnp.finfo(phi.dtype).tiny))
    return jnp.clip(angle[k] + 2.0 * gap / root, 0.0, 0.5 * math.pi)


def kinetic_metric(denoiser: Field, x1: Array, *, key: Key, angles: int = 65, samples: int = 4096) -> KineticMetric:
    r"""Estimate $g(\theta)$ for data with a known denoiser.

    At r = 1 the linear estimate of $x_1$ is $L = \rho\sin\theta\, x_t$, with
    $\mathrm{mmse}_{lin} = \rho^2\cos^2\theta$. The errors of D, the denoiser, and of L differ by $E|D - L|^2$
    exactly, since D - L is a function of $x_t$: so $g^2 = E|D - L|^2 / (d\,\rho^2\cos^2\theta)$, and no difference of
    two estimates is taken.

    **Arguments.** `denoiser`: $E[x_1 | x_t]$ on the path `trigonometric()`, on one sample: from `exact_fields`, from
    `empirical_denoiser`, or learned. `x1` (n, ...): samples of the data. `angles`: nodes in theta. `samples`: pairs of
    noise and data at each angle, the same at all, data in turn and noise with its mirror image; $g^2$ is known to about
    $1/\sqrt{d \cdot samples}$. **Returns** a `KineticMetric`.
    **Cost** angles x samples evaluations. **Errors** `ValueError` for fewer than 3 angles or an odd number of samples.
    """
    check.count(angles, "angles", least=3)
    if check.count(samples, "samples", least=2) % 2:
        raise ValueError(f"samples must be even, got {samples}")
    return _kinetic_metric(denoiser, jnp.asarray(x1), key, angles, samples)


@program
def _kinetic_metric(denoiser, x1, key, angles, samples):
    dtype = x1.dtype
    scale = jnp.sqrt(jnp.mean(x1 * x1))
    order_key, noise_key = jax.random.split(key)
    half = jax.random.normal(noise_key, (samples // 2, *x1.shape[1:]), dtype)
    turn = jax.random.permutation(order_key, len(x1))[jnp.arange(samples // 2) % len(x1)]
    x0, data = jnp.concatenate([half, -half]), jnp.concatenate([x1[turn]] * 2)
    # At theta = pi/2 both errors vanish: the ratio is taken just before, at equal steps from both ends.
    angle = jnp.linspace(0.0, 0.5 * math.pi, angles, dtype=dtype)
    inner = jnp.clip(angle, 1e-3, 0.5 * math.pi - 1e-3)

    def ratio(theta):
        a, b = jnp.cos(theta), jnp.sin(theta) / scale
        # The same ratio b/a on the trigonometric path.
        size = jnp.sqrt(a * a + b * b)
        t = jnp.arctan2(b, a) * (2.0 / math.pi)
        x = (a * x0 + b * data) / size
        guess = scale * jnp.sin(theta) * size * x
        error = jax.lax.map(lambda x: denoiser(t, x, None), x, batch_size=256) - guess
        return jnp.mean(error * error) / (scale * jnp.cos(theta)) ** 2

    # Gaussian data leave theta(t) free; the floor makes it uniform there, at an energy of 1e-6.
    slope = jnp.sqrt(jnp.clip(jax.lax.map(ratio, inner), 1e-6, 1.0))
    phi = jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(0.5 * (slope[1:] + slope[:-1]) * jnp.diff(angle))])
    return KineticMetric(scale, angle, slope, phi)


def kinetic_optimal(points: Array, *, key: Key, angles: int = 65, samples: int = 4096) -> Path:
    r"""The kinetic-optimal path to finite data `points` (n, ...): `kinetic_metric(...).optimal()` of their exact
    denoiser.

    **Cost** angles x samples x n d. **Errors** as `kinetic_metric`.
    """
    denoiser = empirical_denoiser(trigonometric(), points, StudentNoise(math.inf))
    return kinetic_metric(denoiser, points, key=key, angles=angles, samples=samples).optimal()
