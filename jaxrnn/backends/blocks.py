"""Time in blocks: an outer scan over blocks of steps, whatever the length of the sequence.

Each block does its own product with the input weights, so that the gate inputs of a block, not
of the whole sequence, have to be held; they are read while they are still in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.backends.platform import CPU

SHORTEST = 10


def known(*sizes: Any) -> bool:
    """Whether sizes are numbers, and not the symbols of a program to export (`jax.export`)."""
    return all(isinstance(size, int) for size in sizes)


def block_length(
    steps: int,
    batch: int,
    wish: int | None = None,
    *,
    rows: int = CPU.rows,
    longest: int = CPU.longest,
) -> int:
    """The number of steps in a block, for T `steps` of N `batch` rows: about `rows` in all.

    A divisor of T near the wished length is taken if there is one, so that no shorter block is
    left over. A T that is a symbol makes one block: what is left of it would be one too.

    Example:
        >>> block_length(100, 64), block_length(500, 1), block_length(97, 64), block_length(7, 64)
        (10, 50, 10, 7)
        >>> block_length(100, 64, wish=30)
        30
    """
    if not known(steps):
        return steps
    if wish is not None:
        return max(1, min(wish, steps))
    wish = min(max(rows // max(batch, 1), SHORTEST), longest) if known(batch) else SHORTEST
    if steps <= wish * 3 // 2:
        return steps
    near = [k for k in range(wish // 2, 2 * wish + 1) if steps % k == 0]
    return min(near, key=lambda k: abs(k - wish)) if near else wish


def scan_blocks(
    body: Callable[[Any, Any, Any], tuple[Any, Any, Any]],
    carry: Any,
    steps: Any,
    blocks: Any,
    *,
    length: int,
    reverse: bool,
) -> tuple[Any, Any, Any]:
    """`lax.scan` over blocks of `length` steps; the last block in time may be shorter.

    Args:
        body: ``(carry, steps of the block, value of the block) -> (carry, steps out, value out)``.
        carry: the initial carry.
        steps: a pytree of arrays (T, ...), handed out in pieces (length, ...).
        blocks: a pytree of arrays (number of blocks, ...), handed out one a block.
        length: steps in a block.
        reverse: go through the blocks from the last to the first.

    Returns:
        The last carry, the outputs by step (T, ...), the outputs by block (number of blocks, ...).
    """
    total = jax.tree.leaves(steps)[0].shape[0]
    count, left = (1, 0) if length == total else divmod(total, length)

    def one(carry: Any, first: int, size: int, index: int) -> tuple[Any, Any, Any]:
        piece = steps if size == total else jax.tree.map(lambda a: a[first : first + size], steps)
        carry, out, value = body(carry, piece, jax.tree.map(lambda a: a[index], blocks))
        return carry, out, jax.tree.map(lambda a: a[None], value)

    def many(carry: Any) -> tuple[Any, Any, Any]:
        if count == 1:
            return one(carry, 0, length, 0)
        cut = jax.tree.map(
            lambda a: a[: count * length].reshape(count, length, *a.shape[1:]), steps
        )

        def scanned(carry: Any, inputs: Any) -> tuple[Any, Any]:
            carry, out, value = body(carry, *inputs)
            return carry, (out, value)

        inputs = cut, jax.tree.map(lambda a: a[:count], blocks)
        carry, (out, values) = lax.scan(scanned, carry, inputs, reverse=reverse)
        return carry, jax.tree.map(lambda a: a.reshape(count * length, *a.shape[2:]), out), values

    if not left:
        return many(carry)
    if reverse:
        carry, last, last_value = one(carry, count * length, left, count)
        carry, out, values = many(carry)
    else:
        carry, out, values = many(carry)
        carry, last, last_value = one(carry, count * length, left, count)
    join = lambda a, b: jnp.concatenate([a, b])  # noqa: E731
    return carry, jax.tree.map(join, out, last), jax.tree.map(join, values, last_value)


def first_and_shifted(first: jax.Array, steps: jax.Array, *, reverse: bool) -> jax.Array:
    """What stood before each step: `first` (N, ...) before the first, `steps` (K, N, ...) after."""
    if reverse:
        return jnp.concatenate([steps[1:], first[None]])
    return jnp.concatenate([first[None], steps[:-1]])
