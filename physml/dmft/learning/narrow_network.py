r"""A few hidden units in many dimensions: gradient descent on as many samples as unknowns, in closed equations.

N hidden units, $P = \nu D$ samples $x \sim N(0, I_D)$, $D \to \infty$; the labels depend on $h_* = \beta_*\cdot x$.
Full-batch descent on the half mean square, scaled so that f moves at a rate that does not depend on $\alpha$,

$$W_{k+1} = aW_k - \frac\eta D\sum_\mu g_\mu x_\mu^\top,\quad
  g_i = \frac{f - y}{\alpha\nu}\phi'(h_i),\quad h = Wx,\quad a = 1 - \lambda\eta .$$

One sample, taken out and put back, sees the weights that never met it and its own past:

$$h_k = u_k - \sum_{s<k} R_{ks}\,g_s,\qquad u = m h_* + \text{Gaussian},\quad \langle uu^\top\rangle = C .$$

With $\Gamma_{ks} = \langle\partial g_k/\partial u_s\rangle$, $\Gamma^*_k = \langle dg_k/dh_*\rangle$ and $G_{ks} =
\langle g_kg_s^\top\rangle$ one component of the weights is linear in Gaussian noise of covariance G:

$$w_{k+1} = aw_k - \eta\nu\Bigl[\sum_{s\le k}\Gamma_{ks}w_s + \Gamma^*_k\beta\Bigr] - \eta\sqrt\nu\,\xi_k .$$

Its mean along the teacher is m, its covariance C and its response to a force $\eta b_s$ is R: row k + 1 of all of them
follows from rows up to k.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from physml.core import check
from physml.core._status import Code, status
from physml.core.types import Key, Scalar
from physml.dmft.equations.average import MonteCarlo
from physml.dmft.equations.causal import fill
from physml.dmft.equations.solve import AbstractModel, AbstractScheme, Solution
from physml.dmft.learning.descent import Descent, propagator, simulate
from physml.dmft.learning.polynomial_regression import QuadraticActivation, overlap_loss, teacher

JITTER = 1e-9  # added to the covariance of u, which is nearly singular: weights are smooth in time


class Forward(AbstractScheme):
    """Time step by time step, each once, for a model whose `first` and `row` carry the samples of its site along."""

    def run(self, model, start, noise):
        if not isinstance(model, NarrowNetwork):
            raise ValueError(f"{type(model).__name__} has no rows of samples: it needs SelfConsistent or Causal")
        filled = _forward(model, noise)
        order = model.report(filled)
        bad = ~(jnp.isfinite(order.train) & jnp.isfinite(order.test))
        code = jnp.where(bad.any(), jnp.asarray(Code.diverged, jnp.int32), model.verdict(order))
        residual = jnp.where(bad.any(), jnp.inf, 0.0).astype(order.train.dtype)
        last = jnp.where(bad.any(), jnp.argmax(bad), model.steps)
        return Solution(order, residual, status(code, last), unknowns=order)


def _forward(model, noise):
    draws = model.draws(noise)
    row = lambda args, rows, k: args[0].row(rows, args[1], k)
    return fill(row, (model, draws), model.first(draws), model.steps)


class Draws(eqx.Module):
    """Noise of the site, samples last: `hs` (S,), `z` (n, N, S), signs `v` (probes, n, N, S), `weights` (S,)."""

    hs: Array
    z: Array
    v: Array
    weights: Array


class NarrowNetwork(AbstractModel):
    r"""Gradient descent of N hidden units in infinitely many dimensions; see the module for the equations.

    **Arguments.** `units`: N. `ratio`: $\nu = P/D > 0$. `alpha`: output scale. `phi`: activation of one number, as
    `QuadraticActivation(eps)`. `steps`, `step_size`: of the descent, $\eta$ as in `polynomial_regression.train`; the
    equations are exact for these steps, not only for small ones. `decay`: $\lambda$, weight decay. `overlap`: $m_0$, a
    number or (N,), the first $w_i\cdot\beta_*$. A quadratic teacher never breaks the symmetry $m \to -m$: at $m_0 = 0$
    nothing is learned of $\beta_*$, and a network in D dimensions starts from $m_0 \sim D^{-1/2}$. `teacher`: y of
    $h_*$. `probes`: random directions per sample.

    **Solution.** `Descent(t, C, R, m, ...)` by `Forward()`, row by row; `scheme=SelfConsistent(Damped(0.8))` iterates
    all times at once to the same numbers. **Algorithm.** S samples of u by a Cholesky factor that grows with time;
    $\Gamma$ by pushing one random tangent $v = \pm1$ per sample through the site, $\langle\dot g_kv_s^\top\rangle$,
    after the exact part at equal times is taken off. The test loss is exact in C and m for the quadratic activation
    and teacher. **Cost.** $6S(nN)^2$ flops, memory $(2 + \text{probes})SnN + 5(nN)^2$ numbers, n = steps + 1.
    """

    units: int = eqx.field(static=True)
    ratio: Scalar
    alpha: Scalar = 1.0
    phi: Callable[[Array], Array] = QuadraticActivation(0.5)
    steps: int = eqx.field(static=True, default=50)
    step_size: Scalar = 0.4
    decay: Scalar = 0.0
    overlap: Any = 0.0
    teacher: Callable[[Array], Array] = teacher
    probes: int = eqx.field(static=True, default=1)

    scheme: ClassVar[Any] = Forward()
    average: ClassVar[Any] = MonteCarlo(4000, matched=False)

    def __check_init__(self):
        check.within(self.ratio, "ratio", above=0)
        check.within(self.step_size, "step_size", above=0)
        check.within(self.alpha, "alpha")
        if check.known(self.alpha) == 0:
            raise ValueError("alpha must not be zero: the network would have no output")
        for name in ("units", "steps", "probes"):
            check.count(getattr(self, name), name)
        if jnp.shape(self.overlap) not in ((), (self.units,)):
            raise ValueError(
                f"overlap is a number or one for each of {self.units} units, got {jnp.shape(self.overlap)}"
            )

    # the site

    def noise_shape(self):
        return (1 + (1 + self.probes) * (self.steps + 1) * self.units,)

    def draws(self, sample: Any) -> Draws:
        """The noise of a site, each draw with h* and with -h*: an even teacher then breaks no symmetry by chance."""
        n, N = self.steps + 1, self.units
        z = jnp.concatenate([sample.z.T, sample.z.T.at[0].multiply(-1.0)], 1)
        rest = z[1:].reshape(1 + self.probes, n, N, -1)
        signs = jnp.where(rest[1:] > 0, 1.0, -1.0).astype(z.dtype)
        return Draws(z[0], rest[0], signs, 0.5 * jnp.concatenate([sample.weights] * 2))

    def _output(self, h) -> Array:
        return jnp.asarray(self.alpha * jnp.mean(self.phi(h)))

    def force(self, h: Array, hs: Array) -> Array:
        """g of one sample, from h (N,) and h*."""
        error = self._output(h) - self.teacher(hs)
        return error * jax.grad(lambda h: jnp.sum(self.phi(h)))(h) / (self.alpha * self.ratio)

    def _site(self, h, hs, hdot, hstar):
        """At one time, all samples last: g, its gradients J (N, N, S) and Js in h* alone, tangents, the loss."""
        force = lambda h, hs: self.force(h, hs)
        one = lambda h, hs: (force(h, hs), jax.jacfwd(force, (0, 1))(h, hs), (self._output(h) - self.teacher(hs)) ** 2)
        g, (J, Js), loss = jax.vmap(one, -1, -1)(h, hs)
        push = lambda v: jnp.sum(J * v[None], 1)
        return g, J, push(hstar) + Js, jax.vmap(push)(hdot), loss

    def _test(self, gram, m, u, hs, weights) -> Array:
        if isinstance(self.phi, QuadraticActivation) and self.teacher is teacher:
            return overlap_loss(gram, m, self.alpha, self.phi.eps)
        return jax.vmap(lambda u, hs: (self._output(u) - self.teacher(hs)) ** 2, -1)(u, hs) @ weights

    def _time(self, rows, k, C, R, m, L, draws):
        """Everything that time k adds to `rows`, given C (N, n, N), R, m of that time and the factor L of cov(u)."""
        hs, v, weights = draws.hs, draws.v, draws.weights
        n, N = self.steps + 1, self.units
        past = (jnp.arange(n, dtype=jnp.int32) < k)[:, None, None]
        flat = lambda a: jnp.where(past, a, 0.0).reshape(n * N, -1)
        memory = lambda a: R.reshape(N, n * N) @ flat(a)
        u = m[:, None] * hs[None, :] + L.reshape(N, n * N) @ draws.z.reshape(n * N, -1)
        echo = -jax.vmap(memory, 1)(rows["gdot"])
        g, J, gstar, gdot, loss = self._site(u - memory(rows["g"]), hs, v[:, k] + echo, -memory(rows["gstar"]))
        # v_k of time k meets v_s of the past incoherently; its own part is <J>, exactly.
        late = jax.vmap(lambda e: jnp.sum(J * e[None], 1))(echo)
        Gamma = jnp.einsum("pis,pljs,s->ilj", late, jnp.where(past, v, 0.0), weights) / self.probes
        now = jnp.arange(n, dtype=jnp.int32) == k
        Gamma = jnp.where(now[None, :, None], (J @ weights)[:, None, :], Gamma)
        both = jnp.where(now[:, None, None], g[None], jnp.where(past, rows["g"], 0.0))
        G = ((g * weights[None, :]) @ both.reshape(n * N, -1).T).reshape(N, n, N)
        gram = lax.dynamic_index_in_dim(C, k, 1, keepdims=False)
        test = self._test(gram, m, u, hs, weights)
        return {
            "C": C, "R": R, "m": m, "L": L, "Gamma": Gamma, "Gamma_star": gstar @ weights, "G": G,
            "train": loss @ weights, "test": test, "g": g, "gstar": gstar, "gdot": gdot,
        }  # fmt: skip

    # row by row

    def _start(self, dtype):
        return jnp.broadcast_to(jnp.asarray(self.overlap, dtype), (self.units,))

    def first(self, draws: Draws) -> dict[str, Array]:
        """Arrays for all times, of which row 0 is filled."""
        n, N, dtype = self.steps + 1, self.units, draws.z.dtype
        S = len(draws.hs)
        square, row, site = (n, N, n, N), (n, N), (n, N, S)
        shapes = {
            "C": square, "R": square, "m": row, "L": square, "Gamma": square, "Gamma_star": row, "G": square,
            "train": (n,), "test": (n,), "g": site, "gstar": site, "gdot": (n, self.probes, N, S),
        }  # fmt: skip
        rows = {name: jnp.zeros(shape, dtype) for name, shape in shapes.items()}
        m, eye = self._start(dtype), jnp.eye(N, dtype=dtype)
        at_zero = lambda a: jnp.zeros((N, n, N), dtype).at[:, 0].set(a)
        C = at_zero(eye + m[:, None] * m[None, :])
        k = jnp.asarray(0, jnp.int32)
        zero = self._time(rows, k, C, jnp.zeros_like(C), m, at_zero(eye), draws)
        return {name: rows[name].at[0].set(zero[name]) for name in rows}

    def row(self, rows: dict[str, Array], draws: Draws, k: Array) -> dict[str, Array]:
        """Row k + 1 of everything from the rows up to k."""
        n, N = self.steps + 1, self.units
        dtype = draws.z.dtype
        index = jnp.arange(n, dtype=jnp.int32)
        upto = index <= k
        flat = lambda a: a.reshape(n * N, n * N)
        # Rows beyond k may hold anything.
        hold = lambda a: jnp.where(upto.reshape((n,) + (1,) * (a.ndim - 1)), a, 0.0)
        C, R, m, L = hold(rows["C"]), hold(rows["R"]), hold(rows["m"]), hold(rows["L"])
        a, step, nu = 1 - self.decay * self.step_size, self.step_size, self.ratio
        Gamma = jnp.where(upto[None, :, None], rows["Gamma"][k], 0.0).reshape(N, n * N)
        G = jnp.where(upto[None, :, None], rows["G"][k], 0.0).reshape(N, n * N)
        eye = jnp.eye(N, dtype=dtype)
        now = (index == k)[None, :, None]

        forced = jnp.where(now, step * eye[:, None, :], 0.0)
        R1 = a * R[k] - step * nu * (Gamma @ flat(R)).reshape(N, n, N) + forced
        m1 = a * m[k] - step * nu * (Gamma @ m.reshape(-1) + rows["Gamma_star"][k])
        # C holds its lower triangle of times; C(s, t') for s < t' is its transpose.
        lower = (index[:, None] > index[None, :])[:, None, :, None]
        full = C + jnp.where(lower, C, 0.0).transpose(2, 3, 0, 1)
        pull = rows["Gamma_star"][k]
        C1 = a * full[k] - step * nu * ((Gamma @ flat(full)).reshape(N, n, N) + pull[:, None, None] * m[None])
        C1 = C1 + step * nu * (G @ flat(R).T).reshape(N, n, N)
        # The equal-time block needs column k + 1, which is the transpose of the row just found.
        column = jnp.where(upto[:, None, None], C1.transpose(1, 2, 0), 0.0).reshape(n * N, N)
        equal = a * column.reshape(n, N, N)[k] - step * nu * (Gamma @ column + pull[:, None] * m1[None, :])
        equal = equal + step * nu * G @ R1.reshape(N, n * N).T
        equal = 0.5 * (equal + equal.T)
        # Cholesky, one more row: cov(u) = C - m m^T.
        seen = jnp.where(jnp.repeat(upto, N)[:, None] & jnp.repeat(upto, N)[None, :], flat(L), 0.0)
        seen = seen + jnp.diag(jnp.repeat(~upto, N).astype(dtype))
        target = jnp.where(upto[:, None, None], column.reshape(n, N, N) - m[:, :, None] * m1[None, None, :], 0.0)
        left = jax.scipy.linalg.solve_triangular(seen, target.reshape(n * N, N), lower=True)
        rest = equal - m1[:, None] * m1[None, :] - left.T @ left + JITTER * eye
        new = (index == k + 1)[None, :, None]
        L1 = jnp.where(new, jnp.linalg.cholesky(rest)[:, None, :], left.T.reshape(N, n, N))
        C1 = jnp.where(new, equal[:, None, :], jnp.where(upto[None, :, None], C1, 0.0))
        return self._time(rows, k + 1, C1, R1, m1, L1, draws)

    def report(self, rows: dict[str, Array]) -> Descent:
        """The order parameters from the filled rows; C and G made symmetric."""
        n = self.steps + 1
        index = jnp.arange(n, dtype=jnp.int32)
        lower = (index[:, None] > index[None, :])[:, None, :, None]
        whole = lambda a: a + jnp.where(lower, a, 0.0).transpose(2, 3, 0, 1)
        return Descent(
            self._times(rows["m"].dtype), whole(rows["C"]), rows["R"] / self.step_size, rows["m"],
            rows["Gamma"], rows["Gamma_star"], whole(rows["G"]), rows["train"], rows["test"],
        )  # fmt: skip

    # all times at once

    def _times(self, dtype):
        return jnp.asarray(self.step_size, dtype) * jnp.arange(self.steps + 1).astype(dtype)

    def init(self):
        dtype = jnp.result_type(float)
        n, N = self.steps + 1, self.units
        S, decay = propagator(self.steps, self.step_size, self.decay, dtype)
        eye = jnp.eye(N, dtype=dtype)
        square = lambda a: a[:, None, :, None] * eye[None, :, None, :]
        m = decay[:, None] * self._start(dtype)[None, :]
        C = square(decay[:, None] * decay[None, :]) + m[:, :, None, None] * m[None, None]
        zero, none = jnp.zeros((n, N, n, N), dtype), jnp.zeros(n, dtype)
        return Descent(self._times(dtype), C, square(S / self.step_size), m, zero, 0 * m, zero, none, none)

    def update(self, order, noise):
        n, N, dtype = self.steps + 1, self.units, noise.z.dtype
        flat = lambda a: a.reshape(n * N, n * N)
        draws = self.draws(noise)
        mm = order.m.reshape(-1)
        cov = flat(order.C) - mm[:, None] * mm[None, :] + JITTER * jnp.eye(n * N, dtype=dtype)
        L = jnp.linalg.cholesky(cov).reshape(n, N, n, N)
        R = self.step_size * order.R
        empty = {"g": jnp.zeros((n, N, len(draws.hs)), dtype)}
        empty = {"g": empty["g"], "gstar": empty["g"], "gdot": jnp.repeat(empty["g"][:, None], self.probes, 1)}

        def visit(site, k):
            out = self._time(site, k, order.C[k], R[k], order.m[k], L[k], draws)
            kept = {name: site[name].at[k].set(out[name]) for name in site}
            return kept, {name: out[name] for name in ("Gamma", "Gamma_star", "G", "train", "test")}

        _, new = lax.scan(visit, empty, jnp.arange(n, dtype=jnp.int32))
        index = jnp.arange(n, dtype=jnp.int32)
        lower = (index[:, None] > index[None, :])[:, None, :, None]
        G = new["G"] + jnp.where(lower, new["G"], 0.0).transpose(2, 3, 0, 1)

        S, decay = propagator(self.steps, self.step_size, self.decay, dtype)
        eye = jnp.eye(N, dtype=dtype)
        S = flat(S[:, None, :, None] * eye[None, :, None, :])
        Q = jnp.linalg.inv(jnp.eye(n * N, dtype=dtype) + self.ratio * S @ flat(new["Gamma"]))
        QS = Q @ S
        free = Q @ (decay[:, None, None] * eye[None]).reshape(n * N, N)
        m = free @ self._start(dtype) - self.ratio * QS @ new["Gamma_star"].reshape(-1)
        C = free @ free.T + self.ratio * QS @ flat(G) @ QS.T + m[:, None] * m[None, :]
        return Descent(
            self._times(dtype), C.reshape(n, N, n, N), QS.reshape(n, N, n, N) / self.step_size, m.reshape(n, N),
            new["Gamma"], new["Gamma_star"], G, new["train"], new["test"],
        )  # fmt: skip

    def verdict(self, order):
        equal = jnp.diagonal(jnp.diagonal(order.C, axis1=0, axis2=2), axis1=0, axis2=1)
        return jnp.where((equal > 0).all(), Code.ok, Code.not_positive).astype(jnp.int32)

    def finite_n(self, n: int, *, key: Key) -> Descent:
        """A network in n dimensions on round(ratio n) samples, trained with the same steps; its responses are
        measured with random signs, to $n^{-1/2}$."""
        dtype = jnp.result_type(float)

        def test(gram, m, key):
            # h and h* of a test point are Gaussian with the weights' overlaps.
            draws = jax.random.normal(key, (10_000, self.units + 1), dtype)
            hs, z = draws[:, 0], draws[:, 1:]
            factor = jnp.linalg.cholesky(gram - m[:, None] * m[None, :] + JITTER * jnp.eye(self.units, dtype=dtype))
            u = m[:, None] * hs[None, :] + factor @ z.T
            return self._test(gram, m, u, hs, jnp.full(len(hs), 1 / len(hs), dtype))

        return simulate(
            self.force,
            lambda h, hs: self._output(h) - self.teacher(hs),
            test,
            self._start(dtype),
            dim=n,
            samples=round(float(self.ratio) * n),
            steps=self.steps,
            step_size=self.step_size,
            decay=self.decay,
            key=key,
        )
