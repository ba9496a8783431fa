"""Parameters under PyTorch's names: `state_dict`, `load_state_dict` and safetensors files.

A module's parameters are named by the path of attributes that leads to them, as PyTorch names
them. Where Flax stores a parameter in another way, it is converted:

| module | Flax | here, as in PyTorch |
|---|---|---|
| `nnx.Linear` | kernel (in, out), bias | weight (out, in), bias |
| `nnx.Conv` | kernel (..., in, out), bias | weight (out, in, ...), bias |
| `nnx.Embed` | embedding | weight |
| `nnx.LayerNorm`, `nnx.GroupNorm`, `nnx.RMSNorm` | scale, bias | weight, bias |
| `nnx.Sequential` | layers.0, layers.1, ... | 0, 1, ... |
| `jaxrnn` layers and cells | as in PyTorch | as in PyTorch |
| a module of your own | its `nnx.Param` attributes | the same |
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
"""What Flax calls the ``weight`` of PyTorch's module of this name."""


class StateDictError(ValueError, RuntimeError):
    """A state dict that does not fit the module; nothing was loaded."""


class _Entry(NamedTuple):
    name: str
    param: nnx.Variable
    kernel: bool = False  # of Flax: what PyTorch has as (out, in, ...) is (..., in, out)

    def read(self) -> np.ndarray:
        """The parameter as PyTorch has it, a copy."""
        value = np.array(self.param[...])
        return np.ascontiguousarray(_out_first(value)) if self.kernel else value

    def write(self, value: np.ndarray) -> None:
        """Set the parameter from what PyTorch has."""
        value = np.moveaxis(value, (0, 1), (-1, -2)) if self.kernel else value
        self.param[...] = jnp.array(value, self.param[...].dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """PyTorch's."""
        value = np.broadcast_to(0, self.param[...].shape)
        return _out_first(value).shape if self.kernel else value.shape


def _out_first(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def state_dict(module: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters of a module as NumPy arrays under dotted PyTorch names.

    Args:
        module: a layer, a cell, or a model made of them, of the modules above and of your own.

    Returns:
        Copies, in the dtype of the parameters, PyTorch's shapes and order.

    Raises:
        TypeError: for a Flax module whose parameters have no PyTorch name here.

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> gru = jaxrnn.GRU(3, 4, bias=False, rngs=nnx.Rngs(0))
        >>> {name: array.shape for name, array in jaxrnn.state_dict(gru).items()}
        {'weight_ih_l0': (12, 3), 'weight_hh_l0': (12, 4)}

    Differs from PyTorch: NumPy arrays and not tensors; copies and not references.
    """
    return {entry.name: entry.read() for entry in _entries(module)}


def load_state_dict(module: nnx.Module, mapping: Mapping[str, Any]) -> None:
    """Set the parameters of a module from arrays under dotted PyTorch names.

    Args:
        module: as for `state_dict`.
        mapping: names to arrays: NumPy or JAX arrays, or PyTorch tensors as
            ``torch_module.state_dict()`` gives them. Each is converted to the parameter's dtype.

    Raises:
        StateDictError: a ValueError and a RuntimeError that lists every missing, unexpected and
            wrongly shaped entry, in PyTorch's words. Nothing is changed then.
        TypeError: for what is no mapping, such as a PyTorch module.

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
            hint = ": give its state_dict()"
        elif isinstance(mapping, (str, os.PathLike)):
            hint = ": load_safetensors reads a file, torch.load one of torch.save"
        kind = type(mapping).__name__
        raise TypeError(f"mapping should be a dict of names to arrays, got {kind}{hint}")
    entries = list(_entries(module))
    names = {entry.name for entry in entries}
    problems = []
    missing = [entry.name for entry in entries if entry.name not in mapping]
    unexpected = [name for name in mapping if name not in names]
    for word, keys in (("Missing", missing), ("Unexpected", unexpected)):
        if keys:
            listed = ", ".join(f'"{key}"' for key in keys)
            problems.append(f"{word} key(s) in state_dict: {listed}.")
    problems += _prefixed(names, mapping)
    arrays: dict[str, np.ndarray] = {}
    for entry in entries:
        if entry.name not in mapping:
            continue
        try:
            value = _to_numpy(mapping[entry.name])
        except (TypeError, ValueError, RuntimeError) as error:
            problems.append(f"{entry.name} is not an array of numbers: {error}.")
            continue
        if value.shape != entry.shape:
            problems.append(
                f"size mismatch for {entry.name}: copying a param with shape {value.shape} from "
                f"checkpoint, the shape in current model is {entry.shape}."
            )
        arrays[entry.name] = value
    if problems:
        head = f"Error(s) in loading state_dict for {type(module).__name__}:"
        raise StateDictError("\n\t".join([head, *problems]))
    for entry in entries:
        entry.write(arrays[entry.name])


def _prefixed(names: set[str], mapping: Mapping[str, Any]) -> list[str]:
    """What to do where all names would fit without, or with, what stands before them."""
    given, fixes = set(map(str, mapping)), []
    for short, long, fix in (
        (names, given, '{{name.removeprefix("{0}"): a for name, a in mapping.items()}}'),
        (given, names, '{{"{0}" + name: a for name, a in mapping.items()}}'),
    ):
        some = min(short, default="")
        before = {name.removesuffix(some) for name in long if name.endswith("." + some)}
        for prefix in sorted(before):
            if some and {prefix + name for name in short} == long:
                fixes.append("All names differ by a prefix: " + fix.format(prefix))
    return fixes


def save_safetensors(module: nnx.Module, path: str | os.PathLike[str]) -> None:
    """Write `state_dict` to a safetensors file that PyTorch's users can read.

    The file is written beside its place and then moved there, so that a failure leaves what was
    there before.

    Args:
        module: as for `state_dict`.
        path: the file.

    Raises:
        OSError: if the file can't be written.

    Example:
        >>> import jaxrnn, tempfile
        >>> from flax import nnx
        >>> gru = jaxrnn.GRU(3, 4, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxrnn.save_safetensors(gru, folder + "/gru.safetensors")
        ...     jaxrnn.load_safetensors(gru, folder + "/gru.safetensors")
    """
    write_safetensors(path, state_dict(module))


def load_safetensors(module: nnx.Module, path: str | os.PathLike[str]) -> None:
    """Read a safetensors file, PyTorch's or ours, into a module; see `load_state_dict`.

    Args:
        module: as for `state_dict`; nothing of it is changed if the file does not fit.
        path: the file.

    Raises:
        OSError: if the file can't be read.
        StateDictError: if it is no safetensors file, or does not fit the module.

    Example:
        >>> import jaxrnn, numpy as np, tempfile
        >>> from flax import nnx
        >>> from safetensors.numpy import save_file
        >>> cell = jaxrnn.RNNCell(1, 2, bias=False, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     there = {"weight_ih": np.ones((2, 1)), "weight_hh": np.eye(2)}
        ...     save_file(there, folder + "/cell.safetensors")
        ...     jaxrnn.load_safetensors(cell, folder + "/cell.safetensors")
        >>> cell.weight_hh[...].sum().item()
        2.0
    """
    try:
        mapping, _ = read_safetensors(path)
    except ValueError as error:
        torchs = os.fspath(path).endswith((".pt", ".pth"))
        hint = "; torch.load reads what torch.save wrote, for load_state_dict" if torchs else ""
        raise StateDictError(f"{error}{hint}") from error
    load_state_dict(module, mapping)


def _entries(module: nnx.Module) -> Iterator[_Entry]:
    yield from _walk(module, "", ())


def _walk(node: Any, prefix: str, above: Sequence[int]) -> Iterator[_Entry]:
    """The parameters below a node, in PyTorch's order: its own before those of its modules."""
    if isinstance(node, nnx.Param):
        yield _Entry(prefix[:-1], node)
        return
    if id(node) in above:  # a module that holds its parent
        return
    above = (*above, id(node))
    children = _children(node)
    renamed = next((name for kind, name in _WEIGHT.items() if isinstance(node, kind)), None)
    if renamed is not None:
        weight = children.pop(renamed)
        if weight is not None:  # a norm may have none
            yield _Entry(prefix + "weight", weight, kernel=renamed == "kernel")
    elif _foreign(node) and any(isinstance(child, nnx.Param) for child in children.values()):
        listed = ", ".join(f"nnx.{kind.__name__}" for kind in (*_WEIGHT, nnx.Sequential))
        raise TypeError(
            f"{prefix[:-1] or 'the module'} is a {type(node).__name__}: only {listed}, jaxrnn's "
            "and your own modules have PyTorch names"
        )
    for name in getattr(node, "parameter_names", ()):
        if not isinstance(children[name], nnx.Variable):
            raise TypeError(
                f"{prefix}{name} is no parameter any more, but a {type(children[name]).__name__}: "
                f"set its values by {name}[...] = values"
            )
    for name, child in sorted(children.items(), key=lambda c: not isinstance(c[1], nnx.Param)):
        yield from _walk(child, f"{prefix}{name}.", above)


def _children(node: Any) -> dict[str, Any]:
    """What a node holds, by name."""
    if isinstance(node, nnx.Sequential):
        node = node.layers
    if isinstance(node, Mapping):
        return dict(node)
    if isinstance(node, Sequence) and not isinstance(node, str):
        return {str(index): child for index, child in enumerate(node)}
    if not isinstance(node, nnx.Module):
        return {}
    attributes = vars(node)  # what Flax keeps there of its own has no parameters in it
    # Flax sorts the attributes of a module that it copies; ours know PyTorch's order.
    return {k: attributes[k] for k in (*getattr(node, "parameter_names", ()), *attributes)}


def _foreign(node: Any) -> bool:
    """A Flax layer with parameters of its own making, and not a mere container."""
    return type(node).__module__.startswith("flax.") and not isinstance(node, (nnx.List, nnx.Dict))


def _to_numpy(value: Any) -> np.ndarray:
    """An array of numbers, from a NumPy or JAX array or, without importing it, a torch tensor."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16 of its own; float32 holds each of its values.
        value = value.float() if "bfloat16" in str(value.dtype) else value
    array = np.asarray(value)
    real = jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    if not (real or array.dtype == bool):
        raise TypeError(f"dtype {array.dtype}")
    return array
