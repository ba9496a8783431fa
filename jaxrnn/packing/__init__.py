"""`PackedSequence` and its functions: ``torch.nn.utils.rnn`` for JAX.

Padded batches, packed ones and lists of sequences, each made from the other. The lengths decide
the shapes, so they are known numbers and never traced; `data` may be, and every derivative goes
through it. Where each step goes is worked out by NumPy. Axis letters: N sequences, T steps of the
longest, S steps of all together.
"""

from jaxrnn.packing.packed import (
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    padded,
    repacked,
    unpack_sequence,
)
from jaxrnn.packing.padding import pad_sequence, unpad_sequence
from jaxrnn.packing.sequence import PackedSequence, invert_permutation

__all__ = [
    "PackedSequence",
    "invert_permutation",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "padded",
    "repacked",
    "unpack_sequence",
    "unpad_sequence",
]
