# pyright: reportMissingImports=false
"""PyTorch on the device that JAX uses: torch.nn.LSTM, GRU and RNN eager, or torch.compile."""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import jax
import torch

from bench.core import Contender, Unsupported
from bench.layers import NAMES, Spec, draw_input, draw_weights, errors
from bench.peers import pytorch_compiled


def device() -> torch.device:
    """The same kind of device as JAX's, so that the comparison is of software."""
    if jax.default_backend() == "gpu":
        if not torch.cuda.is_available():
            raise Unsupported("JAX runs on a GPU and this torch has no CUDA")
        return torch.device("cuda")
    return torch.device("cpu")


def wait(where: torch.device) -> None:
    """Returns when the device has finished; on the CPU, eager calls already have."""
    if where.type == "cuda":
        torch.cuda.synchronize()


def module(spec: Spec, where: torch.device) -> Any:
    """The layer of a case with the drawn weights, on a device."""
    make = getattr(torch.nn, NAMES[spec.cell])
    layer = make(spec.D, spec.H, spec.num_layers, bidirectional=spec.bidirectional)
    layer.load_state_dict({k: torch.from_numpy(v) for k, v in draw_weights(spec).items()})
    return layer.to(where)


def settle(run: Callable[[], object]) -> float:
    """The seconds of a first call, during which torch.compile compiles."""
    from torch._dynamo.exc import Unsupported as GraphBreak

    start = perf_counter()
    try:
        run()
    except GraphBreak as error:
        raise Unsupported("torch.compile falls back to eager") from error
    return perf_counter() - start


class Peer:
    """Eager PyTorch, or with `compiled` the same layer as torch.compile can compile it."""

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled

    def contender(self, spec: Spec, backward: bool) -> Contender:
        where = device()
        layer = module(spec, where)
        x = torch.from_numpy(draw_input(spec)).to(where)
        dy = torch.ones(spec.T, spec.N, spec.directions * spec.H, device=where)
        names, params = zip(*layer.named_parameters(), strict=True)

        def eager() -> torch.Tensor:
            return layer(x)[0]

        call: Callable[[], torch.Tensor] = eager
        if self.compiled:
            call = partial(pytorch_compiled.compiled(spec, backward, where), x, *params)

        def forward() -> Any:
            with torch.inference_mode():
                output = call()
            wait(where)
            return output, None

        def gradient() -> Any:
            output = call()
            gradients = torch.autograd.grad(output, params, dy)
            wait(where)
            return output, gradients

        run = gradient if backward else forward

        def check() -> dict[str, float]:
            output, gradients = run()
            found = None
            if gradients is not None:
                arrays = [g.cpu().numpy() for g in gradients]
                found = dict(zip(names, arrays, strict=True))
            relative = errors(spec, output.detach().cpu().numpy(), found)
            return pytorch_compiled.checked(spec, relative) if self.compiled else relative

        if not self.compiled:
            return Contender(run=run, layout="(T, N, D)", check=check)
        return Contender(
            run=run,
            compile_s=settle(run),
            layout="(T, N, D)",
            note="its formulas over torch's scan (nn.LSTM, GRU and RNN are not compiled)",
            check=check,
        )
