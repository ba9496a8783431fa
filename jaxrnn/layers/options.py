"""What every layer may be told beside its sizes: `Options`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict


class Options(TypedDict, total=False):
    """The keyword-only options of every layer, beside ``rngs``.

    Attributes:
        dtype: what to compute in; input, states and weights are cast to it. None, the default:
            they must agree, and are used as they are.
        param_dtype: the dtype of the parameters, float32 by default.
        backend: who runs the loop, see `jaxrnn.backends.select`; "auto" by default.
        remat: less memory for the gradient at the cost of one product a step, see
            `jaxrnn.core.unroll.Plan`; False by default.
        input_dropout: the probability of zeroing each input feature of each layer, in training, for
            a whole row: the same features at every step, for both directions. For this and the
            next four see `jaxrnn.core.dropout`; all are 0 or False by default.
        recurrent_dropout: that of zeroing each feature of h on its way into W_hh, in training, for
            a whole row; for cells of gates.
        zoneout: that of each unit of the state to stay as it is, at each step in training, by its
            expectation else; a number, or one for each state.
        weight_drop: that of zeroing each weight of W_hh, in training, once for a whole call.
        weight_norm: True, or names of weights out of ("weight_ih", "weight_hh") and those that the
            cell declares: hold each as ``<name>_l{k}{s}_g`` and ``_v``, by rows
            ``W = g * V / |V|``.
        learn_initial_state: hold the state that None stands for as parameters,
            ``<state>_0_l{k}{s}`` (S,) for each layer and direction, zeros at the beginning. A reset
            still begins from zeros.
        skip: None, "residual" or "highway": what leads around each layer that has as many features
            going in as coming out, see `jaxrnn.core.skips`. A highway adds
            ``weight_highway_l{k}`` (F*R, F*R) and ``bias_highway_l{k}`` (F*R,).
    """

    dtype: Any
    param_dtype: Any
    backend: str
    remat: bool
    input_dropout: float
    recurrent_dropout: float
    zoneout: float | Sequence[float]
    weight_drop: float
    weight_norm: bool | Sequence[str]
    learn_initial_state: bool
    skip: str | None
