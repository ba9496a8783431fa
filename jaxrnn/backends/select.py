"""Who runs the loop of a recurrence: one table of what each can do, and the choice.

"auto", the default, takes the first that can serve of those in `ORDER` for the platform, and on a
CPU the scan where a kernel would not pay. A kernel serves cells of gates that have a recurrent
matrix; such with parameters of their own only on a CPU, and if these are so many numbers of each
hidden unit. All compute the same to rounding. What a kernel or cuDNN has no code for (forward mode,
a second derivative, `jax.vmap` with weights of its own) is done by the scans that define them; so
is, where a kernel is code of this machine, a program for `jax.export`. A program that XLA is to
split among devices has kernels, but not cuDNN, if it is traced under `jax.set_mesh`, as those of
`fit` are, with automatic axes and so many rows that the devices share them evenly: each runs its
own. All other such programs have the scans.

The choice is for `platform()`. A program that is lowered for another one keeps the choice that was
made when it was traced; its kernels are those of the platform it is lowered for, see
`jaxrnn.backends.platform.traced_for`. `explain`, and that of a layer, say who would run what, and why.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import _checks as checks
from jaxrnn.backends import kernels
from jaxrnn.backends import platform as tuning
from jaxrnn.backends.blocks import known
from jaxrnn.cells import Cell, LinearCell
from jaxrnn.cells.weights import infer_sizes

CHOICES = ("auto", "scan", "kernel", "parallel")

ORDER = {"cpu": ("kernel", "scan"), "tpu": ("scan",), "cuda": ("kernel", "scan")}
"""What "auto" tries on a platform for a cell of gates; the scan elsewhere.

Measured on a CPU and on a Hopper GPU (`bench`). There the kernel takes a fraction of a scan's time,
where it has room, and cuDNN, which JAX reaches in float32 only and step by step, more than a scan:
it is there to be asked for, as the kernel for TPUs is, which has never run on one.
"""

LINEAR = {"cpu": ("scan",)}
"""What it tries for a cell that is linear in its state; elsewhere all steps at once, then the scan.

All at once is some 2 log2(T) passes over all coefficients: for devices to which steps one after
another are dear. A CPU waits for memory instead. On two cores (MinGRU and LRU, N 1 and 32, T 100
and 1000, D = H 64 and 256, float32) it took 0.95 to 2.8 times as long as the scan forward, but 0.9
and 0.6 for an LRU of 32 rows at T 100, and 1.1 to 2.7 times forward+backward.
"""


class Row(NamedTuple):
    """What one backend can do on one platform.

    Attributes:
        backend, platform: which.
        cells: "all"; "elementwise", those that treat each hidden unit alike and apart; or a name.
        dtypes: of the weights and the input; () for all that are floating.
        sizes: in words.
        without: the options that it has no code for, of `OPTIONS`.
        derivatives: that are its own; all others are done by the scan.
        measured: on this platform, by `bench`.
    """

    backend: str
    platform: str
    cells: str
    dtypes: tuple[str, ...]
    sizes: str
    without: tuple[str, ...]
    derivatives: str
    measured: bool


OPTIONS = {
    "projection": "it does not project h",
    "all states": "it does not give out all states",
    "masks": "it has no recurrent dropout and no zoneout",
}
"""What a run may ask for, and what a backend without it says."""

TABLE = (
    Row("scan", "all", "all", (), "all", (), "all", True),
    Row("parallel", "cpu", "LinearCell", (), "T a number", (), "all", True),
    Row("parallel", "all", "LinearCell", (), "T a number", (), "all", False),
    Row(
        *("kernel", "cpu", "elementwise", ("float32", "float64"), "all; needs llvmlite"),
        *(("projection", "all states", "masks"), "reverse mode once", True),
    ),
    Row(
        *("kernel", "tpu", "elementwise", ("float32", "bfloat16"), "W_hh within VMEM"),
        *(("projection", "all states", "masks"), "reverse mode once", False),
    ),
    Row(
        *("kernel", "cuda", "elementwise"),
        *(("float32", "bfloat16", "float16"), "W_hh in shared memory; Hopper"),
        *(("projection", "all states"), "reverse mode once", True),
    ),
)


def table() -> str:
    """The table as text."""
    heads = "backend, platform, cells, dtypes, sizes, not with, its own derivatives, measured"
    lines = [f"| {heads.replace(', ', ' | ')} |", "|---" * 8 + "|"]
    for r in TABLE:
        dtypes, without = ", ".join(r.dtypes) or "all floating", ", ".join(r.without) or "-"
        cells = (r.backend, r.platform, r.cells, dtypes, r.sizes, without, r.derivatives)
        lines.append(f"| {' | '.join(cells)} | {'yes' if r.measured else 'no'} |")
    return "\n".join(lines)


__doc__ = f"{__doc__}\n{table()}\n"


class Asked(NamedTuple):
    """What is asked of a run: cell, dtype, sizes, and options of `OPTIONS`."""

    cell: Any
    dtype: Any
    T: Any
    N: Any
    D: Any
    H: Any
    options: frozenset[str] = frozenset()


class Choice(NamedTuple):
    """Who runs it, why, and why the others can't or don't."""

    backend: str
    why: str
    others: dict[str, str]


def platform() -> str:
    """What is computed on: as `tuning.traced_for` or ``jax.default_device`` say, or by default."""
    asked = tuning.asked_platform()
    if asked is not None:
        return asked
    device = jax.config.jax_default_device  # pyright: ignore
    name = device if isinstance(device, str) else getattr(device, "platform", None)
    name = name or jax.default_backend()
    return _gpu() if name == "gpu" else name


@functools.cache
def _gpu() -> str:
    """The platform of a GPU, as programs are lowered for it."""
    version = getattr(jax.devices("gpu")[0].client, "platform_version", "")
    return "rocm" if "rocm" in version.lower() else "cuda"


def check(backend: str) -> None:
    """Refuse a backend that does not exist.

    Raises:
        ValueError: naming the choices.
    """
    checks.choice("backend", backend, CHOICES)


def choose(
    backend: str,
    cell: Any,
    weights: Any,
    x: Any,
    *,
    all_states: bool = False,
    masks: bool = False,
    platform: str | None = None,
) -> Choice:
    """The backend of one layer in one direction.

    Args:
        backend: one of `CHOICES`.
        cell: the cell.
        weights: `jaxrnn.core.unroll.Weights`.
        x: (T, N, D).
        all_states: whether all states are given out.
        masks: whether recurrent dropout or zoneout act within the loop.
        platform: what it is to run on; None for `platform()`.

    Raises:
        ValueError: for a backend that can't serve: why.
    """
    options = {"all states": all_states, "masks": masks}
    return decide(backend, _asked(cell, weights, x, options), _for(platform))


def decide(backend: str, asked: Asked, platform: str, *, full: bool = False) -> Choice:
    """The backend of what is asked; with `full`, all others are asked as well.

    Raises:
        ValueError: for a backend that can't serve: why.
    """
    tried = (backend,) if backend != "auto" else ORDER.get(platform, ("scan",))
    if backend == "auto" and isinstance(asked.cell, LinearCell):
        tried = LINEAR.get(platform, ("parallel", "scan"))
    reasons: dict[str, str | None] = {}
    for name in CHOICES[1:] if full else tried:
        reasons[name] = unsupported_reason(name, asked, platform)
        if reasons[name] is None and not full:
            break
    chosen = next((name for name in tried if reasons[name] is None), None)
    if chosen is None:
        raise ValueError(f'backend="{backend}" can\'t serve here: {reasons[backend]}')
    why = "asked for"
    if backend == "auto":
        why = f"the first that can serve of {', '.join(tried)}"
        if len(tried) == 1:
            why = f'"auto" takes no other on {platform}'
        advice = _unprofitable_reason(asked, platform) if chosen == "kernel" else None
        if advice is not None:
            chosen, why = "scan", advice
        elif not _row(chosen, platform).measured:
            why += f"; not measured on {platform}"
    others = {
        name: reason or f'could serve: backend="{name}" asks for it'
        for name, reason in reasons.items()
        if name != chosen
    }
    return Choice(chosen, why, others)


def unsupported_reason(backend: str, asked: Asked, platform: str) -> str | None:
    """Why a backend can't serve; None if it can."""
    row = _row(backend, platform)
    if row is None:
        return f"there is none for {platform}"
    if backend == "scan":
        return None
    name = type(asked.cell).__name__
    if backend == "parallel":
        if not isinstance(asked.cell, LinearCell):
            return f"{name} is not linear in its state, as a LinearCell is"
        return None if known(asked.T) else f"the steps should be a number, got {asked.T}"
    if not isinstance(asked.cell, Cell):
        return f"{name} is no cell of gates"
    if not asked.cell.recurrent:
        return f"{name} has no recurrent matrix"
    for option in OPTIONS:
        if option in asked.options and option in row.without:
            return OPTIONS[option]
    sizes = asked.T, asked.N, asked.D, asked.H
    if not known(*sizes) or 0 in sizes:
        return f"T, N, D, H should be numbers above 0, got {', '.join(map(str, sizes))}"
    dtype = jnp.dtype(asked.dtype).name
    if dtype not in row.dtypes:
        return f"it computes in {' or '.join(row.dtypes)}, not in {dtype}"
    return kernels.of(platform).unsupported_reason(asked.cell, asked.dtype, *sizes)


def _row(backend: str, platform: str) -> Any:
    there = (r for r in TABLE if r.backend == backend and r.platform in ("all", platform))
    return next(there, None)


def _for(asked: str | None) -> str:
    return platform() if asked is None else tuning.named(asked)


def _asked(cell: Any, weights: Any, x: Any, options: dict[str, bool]) -> Asked:
    options = options | {"projection": weights.weight_hr is not None}
    T, N, D = x.shape
    H = infer_sizes(cell, weights, D).H
    return Asked(cell, x.dtype, T, N, D, H, frozenset(k for k, on in options.items() if on))


def _unprofitable_reason(asked: Asked, platform: str) -> str | None:
    sizes = asked.T, asked.N, asked.D, asked.H
    return kernels.unprofitable_reason(platform, asked.cell, asked.dtype, *sizes)


class Explanation(NamedTuple):
    """Who runs each layer of a stack, and why.

    Attributes:
        platform: what it is for.
        choices: by layer and direction, the forward direction first.
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
            lines.append(f"{name}: {choice.backend} ({choice.why})")
            lines += [f"    {other}: {why}" for other, why in choice.others.items()]
        return "\n".join(lines)


def explain(
    stack: Any, weights: Sequence[Any], x: Any, *, resets: bool = False, full: bool = True
) -> Explanation:
    """Who runs each layer and direction of a stack: what `jaxrnn.core.stack.run` asks before it runs.

    Args:
        stack: `jaxrnn.core.stack.StackOptions`; its `platform` may be one that this machine does not have.
        weights: F*L of `jaxrnn.core.unroll.Weights`, or of what has their shapes.
        x: (T, N, D), or ``jax.ShapeDtypeStruct``.
        resets: whether rows are reset.
        full: ask all backends, also those that come after the chosen one.

    Raises:
        ValueError: for a backend that is asked for and can't serve: why; for a platform that JAX
            does not have.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> from jaxrnn.backends import select as backends
        >>> from jaxrnn.core import stack
        >>> weights = stack.init(jax.random.key(0), cells.LSTM(), 3, 4)
        >>> x = jax.ShapeDtypeStruct((5, 2, 3), jnp.float16)
        >>> print(backends.explain(stack.StackOptions(cells.LSTM(), platform="tpu"), weights, x))
        on tpu:
        layer 0: scan ("auto" takes no other on tpu)
            kernel: it computes in float32 or bfloat16, not in float16
            parallel: LSTM is not linear in its state, as a LinearCell is
    """
    platform, noise = _for(stack.platform), stack.regularisers
    options = {
        "masks": noise is not None and bool(noise.recurrent_dropout or noise.zoneout),
        "all states": stack.all_states,
    }
    choices, features = [], x.shape[2]
    for index, w in enumerate(weights):
        if index and index % stack.directions == 0:
            sizes = infer_sizes(stack.cell, weights[index - 1], features)
            features = stack.cell.output_features(sizes) * stack.directions
        seen = jax.ShapeDtypeStruct((*x.shape[:2], features), x.dtype)
        asked = _asked(stack.cell, w, seen, options)
        choices.append(decide(stack.backend, asked, platform, full=full))
    return Explanation(platform, tuple(choices), stack.directions)
