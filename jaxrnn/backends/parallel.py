"""A state that is linear in the state before, at all steps at once.

.. code-block:: text

    s_t = a_t * s_{t-1} + b_t
    (a, b) after (a', b')  =  (a * a', a * b' + b)        associative

A reset is a_t = 0, a step that is not the row's is a_t = 1, b_t = 0, and so is zoneout, for a unit.
Axis letters: K steps, S
features of the state, N rows.

Source: G. Blelloch, Prefix sums and their applications (1990); for linear recurrences: E. Martin,
C. Cundy, Parallelizing linear recurrent neural nets over sequence length, arXiv:1709.04057.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.backends.step import StepMasks, leave

Pair = tuple[jax.Array, jax.Array]


def states(coefficients: Pair, before: jax.Array, masks: StepMasks, *, reverse: bool) -> jax.Array:
    """The state after each step (K, S, N).

    Args:
        coefficients: a and b, each (K, S, N).
        before: the state before the first step that is read (S, N).
        masks: of the steps, each (K, N).
        reverse: read from the last step to the first.
    """
    a, b = coefficients
    if masks.zoneout is not None:
        # What keeps the state of a step is the step a = 1, b = 0.
        kept = masks._replace(reset_mask=None, valid_mask=None)
        ones, zeros = (jnp.ones_like(a),), (jnp.zeros_like(b),)
        (a,), (b,) = leave((a,), ones, (a,), kept), leave((b,), zeros, (b,), kept)
    if masks.reset_mask is not None:
        a = jnp.where(masks.reset_mask[:, None], jnp.zeros_like(a), a)
    if masks.valid_mask is not None:
        a = jnp.where(masks.valid_mask[:, None], a, jnp.ones_like(a))
        b = jnp.where(masks.valid_mask[:, None], b, jnp.zeros_like(b))
    first = -1 if reverse else 0
    b = b.at[first].add(a[first] * before)
    return lax.associative_scan(_after, (a, b), reverse=reverse)[1]


def _after(earlier: Pair, later: Pair) -> Pair:
    """Two steps as one."""
    (a1, b1), (a2, b2) = earlier, later
    return a2 * a1, a2 * b1 + b2
