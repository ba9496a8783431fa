"""Sequence to sequence: an encoder reads a sentence, a decoder writes another.

.. code-block:: text

    memory, s = encoder(source)                             one vector for each source token
    h_1 ... h_T = decoder's layers(bos, y_1 ... y_{T-1})    from the state s
    c_t = attention(h_t, memory)                            where there is attention
    logits_t = W_o tanh(W_c [c_t; h_t])                     W_o h_t without attention

Attention comes after the decoder's recurrence and not into it, so that in training, where the
target is known, the whole of it goes through the layers in one call. Both sides are ragged: token
arrays are (N, S) and (N, T), each row padded with anything up to the longest, and say their
lengths. A target ends with `eos`, which its length counts, and does not begin with `bos`.

Sources: I. Sutskever et al., arXiv:1409.3215; K. Cho et al., arXiv:1406.1078; attention after the
recurrence, M.-T. Luong et al., arXiv:1508.04025, without their input feeding.
"""

from jaxrnn.layers.seq2seq.loss import cross_entropy
from jaxrnn.layers.seq2seq.model import Seq2Seq
from jaxrnn.layers.seq2seq.parts import Bridge, Decoder, Encoder

__all__ = ["Bridge", "Decoder", "Encoder", "Seq2Seq", "cross_entropy"]
