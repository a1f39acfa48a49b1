"""What a first call costs: programs, seconds to trace and to compile, beside a hand-written equivalent in the same run.

    python benchmarks/compile.py

Each call is made in a process whose caches are empty, once as physml writes it and once written by hand for the
purpose; then again with new arrays, when nothing should compile.
"""

import os

os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # seconds of compiling, not of reading a cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from physml import core, hopfield, integrate, matching, nn, particles

EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
    "/jax/core/compile/backend_compile_duration": "compile",
}
KEY = jax.random.key(0)


def fresh(x):
    """A new array with the same numbers, which takes no program."""
    return jax.device_put(np.array(x))


class Cost:
    """Programs and seconds inside a block."""

    def __enter__(self):
        self.programs, self.trace, self.compile = 0, 0.0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def _listen(self, event, seconds, **_):
        kind = EVENTS.get(event)
        if kind:
            setattr(self, kind, getattr(self, kind) + seconds)
            self.programs += kind == "compile"

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)

    @property
    def seconds(self):
        return self.trace + self.compile


def tanh(m):
    return jnp.tanh(1.5 * m)


def decay(t, x, args):
    return -args * x


def unit(t, x, args):
    return jnp.ones((), x.dtype)


def well(x):
    return jnp.sum((x**2 - 1) ** 2)


def fixed_point():
    x0 = jnp.full(8, 0.9)

    @jax.jit
    def by_hand(x):
        def more(c):
            return (jnp.max(jnp.abs(c[1] - c[0])) > 1e-5) & (c[2] < 1000)

        def step(c):
            x = 0.5 * (c[0] + c[1])
            return x, tanh(x), c[2] + 1

        return lax.while_loop(more, step, (x, tanh(x), 0))

    return lambda: core.fixed_point(tanh, fresh(x0)), lambda: by_hand(fresh(x0))


def ensemble():
    x0, ts = jnp.zeros((64, 2)), jnp.linspace(0.0, 1.0, 101)
    dynamics = integrate.Dynamics(decay, unit)

    @jax.jit
    def by_hand(x, ts, key, rate):
        def step(x, k):
            h = ts[k + 1] - ts[k]
            xi = jax.random.normal(jax.random.fold_in(key, k), x.shape)
            x = x - h * rate * x + jnp.sqrt(h) * xi
            return x, x

        return lax.scan(step, x, jnp.arange(100))

    run = lambda: integrate.ensemble(dynamics, fresh(x0), ts, key=KEY, args=1.5)
    return run, lambda: by_hand(fresh(x0), ts, KEY, 1.5)


def chains():
    x0 = jnp.zeros((64, 2))

    @jax.jit
    def by_hand(x, key, h):
        def step(x, k):
            xi = jax.random.normal(jax.random.fold_in(key, k), x.shape)
            x = x - h * jax.vmap(jax.grad(well))(x) + jnp.sqrt(2 * h) * xi
            return x, x

        _, xs = lax.scan(step, x, jnp.arange(100))
        return xs, xs.mean((0, 1)), jnp.isfinite(xs).all()

    run = lambda: particles.run_chains(particles.overdamped(well, 0.01), fresh(x0), 100, key=KEY)
    return run, lambda: by_hand(fresh(x0), KEY, 0.01)


def match():
    net = nn.MLP(2, width=32, depth=2, key=KEY)
    x = jax.random.normal(KEY, (64, 2))

    @jax.jit
    def by_hand(net, x0, x1, key):
        t = jax.random.uniform(key, (len(x1),))
        xt = (1 - t)[:, None] * x0 + t[:, None] * x1
        return jnp.mean((jax.vmap(net, (0, 0, None))(t, xt, None) - (x1 - x0)) ** 2)

    return lambda: matching.match(net, matching.linear(), fresh(x), fresh(x), key=KEY), lambda: by_hand(
        net, fresh(x), fresh(x), KEY
    )


def sample():
    net = nn.MLP(2, width=32, depth=2, key=KEY)
    x0 = jnp.ones(2)

    @jax.jit
    def by_hand(net, x):
        def heun(x, t):
            a = net(t, x, None)
            b = net(t + 0.02, x + 0.02 * a, None)
            return x + 0.01 * (a + b), None

        return lax.scan(heun, x, jnp.linspace(0.0, 0.98, 50))[0]

    return lambda: matching.sample(net, fresh(x0), steps=50), lambda: by_hand(net, fresh(x0))


def sinkhorn():
    cost = jax.random.uniform(KEY, (64, 64))

    @jax.jit
    def by_hand(cost, epsilon):
        kernel = -cost / epsilon
        columns = lambda u: -jax.nn.logsumexp(kernel + u[:, None], 0)

        def step(c):
            u, _, k = c
            return -jax.nn.logsumexp(kernel + columns(u)[None], 1), u, k + 1

        start = (jnp.zeros(64), jnp.full(64, jnp.inf), 0)
        u, *_ = lax.while_loop(lambda c: (jnp.max(jnp.abs(c[0] - c[1])) > 1e-3) & (c[2] < 2000), step, start)
        return kernel + u[:, None] + columns(u)[None]

    return lambda: matching.sinkhorn(fresh(cost), 0.05), lambda: by_hand(fresh(cost), 0.05)


def retrieve():
    memory = jax.random.normal(KEY, (32, 16))
    query = np.array(memory[0])

    @jax.jit
    def by_hand(x, memory, beta):
        weights = jax.nn.softmax(beta * memory @ x)
        return weights @ memory, weights

    return lambda: hopfield.retrieve(fresh(query), memory, beta=2.0), lambda: by_hand(fresh(query), memory, 2.0)


def main():
    print(f"{'':12s} {'programs':>18s} {'trace, s':>18s} {'compile, s':>18s} {'ratio':>7s} {'again':>6s}")
    print(f"{'':12s} {'physml  by hand':>18s} {'physml  by hand':>18s} {'physml  by hand':>18s}")
    total = [0.0, 0.0]
    for make in (fixed_point, ensemble, chains, match, sample, sinkhorn, retrieve):
        ours, by_hand = make()
        costs = []
        for call in (ours, by_hand):
            jax.block_until_ready(jax.tree.leaves(jnp.zeros(8) + 0))
            with Cost() as cost:
                jax.block_until_ready(jax.tree.leaves(call()))
            costs.append(cost)
        with Cost() as again:
            jax.block_until_ready(jax.tree.leaves(ours()))
        one, other = costs
        pair = lambda name, form, one=one, other=other: f"{getattr(one, name):{form}}  {getattr(other, name):{form}}"
        total = [total[0] + one.seconds, total[1] + other.seconds]
        print(
            f"{make.__name__:12s} {pair('programs', '8d'):>18s} {pair('trace', '8.2f'):>18s} "
            f"{pair('compile', '8.2f'):>18s} {one.seconds / other.seconds:7.2f} {again.programs:6d}"
        )
    print(f"{'sum':12s} {'':56s} {total[0] / total[1]:7.2f}   {total[0]:.2f} s and {total[1]:.2f} s")


if __name__ == "__main__":
    main()
