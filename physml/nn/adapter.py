"""Flax modules as fields."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree


def _call(module: Any, t: Any, x: Any, args: Any) -> Any:
    return module(t, x, args)


def _frozen(tree: PyTree) -> PyTree:
    def freeze(leaf):
        return jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(freeze, tree)


class LinenField(eqx.Module):
    """A Linen module with its variables; made by `from_flax`."""

    params: PyTree
    state: PyTree
    module: Any = eqx.field(static=True)
    call: Callable = eqx.field(static=True)

    def __call__(self, t: Any, x: Any, args: Any = None) -> Any:
        variables = {"params": self.params, **_frozen(self.state)}
        return self.module.apply(variables, t, x, args, method=self.call)


class NNXField(eqx.Module):
    """An NNX module split into its graph and its variables; made by `from_flax`."""

    params: PyTree
    state: PyTree
    graph: Any = eqx.field(static=True)
    call: Callable = eqx.field(static=True)

    def __call__(self, t: Any, x: Any, args: Any = None) -> Any:
        from flax import nnx

        # Merged anew in every call: whatever the module writes into itself stays inside the trace.
        return self.call(nnx.merge(self.graph, self.params, _frozen(self.state)), t, x, args)


def from_flax(module: Any, variables: PyTree = None, *, call: Callable = _call) -> LinenField | NNXField:
    r"""A Flax module as a field $f(t, x, \text{args})$ on one sample.

    The result is a pytree: its parameters are leaves that equinox filters find and optax trains; the
    structure of the network is static. Variables that are not parameters (batch statistics, random state)
    are carried along with their gradient stopped, and what the module writes into them is dropped: call
    dropout and batch norm in evaluation mode.

    **Arguments.** `module`: an NNX module, or a Linen module with its `variables`, `{"params": ...}` or the
    params alone. `call`: `call(module, t, x, args)` says how the module is called, for one with another
    signature. **Returns** a field; the NNX module itself is not changed by training it. **Errors.**
    ImportError without flax; ValueError when variables are missing, superfluous, or the module is not Flax.

    ```python
    field = from_flax(nnx_module, call=lambda m, t, x, args: m(x, t))
    loss, gradient = eqx.filter_value_and_grad(loss)(field)
    ```
    """
    try:
        from flax import linen, nnx
    except ImportError as error:
        raise ImportError(f"from_flax needs flax: pip install 'physml[flax]' ({error})") from error

    if isinstance(module, nnx.Module):
        if variables is not None:
            raise ValueError("an NNX module holds its own variables: leave `variables` out")
        graph, params, state = nnx.split(module, nnx.Param, ...)
        return NNXField(params, state, graph, call)
    if isinstance(module, linen.Module):
        if variables is None:
            raise ValueError(
                "a Linen module holds no parameters: give the result of module.init(key, t, x, args) as `variables`"
            )
        if "params" not in variables:
            variables = {"params": variables}
        state = {name: tree for name, tree in variables.items() if name != "params"}
        return LinenField(variables["params"], state, module, call)
    raise ValueError(f"module is a {type(module).__name__}: expected a flax nnx or linen Module")
