"""What `integrate` and `ensemble` are given, made into what they need: everything that can be said before compiling."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from physml.core import check, noise
from physml.core.types import is_traced, shape_of, widest
from physml.integrate import watch
from physml.integrate.adaptive import Diffrax
from physml.integrate.dynamics import Dynamics, brownian_like
from physml.integrate.methods import RK4, AbstractMethod, EulerMaruyama, check_elementwise


def as_state(leaf):
    """A leaf of the state as an array; a `ValueError` unless it is floating point."""
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"the state must be floating point; got {dtype}: write x0.astype(float), or 1.0 for 1")
    return jnp.asarray(leaf, dtype)


def as_args(args):
    """Numbers become (weakly typed) arrays, so that another value of a parameter does not compile again."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float | complex) else leaf, args)


def auto_axes(leaf):
    """The same array with the axes of its mesh left to the compiler, which lays the lanes out along the paths."""
    sharding = None if is_traced(leaf) else leaf.sharding
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
        return leaf
    names = sharding.mesh.axis_names
    mesh = Mesh(np.asarray(sharding.mesh.devices), names, axis_types=(AxisType.Auto,) * len(names))
    return jax.device_put(leaf, NamedSharding(mesh, sharding.spec))


def _shards(leaf):
    """The parts of a concrete array that this process holds; nothing is communicated."""
    return [shard.data for shard in leaf.addressable_shards]


def one_path(leaf):
    """A path of an ensemble to judge the system at; any does, and the nearest costs least."""
    if is_traced(leaf):
        return leaf[0]
    near = _shards(leaf)[0]
    return jnp.asarray(np.asarray(near)[0]) if near.shape[1:] == leaf.shape[1:] else leaf[0]


def check_finite(x0):
    """Raise a `ValueError` unless all entries are finite, as far as this process knows them."""
    parts = [] if is_traced(x0) else [part for leaf in jax.tree.leaves(x0) for part in _shards(leaf)]
    if not all(np.isfinite(np.asarray(part)).all() for part in parts):
        raise ValueError("x0 has entries that are not finite")


def validate(dynamics, x0, ts, key, args, method, save_every, observe, until):
    """Everything that can be said before compiling."""
    check.instance(dynamics, "dynamics", Dynamics, "Dynamics(drift, noise)")
    if method is None:
        method = RK4() if dynamics.noise is None else EulerMaruyama()
    check.instance(method, "method", (AbstractMethod, Diffrax), "EulerMaruyama(), Heun(), ..., or Diffrax(...)")
    if not jax.tree.leaves(x0):
        raise ValueError("x0 has no arrays")
    x0 = jax.tree.map(as_state, x0)
    check_finite(x0)
    real = widest(*[jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(x0)])
    ts = jnp.asarray(ts).astype(real) if is_traced(ts) else jnp.asarray(np.asarray(ts, real))
    if ts.ndim != 1 or len(ts) < 1:
        raise ValueError(f"ts must be a vector of times, (steps + 1,); got shape {ts.shape}")
    steps = len(ts) - 1
    if not is_traced(ts):
        gaps = np.diff(np.asarray(ts))
        if not np.isfinite(np.asarray(ts)).all() or (gaps <= 0).any():
            at = int(np.argmax(~(gaps > 0))) if steps else 0
            raise ValueError(
                f"ts must increase (in {ts.dtype}); got ts[{at}:{at + 2}] = {np.asarray(ts)[at : at + 2]}. "
                "To run backwards, negate the drift"
            )
    check.count(save_every, "save_every", divides=steps)
    if dynamics.noise is None:
        if key is not None:
            noise.check_key(key)
    elif key is None:
        raise ValueError("the dynamics has noise: pass key=jax.random.key(seed)")
    else:
        noise.check_key(key)
    start = ts[0] if is_traced(ts) else jnp.asarray(np.asarray(ts)[:1].reshape(()))
    _check_shapes(dynamics, x0, start, args)
    watch.check_watch(observe, until, x0, start, args)
    if until is not None and isinstance(method, Diffrax):
        raise ValueError("until= stops paths of fixed steps; for adaptive ones use diffrax.Event")
    if isinstance(method, AbstractMethod):
        if method.calculus == "ode" and dynamics.noise is not None:
            raise ValueError(f"{type(method).__name__} is for ODEs; with noise use EulerMaruyama, Heun, SRA1, ...")
        method.validate(dynamics, start, x0, args)
        if method.calculus in ("ito", "stratonovich") and method.calculus != dynamics.calculus:
            check_elementwise(dynamics, start, x0, args)
    return x0, ts, method


def _check_shapes(dynamics, x0, t, args):
    out = shape_of(dynamics.drift, t, x0, args)
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
    if jax.tree.structure(out) != jax.tree.structure(x0) or shapes(out) != shapes(x0):
        raise ValueError(
            f"drift must return what x0 is: {jax.tree.structure(x0)} with shapes {shapes(x0)}; "
            f"got {jax.tree.structure(out)} with shapes {shapes(out)}"
        )
    pairs = zip(jax.tree.leaves(out), jax.tree.leaves(x0), strict=True)
    if any(jnp.iscomplexobj(f) and not jnp.iscomplexobj(x) for f, x in pairs):
        raise ValueError("the drift of a real state is complex: make x0 complex, or take the real part")
    if dynamics.noise is not None:
        like = brownian_like(shape_of(dynamics.noise, t, x0, args), x0)
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(like)):
            raise ValueError("noise acts on real states; write a complex one as its real and imaginary parts")
