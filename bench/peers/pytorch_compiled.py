# pyright: reportMissingImports=false
"""Recurrent layers for torch.compile: the formulas of a layer over PyTorch's scan.

``torch.compile(torch.nn.LSTM(...))`` would measure nothing new. As of torch 2.13.0 it leaves LSTM,
GRU and RNN to eager execution (a graph break, and nothing is compiled). With
``torch._dynamo.config.allow_rnn`` an LSTM on the CPU becomes one call of the kernel that eager
execution calls, and fails in the backward pass; GRU and RNN are unrolled over time, and the
gradient of a GRU takes about 2 s of compiling a time step.

So the same layer is written here as one would write it for a compiler: the product for the inputs
of all steps, then ``torch._higher_order_ops.scan`` (a prototype) over one step. It becomes one
graph without breaks, and compiles in a few seconds whatever T is, which bounds what the peer adds
to a run; each layer and direction would add as much again, so there is one of one.

Written plainly, scan's gradient keeps a copy of the weights for each time step, and is wrong for a
bias that is used inside the step. So the product has its derivative written out (`Product`), the
biases stand outside the loop, and no result counts before it has been compared (`checked`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from bench.core import Unsupported
from bench.layers import NAMES, Spec

WRONG = 1e-2
"""Relative error above which a result is no rounding: TF32 is good for about 1e-3."""


def require_compiler(where: torch.device) -> None:
    """Raise `Unsupported` if the code that torch.compile generates cannot be compiled here."""
    from torch._inductor import cpp_builder, exc
    from torch.utils import _triton

    if where.type == "cuda" and not _triton.has_triton():
        raise Unsupported("torch.compile needs Triton on a GPU")
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise Unsupported("torch.compile needs a C++ compiler") from error


class Product(torch.autograd.Function):
    """h W^T, whose gradient needs h and W and nothing that is computed in the step."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, w: torch.Tensor, w_t: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(h, w)
        return h @ w_t

    @staticmethod
    def backward(ctx: Any, dz: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        h, w = ctx.saved_tensors
        return dz @ w, dz.T @ h, None


def formulas(spec: Spec) -> Callable[..., torch.Tensor]:
    """Return the layer as a function of (x, weight_ih, weight_hh, bias_ih, bias_hh)."""
    try:
        from torch._higher_order_ops.scan import scan
    except ImportError as error:
        raise Unsupported("this torch has no scan to compile") from error
    N, H, G = spec.N, spec.H, spec.gates

    def gates(z: torch.Tensor) -> list[torch.Tensor]:
        return [z[:, k * H : (k + 1) * H] for k in range(G)]

    def layer(
        x: torch.Tensor,
        w_ih: torch.Tensor,
        w_hh: torch.Tensor,
        b_ih: torch.Tensor,
        b_hh: torch.Tensor,
    ) -> torch.Tensor:
        b_n = b_hh[-H:].expand(N, H).contiguous()  # GRU's is used in the step, a row a sample.
        outside = (
            torch.cat([b_hh[:-H], torch.zeros_like(b_hh[-H:])]) if spec.cell == "gru" else b_hh
        )
        a = functional.linear(x, w_ih, b_ih + outside)
        w_t = w_hh.detach().T.contiguous()

        def step(state: tuple[torch.Tensor, ...], a_t: torch.Tensor) -> Any:
            h, b = state[0], Product.apply(state[0], w_hh, w_t)
            if spec.cell == "rnn":
                new = (torch.tanh(a_t + b),)
            elif spec.cell == "lstm":
                i, f, g, o = gates(a_t + b)
                c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
                new = (torch.sigmoid(o) * torch.tanh(c), c)
            else:
                (a_r, a_z, a_n), (b_r, b_z, h_n) = gates(a_t), gates(b)
                r, z = torch.sigmoid(a_r + b_r), torch.sigmoid(a_z + b_z)
                n = torch.tanh(a_n + r * (h_n + b_n))
                new = ((1 - z) * n + z * h,)
            # Scan wants outputs that share no memory, and saves some of them for the gradient.
            return tuple(value.clone() for value in new), new[0].clone()

        states = 2 if spec.cell == "lstm" else 1
        zero = tuple(x.new_zeros(N, H) for _ in range(states))
        return scan(step, zero, a)[1]

    return layer


def compiled(spec: Spec, backward: bool, where: torch.device) -> Callable:
    """Return `formulas` under torch.compile, which compiles at the first call.

    Raises `Unsupported` for more than one layer or direction, and without a compiler.
    """
    if len(spec.parts()) > 1:
        raise Unsupported("one layer in one direction only, to bound the time of compiling")
    require_compiler(where)
    torch._dynamo.reset()  # It counts the variants of a function, and gives up at the ninth.
    # The loop over time in C++ rather than in Python: up to four times as fast, forward on the CPU.
    # With a gradient the C++ that torch 2.13.0 writes does not compile.
    options: dict[str, Any] = {"cpp_wrapper": where.type == "cpu" and not backward}
    return torch.compile(formulas(spec), fullgraph=True, dynamic=False, options=options)


def checked(spec: Spec, errors: dict[str, float]) -> dict[str, float]:
    """Return `errors`, if the results are right."""
    for name, error in errors.items():
        if not error < WRONG:
            cell = NAMES[spec.cell]
            raise RuntimeError(f"torch.compile gets the {name} of {cell} wrong, by {error:.0e}")
    return errors
