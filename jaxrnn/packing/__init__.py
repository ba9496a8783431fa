"""``torch.nn.utils.rnn`` for JAX: `PackedSequence` and conversions to and from padded batches.

Lengths determine shapes, so they must be concrete. The data may be traced, and gradients flow
through every function. Axis letters: N sequences, T steps of the longest, S steps in total.
"""

from jaxrnn.packing._packed import (
    PackedSequence,
    PackingError,
    invert_permutation,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    repack,
    to_padded,
    unpack_sequence,
    unpad_sequence,
)

__all__ = [
    "PackedSequence",
    "PackingError",
    "invert_permutation",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "repack",
    "to_padded",
    "unpack_sequence",
    "unpad_sequence",
]
