"""What the loops of the kernels for Hopper have in common, forward and backward.

All arrays in global memory are in the kernel's own order, (T, clusters, blocks, what, tile), so
that what a block reads or writes at a step is one contiguous piece; see `jaxrnn.backends.hopper`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.backends.hopper.device import Device
from jaxrnn.backends.hopper.tiling import Tiles

AHEAD = False
"""Whether a step's inputs are fetched during the step before it.

It should take the time of a load, some 0.4 microseconds, from each step; it compiles for the
machine and passes in the interpreter, but has not been run on a GPU yet.
"""


def factors(tile: jax.Array, tiles: Tiles, dtype: Any) -> list[jax.Array]:
    """What goes into the products for a tile of float32: itself, or two that sum up to it.

    TF32 has 11 bits of float32's 24. The first factor has the upper ones, the second the rest.
    """
    if tiles.parts == 1:
        return [tile.astype(dtype)]
    bits = lax.bitcast_convert_type(tile, jnp.int32) & jnp.int32(-0x2000)
    upper = lax.bitcast_convert_type(bits, jnp.float32)
    return [upper, tile - upper]


def products(tiles: Tiles) -> list[tuple[int, int]]:
    """Which parts of the weights meet which parts of the other factor; the least first."""
    return [(0, 0)] if tiles.parts == 1 else [(1, 0), (0, 1), (0, 0)]


def in_pieces(
    device: Device,
    sizes: tuple[int, int, int, int],
    pairs: Callable[[Any], list[tuple[Any, Any]]],
    sums: Any,
    hand: Callable[[int, int], None],
) -> None:
    """A product that goes to several blocks, so many rows to each, as many at a time as have room.

    Args:
        device: the machine.
        sizes: all rows; rows at a time; rows of a block; blocks.
        pairs: what is multiplied for such rows.
        sums: where they are put.
        hand: sends them, to so many blocks from that block on.
    """
    whole, chunk, each, blocks = sizes
    for m in range(0, whole, chunk):
        part = device.products(chunk, pairs(pl.ds(m, chunk)))
        if m:
            plgpu.commit_smem()  # all warps have read the sums before
        device.store(sums, part)
        plgpu.commit_smem()
        hand(m // each, min((m + chunk) // each, blocks) - m // each)


def when(mask: Any, one: jax.Array, other: jax.Array) -> jax.Array:
    """One where the mask is not 0, else the other."""
    return jnp.where(mask > 0.5, one, other)


def pick(refs: Sequence[Any], there: Sequence[Any]) -> list[Any]:
    """The references in their order, with None for those that are not there."""
    left = iter(refs)
    return [next(left) if one else None for one in there]


def start(device: Device, weights: Any, w: Any, count: int, copied: Any, barriers: Any) -> None:
    """Fetch this block's weights, `count` pieces of each part, and make the barriers."""
    pieces = [(p, c) for p in range(device.tiles.parts) for c in range(count)]
    device.fetch([(weights.at[p, c], w.at[p, c]) for p, c in pieces], copied)
    device.begin(barriers)
