"""Reference LSTM, GRU and RNN in NumPy float64, forward and backward.

One loop over time with PyTorch's formulas and parameters, independent of every contender.

- RNN:  h' = tanh(a + b)
- LSTM: i, f, o = sigmoid, g = tanh of (a + b); c' = f c + i g; h' = o tanh(c')
- GRU:  r, z = sigmoid(a + b); n = tanh(a_n + r b_n); h' = (1 - z) n + z h

with a = W_ih x + b_ih and b = W_hh h + b_hh.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from bench.layers import Spec, compared, draw_input, draw_weights, relative_error

Array = np.ndarray
State = tuple[Array, ...]


def sigmoid(x: Array) -> Array:
    return 0.5 * (np.tanh(0.5 * x) + 1.0)


# A step maps (a, b, state) to (state', saved), and its backward pass maps (dstate', saved) to
# (da, db, dstate without the part that flows through b). State is (h,) or (h, c).


def rnn_step(a: Array, b: Array, state: State) -> tuple[State, State]:
    h = np.tanh(a + b)
    return (h,), (h,)


def rnn_back(dstate: State, saved: State) -> tuple[Array, Array, State]:
    (h,) = saved
    da = dstate[0] * (1 - h * h)
    return da, da, (np.zeros_like(h),)


def lstm_step(a: Array, b: Array, state: State) -> tuple[State, State]:
    c = state[1]
    i, f, g, o = np.split(a + b, 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c_new = f * c + i * g
    tanh_c = np.tanh(c_new)
    return (o * tanh_c, c_new), (i, f, g, o, c, tanh_c)


def lstm_back(dstate: State, saved: State) -> tuple[Array, Array, State]:
    i, f, g, o, c, tanh_c = saved
    dh, dc = dstate
    dc = dc + dh * o * (1 - tanh_c**2)
    di, df = dc * g * i * (1 - i), dc * c * f * (1 - f)
    dg, do = dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)
    da = np.concatenate([di, df, dg, do], axis=-1)
    return da, da, (np.zeros_like(dh), dc * f)


def gru_step(a: Array, b: Array, state: State) -> tuple[State, State]:
    (h,) = state
    (a_r, a_z, a_n), (b_r, b_z, b_n) = np.split(a, 3, axis=-1), np.split(b, 3, axis=-1)
    r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z)
    n = np.tanh(a_n + r * b_n)
    return ((1 - z) * n + z * h,), (r, z, n, h, b_n)


def gru_back(dstate: State, saved: State) -> tuple[Array, Array, State]:
    r, z, n, h, b_n = saved
    (dh,) = dstate
    dn = dh * (1 - z) * (1 - n * n)
    dr, dz = dn * b_n * r * (1 - r), dh * (h - n) * z * (1 - z)
    da = np.concatenate([dr, dz, dn], axis=-1)
    db = np.concatenate([dr, dz, dn * r], axis=-1)
    return da, db, (dh * z,)


STEPS: dict[str, tuple[Callable, Callable, int]] = {
    "rnn": (rnn_step, rnn_back, 1),
    "lstm": (lstm_step, lstm_back, 2),
    "gru": (gru_step, gru_back, 1),
}


def run_direction(
    cell: str,
    x: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array,
    b_hh: Array,
    resets: Array | None = None,
) -> tuple[Array, Callable[[Array], tuple[Array, list[Array]]]]:
    """Run one layer in one direction from a zero state, which `resets` (T, N) restore.

    Returns:
        The output (T, N, H), and the map of its cotangent to (dx, [dW_ih, dW_hh, db_ih, db_hh]).
    """
    step, back, states = STEPS[cell]
    T, N, _ = x.shape
    H = w_hh.shape[1]
    state: State = tuple(np.zeros((N, H)) for _ in range(states))
    a = x @ w_ih.T + b_ih
    y, residuals = np.empty((T, N, H)), []
    keep_mask = np.ones((T, N, 1)) if resets is None else 1.0 - resets[..., None]
    for t in range(T):
        state = tuple(s * keep_mask[t] for s in state)
        state, saved = step(a[t], state[0] @ w_hh.T + b_hh, state)
        y[t] = state[0]
        residuals.append(saved)

    def backward(dy: Array) -> tuple[Array, list[Array]]:
        da, db = np.empty_like(a), np.empty_like(a)
        dstate: State = tuple(np.zeros((N, H)) for _ in range(states))
        for t in reversed(range(T)):
            dstate = (dstate[0] + dy[t], *dstate[1:])
            da[t], db[t], dstate = back(dstate, residuals[t])
            dstate = (dstate[0] + db[t] @ w_hh, *dstate[1:])
            dstate = tuple(d * keep_mask[t] for d in dstate)
        h_before = np.concatenate([np.zeros((1, N, H)), y[:-1]]) * keep_mask
        flat_a, flat_b = da.reshape(T * N, -1), db.reshape(T * N, -1)
        dw_ih, dw_hh = flat_a.T @ x.reshape(T * N, -1), flat_b.T @ h_before.reshape(T * N, H)
        return da @ w_ih, [dw_ih, dw_hh, flat_a.sum(0), flat_b.sum(0)]

    return y, backward


def run_stack(
    spec: Spec,
    weights: dict[str, Array],
    x: Array,
    backward: bool,
    lengths: Array | None = None,
    resets: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Return the output (T, N, F*H) of a stack, and its weight gradients for a cotangent of ones.

    The gradients are empty unless `backward`. `lengths` (N,) and `resets` (T, N) require one
    direction; the output is zero at padding.
    """
    if spec.bidirectional and (lengths is not None or resets is not None):
        raise ValueError("lengths and resets are for one direction")
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    pullbacks, outputs = [], []
    layer_input = np.asarray(x, np.float64)
    for layer, reverse, suffix in spec.parts():
        params = [np.asarray(weights[f"{name}_{suffix}"], np.float64) for name in names]
        y, pullback = run_direction(
            spec.cell, layer_input[::-1] if reverse else layer_input, *params, resets=resets
        )
        outputs.append(y[::-1] if reverse else y)
        pullbacks.append((layer, reverse, suffix, pullback))
        if len(outputs) == spec.directions:
            layer_input, outputs = np.concatenate(outputs, axis=-1), []
    gradients: dict[str, Array] = {}
    dy = np.ones_like(layer_input)
    if lengths is not None:
        dy *= (np.arange(spec.T)[:, None] < lengths)[..., None]
        layer_input = layer_input * dy
    if not backward:
        return layer_input, gradients
    dx = None
    for layer, reverse, suffix, pullback in reversed(pullbacks):
        half = slice(spec.H, None) if reverse else slice(0, spec.H)
        cotangent = dy[..., half]
        part, grads = pullback(cotangent[::-1] if reverse else cotangent)
        part = part[::-1] if reverse else part
        dx = part if dx is None else dx + part
        gradients.update({f"{name}_{suffix}": g for name, g in zip(names, grads, strict=True)})
        if not reverse and layer > 0:  # Both directions are in: on to the layer below.
            dy, dx = dx, None
    return layer_input, gradients


@lru_cache(maxsize=2)
def expected(spec: Spec, backward: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the float64 output and weight gradients of a case, cached for all its contenders."""
    batch, steps = compared(spec)
    part = replace(spec, N=batch, T=steps)
    return run_stack(part, draw_weights(spec), draw_input(spec)[:steps, :batch], backward)


def errors(
    spec: Spec, output: np.ndarray, gradients: dict[str, np.ndarray] | None
) -> dict[str, float]:
    """Return the relative errors of an output and, if given, of the worst weight gradient.

    The cotangent of the gradients is `draw_cotangent`.
    """
    reference, reference_gradients = expected(spec, gradients is not None)
    batch, steps = compared(spec)
    found = {"output": relative_error(output[:steps, :batch], reference)}
    if gradients is not None:
        found["gradient"] = max(
            relative_error(gradients[name], g) for name, g in reference_gradients.items()
        )
    return found
