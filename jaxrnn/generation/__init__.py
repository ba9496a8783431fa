"""Autoregressive generation: sampling, beam search and rollouts, each one compiled loop.

A step is any pure function of a recurrent state and the inputs of one time step:

.. code-block:: text

    step(state, tokens (N,)) -> (logits (N, V), state)         for `generate` and `beam_search`
    step(state, x (N, D))    -> (y (N, D), state)              for `rollout`

The state is any pytree of batch-major arrays (N, ...). `token_step` and `value_step` make a step
from a layer. A layer's own states (L, N, H) are converted by `batch_major`.

A step that `token_step` or `value_step` makes from modules is an argument of the compiled loop: a
second call compiles nothing and uses the current parameters. Any other function is traced at each
call; put such a call under `jax.jit`.

Axis letters: N batch, V vocabulary, B beams, T time, D features, L layers, H hidden size.
"""

from jaxrnn.generation.beam_search import Beams, beam_search
from jaxrnn.generation.sampling import (
    Generated,
    LayerStep,
    Step,
    batch_major,
    generate,
    rollout,
    token_step,
    value_step,
)

__all__ = ["Beams", "Generated", "LayerStep", "Step", "batch_major", "beam_search", "generate"]
__all__ += ["rollout", "token_step", "value_step"]
