"""Data parallelism: the rows of a batch over a device mesh, everything else on every device.

Nothing in a loss changes. The compiler sees one program on arrays whose rows lie on several devices and
inserts the sum of gradients; this is what replaces `pmap`. To shard the parameters as well, place the model's
arrays with
`jax.device_put` on the same mesh before calling `fit`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def data_parallel(devices: Sequence | None = None, *, axis: str = "data") -> NamedSharding:
    """The sharding that lays rows over `devices` (default: all of them), to pass as `fit(..., sharding=...)`.

    **Example.** `fit(loss, model, data, key=key, batch_size=256, sharding=data_parallel())`
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("data_parallel needs at least one device, got an empty list")
    # Auto axes: the loss is written for one device, and the compiler chooses the layout inside.
    mesh = Mesh(np.array(devices), (axis,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(axis))


def row_shards(sharding: jax.sharding.Sharding) -> int:
    """The number of pieces that a sharding cuts the leading axis into; a batch must be a multiple of it."""
    sharding = _over_rows(sharding)
    names = sharding.spec[0] if len(sharding.spec) else None
    if names is None:
        return 1
    axes = [names] if isinstance(names, str) else names
    return int(np.prod([sharding.mesh.shape[axis] for axis in axes]))


def replicate(tree: PyTree, sharding: jax.sharding.Sharding | None) -> PyTree:
    """Copy every array of a pytree to all devices of the mesh; what is laid out on the mesh already stays.

    Where the mesh spans several processes each of them must hold the same numbers.
    """
    if sharding is None:
        return tree
    everywhere = NamedSharding(_over_rows(sharding).mesh, PartitionSpec())

    def place(x):
        if not isinstance(x, jax.Array | np.ndarray):
            return x
        if isinstance(x, jax.Array) and x.sharding.device_set == everywhere.device_set and x.committed:
            return x
        return _put(x, everywhere)

    return jax.tree.map(place, tree)


def local(tree: PyTree) -> PyTree:
    """Arrays that are the same on all devices, such as a trained model, as arrays of this process alone."""

    def take(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if not x.is_fully_replicated:
            raise ValueError(f"an array with the sharding {x.sharding} is not whole in any process: replicate it first")
        return x.addressable_data(0)

    return jax.tree.map(take, tree)


def _put(x, sharding):
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    here = np.asarray(x)
    return jax.make_array_from_callback(here.shape, sharding, lambda index: here[index])


def constrain(batch: PyTree, sharding: jax.sharding.Sharding | None) -> PyTree:
    """Inside jit: lay the rows of a batch over the mesh.

    **Fails** with `ValueError` when the devices do not divide the rows.
    """
    if sharding is None:
        return batch
    shards = row_shards(sharding)

    def lay(x):
        if jnp.ndim(x) == 0 or x.shape[0] % shards:
            raise ValueError(
                f"an array of shape {jnp.shape(x)} does not split its rows over {shards} devices: make the "
                f"batch (each microbatch, when accumulating) a multiple of {shards}"
            )
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(lay, batch)


def _over_rows(sharding: jax.sharding.Sharding) -> NamedSharding:
    if not isinstance(sharding, NamedSharding):
        raise ValueError(f"sharding must be a NamedSharding over rows, as data_parallel() gives, got {sharding!r}")
    return sharding
