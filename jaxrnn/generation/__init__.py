"""Generation, one to many: what a network says is what it hears next, as one compiled loop.

A step is any function of a state and of one input for each row:

.. code-block:: text

    step(state, tokens (N,)) -> (logits (N, V), state)         for `generate` and `beam_search`
    step(state, x (N, D))    -> (y (N, D), state)              for `roll_out`

The state is any pytree whose leaves have the rows along their first axis, (N, ...). A layer's
states have them along their second, (L, N, H); `token_step` and `value_step` make a step of a
layer, and `rows_first` turns the state that a call of a layer leaves into the state of a step.

All three functions are pure, and each is one compiled loop. A step that `token_step` or
`value_step` makes of modules goes into it as an argument: a second call compiles nothing, and finds
the parameters that the modules have by then. With any other function as a step, or as a part of
one, put the call under `jax.jit`.

Axis letters: N rows, V tokens in the vocabulary, B beams, T steps, D features, L layers, H hidden.
"""

from jaxrnn.generation.beams import Beams, beam_search
from jaxrnn.generation.sampling import Generated, generate, roll_out
from jaxrnn.generation.steps import LayerStep, Step, rows_first, token_step, value_step

__all__ = [
    "Beams",
    "Generated",
    "LayerStep",
    "Step",
    "beam_search",
    "generate",
    "roll_out",
    "rows_first",
    "token_step",
    "value_step",
]
