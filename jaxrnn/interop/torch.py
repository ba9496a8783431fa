"""PyTorch state dicts and safetensors files.

Names are attribute paths, as in PyTorch. Parameters that Flax stores in another layout are
converted:

| module | Flax | PyTorch |
|---|---|---|
| `nnx.Linear` | kernel (in, out), bias | weight (out, in), bias |
| `nnx.Conv` | kernel (..., in, out), bias | weight (out, in, ...), bias |
| `nnx.Embed` | embedding | weight |
| `nnx.LayerNorm`, `nnx.GroupNorm`, `nnx.RMSNorm` | scale, bias | weight, bias |
| `nnx.Sequential` | layers.0, layers.1, ... | 0, 1, ... |
| jaxrnn layers and cells, custom modules | their `nnx.Param` attributes | equal |
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn._files import read_safetensors, write_safetensors

_WEIGHT = {
    nnx.Linear: "kernel",
    nnx.Conv: "kernel",
    nnx.Embed: "embedding",
    nnx.LayerNorm: "scale",
    nnx.GroupNorm: "scale",
    nnx.RMSNorm: "scale",
}
"""Flax's name of the ``weight`` of each module."""


class StateDictError(ValueError, RuntimeError):
    """A state dict does not match the module. The module is unchanged."""


class _Entry(NamedTuple):
    name: str
    param: nnx.Variable
    is_kernel: bool = False  # (..., in, out) in Flax, (out, in, ...) in PyTorch


def _read(entry: _Entry) -> np.ndarray:
    value = np.array(entry.param[...])
    return np.moveaxis(value, (-1, -2), (0, 1)).copy() if entry.is_kernel else value


def _write(entry: _Entry, value: np.ndarray) -> None:
    if entry.is_kernel:
        value = np.moveaxis(value, (0, 1), (-1, -2))
    entry.param[...] = jnp.array(value, entry.param[...].dtype)


def _shape(entry: _Entry) -> tuple[int, ...]:
    shape = entry.param[...].shape
    return (shape[-1], shape[-2], *shape[:-2]) if entry.is_kernel else shape


def state_dict(module: nnx.Module) -> dict[str, np.ndarray]:
    """Return the parameters of a module under dotted PyTorch names.

    Args:
        module: a layer, a cell, or a model of these, custom modules and the Flax modules above.

    Returns:
        Copies as NumPy arrays, with PyTorch's shapes and order, in the dtype of the parameters.

    Raises:
        TypeError: if a Flax module has no counterpart in the table above.

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> gru = jaxrnn.GRU(3, 4, bias=False, rngs=nnx.Rngs(0))
        >>> {name: array.shape for name, array in jaxrnn.state_dict(gru).items()}
        {'weight_ih_l0': (12, 3), 'weight_hh_l0': (12, 4)}

    Differs from PyTorch: values are NumPy arrays and copies.
    """
    return {entry.name: _read(entry) for entry in _walk(module, "", ())}


def load_state_dict(module: nnx.Module, mapping: Mapping[str, Any]) -> None:
    """Load parameters from a mapping of dotted PyTorch names to arrays.

    Args:
        module: as for `state_dict`.
        mapping: NumPy or JAX arrays or PyTorch tensors by name, converted to the dtype of each
            parameter.

    Raises:
        StateDictError: if entries are missing, unexpected or wrongly shaped; lists all of them.
            The module is unchanged.
        TypeError: if `mapping` is not a mapping.

    Example:
        >>> import jaxrnn, numpy as np
        >>> from flax import nnx
        >>> cell = jaxrnn.RNNCell(1, 2, bias=False, rngs=nnx.Rngs(0))
        >>> jaxrnn.load_state_dict(cell, {"weight_ih": np.ones((2, 1)), "weight_hh": np.eye(2)})
        >>> cell.weight_hh[...].sum().item()
        2.0
    """
    if not isinstance(mapping, Mapping):
        hint = ""
        if hasattr(mapping, "state_dict"):
            hint = ". Pass its state_dict()"
        elif isinstance(mapping, (str, os.PathLike)):
            hint = ". Read files with load_safetensors or torch.load"
        kind = type(mapping).__name__
        raise TypeError(f"`mapping` must be a dict of names to arrays, got {kind}{hint}")
    entries = {entry.name: entry for entry in _walk(module, "", ())}
    missing = [name for name in entries if name not in mapping]
    unexpected = [name for name in mapping if name not in entries]
    problems = [
        f"{adjective} key(s) in state_dict: " + ", ".join(f'"{name}"' for name in names) + "."
        for adjective, names in (("Missing", missing), ("Unexpected", unexpected))
        if names
    ]
    problems += _prefix_hints(set(entries), mapping)
    arrays: dict[str, np.ndarray] = {}
    for name in (name for name in entries if name in mapping):
        try:
            arrays[name] = _to_numpy(mapping[name])
        except (TypeError, ValueError, RuntimeError) as error:
            problems.append(f"{name} must be an array of numbers: {error}.")
    problems += [
        f"size mismatch for {name}: copying a param with shape {array.shape} from checkpoint, "
        f"the shape in current model is {_shape(entries[name])}."
        for name, array in arrays.items()
        if array.shape != _shape(entries[name])
    ]
    if problems:
        head = f"Error(s) in loading state_dict for {type(module).__name__}:"
        raise StateDictError("\n\t".join([head, *problems]))
    for name, entry in entries.items():
        _write(entry, arrays[name])


def _prefix_hints(names: set[str], mapping: Mapping[str, Any]) -> list[str]:
    """Return the fix if all names match after removing or adding a prefix."""
    given = set(map(str, mapping))
    hints = []
    for short, long, fix in (
        (names, given, '{{name.removeprefix("{0}"): a for name, a in mapping.items()}}'),
        (given, names, '{{"{0}" + name: a for name, a in mapping.items()}}'),
    ):
        first = min(short, default="")
        for prefix in sorted({n.removesuffix(first) for n in long if n.endswith("." + first)}):
            if first and {prefix + name for name in short} == long:
                hints.append("All names differ by a prefix: " + fix.format(prefix))
    return hints


def save_safetensors(module: nnx.Module, path: str | os.PathLike[str]) -> None:
    """Write the state dict of a module to a safetensors file, atomically.

    Args:
        module: as for `state_dict`.
        path: the file.

    Raises:
        OSError: if the file cannot be written.

    Example:
        See `load_safetensors`.
    """
    write_safetensors(path, state_dict(module))


def load_safetensors(module: nnx.Module, path: str | os.PathLike[str]) -> None:
    """Load a safetensors file into a module; see `load_state_dict`.

    Args:
        module: as for `state_dict`.
        path: the file.

    Raises:
        OSError: if the file cannot be read.
        StateDictError: if it is not a safetensors file or does not match the module. The module is
            unchanged.

    Example:
        >>> import jaxrnn, tempfile
        >>> from flax import nnx
        >>> cell = jaxrnn.RNNCell(1, 2, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxrnn.save_safetensors(cell, folder + "/cell.safetensors")
        ...     jaxrnn.load_safetensors(cell, folder + "/cell.safetensors")
    """
    try:
        mapping, _ = read_safetensors(path)
    except ValueError as error:
        is_pickle = os.fspath(path).endswith((".pt", ".pth"))
        hint = ". Read it with torch.load, and call load_state_dict." if is_pickle else ""
        raise StateDictError(f"{error}{hint}") from error
    load_state_dict(module, mapping)


def _walk(node: Any, prefix: str, ancestors: Sequence[int]) -> Iterator[_Entry]:
    """Yield the parameters of a node in PyTorch's order: before those of its submodules."""
    if isinstance(node, nnx.Param):
        yield _Entry(prefix[:-1], node)
        return
    if id(node) in ancestors:  # a module that references its parent
        return
    ancestors = (*ancestors, id(node))
    children = _children(node)
    weight_name = next((name for kind, name in _WEIGHT.items() if isinstance(node, kind)), None)
    if weight_name is not None:
        weight = children.pop(weight_name)
        if weight is not None:  # norms may have none
            yield _Entry(prefix + "weight", weight, is_kernel=weight_name == "kernel")
    elif (
        type(node).__module__.startswith("flax.")
        and not isinstance(node, (nnx.List, nnx.Dict))
        and any(isinstance(child, nnx.Param) for child in children.values())
    ):
        supported = ", ".join(f"nnx.{kind.__name__}" for kind in (*_WEIGHT, nnx.Sequential))
        raise TypeError(
            f"{prefix[:-1] or 'the module'} must be one of {supported}, a jaxrnn or a custom "
            f"module, got {type(node).__name__}, which has no PyTorch names"
        )
    for name in getattr(node, "parameter_names", ()):
        if not isinstance(children[name], nnx.Variable):
            raise TypeError(
                f"{prefix}{name} must be an nnx.Param, got {type(children[name]).__name__}. "
                f"Assign values by {name}[...] = values"
            )
    for name, child in sorted(children.items(), key=lambda c: not isinstance(c[1], nnx.Param)):
        yield from _walk(child, f"{prefix}{name}.", ancestors)


def _children(node: Any) -> dict[str, Any]:
    if isinstance(node, nnx.Sequential):
        node = node.layers
    if isinstance(node, Mapping):
        return dict(node)
    if isinstance(node, Sequence) and not isinstance(node, str):
        return {str(index): child for index, child in enumerate(node)}
    if not isinstance(node, nnx.Module):
        return {}
    # Flax sorts the attributes of a copied module; `parameter_names` has PyTorch's order.
    attributes = vars(node)
    return {k: attributes[k] for k in (*getattr(node, "parameter_names", ()), *attributes)}


def _to_numpy(value: Any) -> np.ndarray:
    """Convert an array or a torch tensor, without importing torch."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16, whose values are float32 values.
        value = value.float() if "bfloat16" in str(value.dtype) else value
    array = np.asarray(value)
    kinds = (jnp.integer, jnp.floating, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise TypeError(f"dtype {array.dtype}")
    return array
