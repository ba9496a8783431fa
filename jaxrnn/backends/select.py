"""Selection of a backend: what each supports, the choice, and its explanation.

"auto", the default, takes the first supported backend of `AUTO` for the platform, and the scan if
a kernel would not pay. All backends compute the same to rounding. A kernel supports cells with
gates and a recurrent matrix; cells with parameters only on a CPU, and only if these are vectors
(H,) or multiples. Whatever a kernel does not compute (forward mode, second derivatives, `jax.vmap`
over weights) is computed by the scan that defines it; so is a program for `jax.export` if the
kernel is machine code of this process. A program that XLA partitions among devices has kernels if
it is traced under `jax.set_mesh` with automatic axes and a batch that the devices divide evenly.

The choice is for the current platform, see `jaxrnn.backends.platform.current_platform`. A program
lowered for another platform keeps the choice made when it was traced; its kernels are those of the
platform it is lowered for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import _checks
from jaxrnn.backends import platform as platforms
from jaxrnn.backends.step import is_static
from jaxrnn.cells import Cell, LinearCell
from jaxrnn.cells.weights import infer_sizes

BACKENDS = ("auto", "scan", "kernel", "parallel")

AUTO = {"cpu": ("kernel", "scan"), "tpu": ("scan",), "cuda": ("kernel", "scan")}
"""Backends that "auto" tries for a cell with gates, by platform; the scan elsewhere.

Measured on CPUs and on a Hopper GPU (`python -m bench`), where a kernel takes a fraction of the
scan's time. The kernel for TPUs never ran on one: request it by name.
"""

AUTO_LINEAR = {"cpu": ("scan",)}
"""Backends that "auto" tries for a `LinearCell`; elsewhere the associative scan, then the scan.

The associative scan makes about 2 log2(T) passes over all coefficients, which suits devices where
sequential steps are expensive. A CPU is bound by memory: on two cores (MinGRU and LRU, N 1 and 32,
T 100 and 1000, D = H 64 and 256, float32) it took 0.95 to 2.8 times as long as the scan forward,
but 0.9 and 0.6 for an LRU with N 32 and T 100, and 1.1 to 2.7 times forward+backward.
"""


class Support(NamedTuple):
    """The support of a backend on a platform.

    Attributes:
        backend, platform: the names.
        cells: "all"; "elementwise", cells that treat each hidden unit independently; or a class.
        dtypes: dtypes of weights and input; () for every floating dtype.
        sizes: restrictions of sizes, in words.
        without: unsupported features, of `FEATURES`.
        derivatives: derivatives with code of their own; the scan computes the others.
        measured: True if measured on the platform by `bench`.
    """

    backend: str
    platform: str
    cells: str
    dtypes: tuple[str, ...]
    sizes: str
    without: tuple[str, ...]
    derivatives: str
    measured: bool


FEATURES = {
    "projection": "projections are not supported",
    "all states": "returning all states is not supported",
    "masks": "recurrent dropout and zoneout are not supported",
}
"""Features that a call may need, with the reason given by a backend without it."""

TABLE = (
    Support("scan", "all", "all", (), "all", (), "all", True),
    Support("parallel", "cpu", "LinearCell", (), "static T", (), "all", True),
    Support("parallel", "all", "LinearCell", (), "static T", (), "all", False),
    Support(
        *("kernel", "cpu", "elementwise", ("float32", "float64"), "all; needs llvmlite"),
        *(("projection", "all states", "masks"), "reverse mode once", True),
    ),
    Support(
        *("kernel", "tpu", "elementwise", ("float32", "bfloat16"), "W_hh within VMEM"),
        *(("projection", "all states", "masks"), "reverse mode once", False),
    ),
    Support(
        *("kernel", "cuda", "elementwise", ("float32", "bfloat16", "float16")),
        *("W_hh in shared memory; Hopper", ("projection", "all states")),
        *("reverse mode once", True),
    ),
)


def support_table() -> str:
    """Return the table of supported features as Markdown."""
    heads = "backend, platform, cells, dtypes, sizes, not with, own derivatives, measured"
    lines = [f"| {heads.replace(', ', ' | ')} |", "|---" * 8 + "|"]
    for s in TABLE:
        dtypes, without = ", ".join(s.dtypes) or "all floating", ", ".join(s.without) or "-"
        columns = (s.backend, s.platform, s.cells, dtypes, s.sizes, without, s.derivatives)
        lines.append(f"| {' | '.join(columns)} | {'yes' if s.measured else 'no'} |")
    return "\n".join(lines)


__doc__ = f"{__doc__}\n{support_table()}\n"


class Request(NamedTuple):
    """The loop that a backend is selected for: cell, dtype, sizes, and features of `FEATURES`."""

    cell: Any
    dtype: Any
    T: Any
    N: Any
    D: Any
    H: Any
    features: frozenset[str] = frozenset()


class Choice(NamedTuple):
    """The selected backend, the platform, the reason, and the reasons against the others."""

    backend: str
    platform: str
    reason: str
    others: dict[str, str]


def check_backend(backend: str) -> None:
    """Check the name of a backend.

    Raises:
        ValueError: naming the choices.
    """
    _checks.choice("backend", backend, BACKENDS)


def choose(
    backend: str,
    cell: Any,
    weights: Any,
    x: Any,
    *,
    return_all_states: bool = False,
    masked_loop: bool = False,
    platform: str | None = None,
) -> Choice:
    """Choose the backend of one layer in one direction.

    Args:
        backend: one of `BACKENDS`.
        cell: the cell.
        weights: `jaxrnn.cells.weights.Weights`.
        x: the input (T, N, D).
        return_all_states: True if all states are returned.
        masked_loop: True if recurrent dropout or zoneout act inside the loop.
        platform: the platform; None for the current one.

    Raises:
        ValueError: if the requested backend is unsupported, with the reason.
    """
    features = {"all states": return_all_states, "masks": masked_loop}
    return decide(backend, _request(cell, weights, x, features), _resolve(platform))


def decide(backend: str, request: Request, platform: str, *, all_backends: bool = False) -> Choice:
    """Choose the backend for a request; with `all_backends`, collect the reasons of all others.

    Raises:
        ValueError: if the requested backend is unsupported, with the reason.
    """
    tried = (backend,) if backend != "auto" else AUTO.get(platform, ("scan",))
    if backend == "auto" and isinstance(request.cell, LinearCell):
        tried = AUTO_LINEAR.get(platform, ("parallel", "scan"))
    reasons: dict[str, str | None] = {}
    for name in BACKENDS[1:] if all_backends else tried:
        reasons[name] = unsupported_reason(name, request, platform)
        if reasons[name] is None and not all_backends:
            break
    chosen = next((name for name in tried if reasons[name] is None), None)
    if chosen is None:
        raise ValueError(
            f"Backend {backend!r} is not supported here: {reasons[backend]}. "
            "Use backend='auto' or 'scan'."
        )
    reason = "requested"
    if backend == "auto":
        reason = f"the first supported of {', '.join(tried)}"
        if len(tried) == 1:
            reason = f'"auto" tries no other on {platform}'
        unprofitable = unprofitable_reason(request, platform) if chosen == "kernel" else None
        if unprofitable is not None:
            chosen, reason = "scan", unprofitable
        else:
            support = _support(chosen, platform)
            assert support is not None
            reason += "" if support.measured else f"; not measured on {platform}"
    others = {
        name: against or f'supported: request it by backend="{name}"'
        for name, against in reasons.items()
        if name != chosen
    }
    return Choice(chosen, platform, reason, others)


def unsupported_reason(backend: str, request: Request, platform: str) -> str | None:
    """Return why a backend cannot run a request; None if it can."""
    support = _support(backend, platform)
    if support is None:
        return f"no such backend for {platform}"
    if backend == "scan":
        return None
    name = type(request.cell).__name__
    if backend == "parallel":
        if not isinstance(request.cell, LinearCell):
            return f"{name} is not a LinearCell"
        return None if is_static(request.T) else f"T must be static, got {request.T}"
    if not isinstance(request.cell, Cell):
        return f"{name} is not a Cell with gates"
    if not request.cell.recurrent:
        return f"{name} has no recurrent matrix"
    for feature in FEATURES:
        if feature in request.features and feature in support.without:
            return FEATURES[feature]
    sizes = request.T, request.N, request.D, request.H
    if not is_static(*sizes) or 0 in sizes:
        return f"T, N, D, H must be static and positive, got {', '.join(map(str, sizes))}"
    dtype = jnp.dtype(request.dtype).name
    if dtype not in support.dtypes:
        return f"the dtype must be {' or '.join(support.dtypes)}, got {dtype}"
    kernels = platforms.kernel_module(platform)
    return kernels.unsupported_reason(request.cell, request.dtype, *sizes)


def unprofitable_reason(request: Request, platform: str) -> str | None:
    """Return why "auto" should prefer the scan to a supported kernel, or None."""
    advise = getattr(platforms.kernel_module(platform), "unprofitable_reason", None)
    sizes = request.T, request.N, request.D, request.H
    return advise and advise(request.cell, request.dtype, *sizes)


def _support(backend: str, platform: str) -> Support | None:
    entries = (s for s in TABLE if s.backend == backend and s.platform in ("all", platform))
    return next(entries, None)


def _resolve(platform: str | None) -> str:
    if platform is None:
        return platforms.current_platform()
    return platforms.canonical_name(platform)


def _request(cell: Any, weights: Any, x: Any, features: dict[str, bool]) -> Request:
    features = features | {"projection": weights.weight_hr is not None}
    T, N, D = x.shape
    H = infer_sizes(cell, weights, D).H
    return Request(cell, x.dtype, T, N, D, H, frozenset(k for k, on in features.items() if on))


class Explanation(NamedTuple):
    """The selected backends of a stack.

    Attributes:
        platform: the platform they are selected for.
        choices: by layer and direction, layer-major.
        directions: F.
    """

    platform: str
    choices: tuple[Choice, ...]
    directions: int

    def __str__(self) -> str:
        lines = [f"on {self.platform}:"]
        for index, choice in enumerate(self.choices):
            layer, direction = divmod(index, self.directions)
            name = f"layer {layer}{', reverse' if direction else ''}"
            lines.append(f"{name}: {choice.backend} ({choice.reason})")
            lines += [f"    {other}: {reason}" for other, reason in choice.others.items()]
        return "\n".join(lines)


def explain(
    options: Any, weights: Sequence[Any], x: Any, *, all_backends: bool = True
) -> Explanation:
    """Select the backend of each layer and direction of a stack, as `jaxrnn.core.stack.run` does.

    Args:
        options: `jaxrnn.core.stack.StackOptions`; its `platform` need not be present.
        weights: F*L of `jaxrnn.cells.weights.Weights`, or of shapes.
        x: the input (T, N, D), or a ``jax.ShapeDtypeStruct``.
        all_backends: if True, also collect the reasons of backends after the selected one.

    Raises:
        ValueError: if the requested backend is unsupported, with the reason; if JAX does not have
            the platform.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> from jaxrnn.backends import select
        >>> from jaxrnn.core import stack
        >>> weights = stack.init(jax.random.key(0), cells.LSTM(), 3, 4)
        >>> x = jax.ShapeDtypeStruct((5, 2, 3), jnp.float16)
        >>> print(select.explain(stack.StackOptions(cells.LSTM(), platform="tpu"), weights, x))
        on tpu:
        layer 0: scan ("auto" tries no other on tpu)
            kernel: the dtype must be float32 or bfloat16, got float16
            parallel: LSTM is not a LinearCell
    """
    platform, noise = _resolve(options.platform), options.regularization
    request_features = {
        "masks": noise is not None and bool(noise.recurrent_dropout or noise.zoneout),
        "all states": options.return_all_states,
    }
    choices, features = [], x.shape[2]
    for index, w in enumerate(weights):
        if index and index % options.directions == 0:
            sizes = infer_sizes(options.cell, weights[index - 1], features)
            features = options.cell.output_features(sizes) * options.directions
        layer_input = jax.ShapeDtypeStruct((*x.shape[:2], features), x.dtype)
        request = _request(options.cell, w, layer_input, request_features)
        choice = decide(options.backend, request, platform, all_backends=all_backends)
        choices.append(choice)
    return Explanation(platform, tuple(choices), options.directions)
