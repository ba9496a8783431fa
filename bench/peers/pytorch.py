# pyright: reportMissingImports=false
"""PyTorch on JAX's device: torch.nn.LSTM, GRU and RNN, eager, as CUDA graphs, or compiled."""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import jax
import torch

from bench.core import Contender, Unsupported
from bench.layers import NAMES, Spec, draw_cotangent, draw_input, draw_weights
from bench.peers import pytorch_compiled
from bench.reference import errors


def device() -> torch.device:
    """Return the kind of device that JAX uses."""
    if jax.default_backend() == "gpu":
        if not torch.cuda.is_available():
            raise Unsupported(f"JAX runs on a GPU and torch {torch.__version__} has no CUDA there")
        return torch.device("cuda")
    return torch.device("cpu")


def wait(where: torch.device) -> None:
    """Wait for the device; eager calls on the CPU are synchronous."""
    if where.type == "cuda":
        torch.cuda.synchronize()


def module(spec: Spec, where: torch.device) -> Any:
    """Build the layer of a case with the drawn weights on a device."""
    make = getattr(torch.nn, NAMES[spec.cell])
    layer = make(spec.D, spec.H, spec.num_layers, bidirectional=spec.bidirectional)
    layer.load_state_dict({k: torch.from_numpy(v) for k, v in draw_weights(spec).items()})
    return layer.to(where)


def settle(run: Callable[[], object]) -> float:
    """Return the seconds of the first call, during which torch.compile compiles."""
    from torch._dynamo.exc import Unsupported as GraphBreak

    start = perf_counter()
    try:
        run()
    except GraphBreak as error:
        raise Unsupported("torch.compile falls back to eager") from error
    return perf_counter() - start


def captured(run: Callable[[], Any]) -> tuple[Callable[[], Any], float]:
    """Capture `run` as a CUDA graph, one launch with static result tensors.

    Returns:
        what replays it, and the bytes that it keeps for itself, its results included.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # Warm up outside the capture, which must not allocate first.
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph, found = torch.cuda.CUDAGraph(), []

    def capture() -> None:
        with torch.cuda.graph(graph):
            found.append(run())

    taken, results = peak_bytes(capture, torch.device("cuda")), found[0]

    def replay() -> Any:
        graph.replay()
        torch.cuda.synchronize()
        return results

    return replay, taken


def peak_bytes(run: Callable[[], Any], where: torch.device) -> float:
    """Return the peak device memory of a run, results included."""
    if where.type != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return float(torch.cuda.max_memory_allocated() - before)


class Peer:
    """Eager PyTorch, or with `compiled` the same layer as torch.compile can compile it.

    With `graphed` it is eager PyTorch as a CUDA graph.
    """

    def __init__(self, compiled: bool = False, graphed: bool = False) -> None:
        self.compiled = compiled
        self.graphed = graphed

    def contender(self, spec: Spec, backward: bool) -> Contender:
        where, dtype = device(), getattr(torch, spec.dtype)
        if self.graphed and where.type != "cuda":
            raise Unsupported("CUDA graphs need a GPU and a torch with CUDA")
        layer = module(spec, where).to(dtype)
        x = torch.from_numpy(draw_input(spec)).to(where, dtype)
        ones = torch.ones(spec.T, spec.N, spec.directions * spec.H, device=where, dtype=dtype)
        dy = ones.clone()
        names, params = zip(*layer.named_parameters(), strict=True)

        def eager() -> torch.Tensor:
            return layer(x)[0]

        call: Callable[[], torch.Tensor] = eager
        if self.compiled:
            call = partial(pytorch_compiled.compiled(spec, backward, where), x, *params)

        def forward() -> Any:
            with torch.no_grad() if self.graphed else torch.inference_mode():
                return call(), None

        def gradient() -> Any:
            output = call()
            return output, torch.autograd.grad(output, params, dy)

        once = gradient if backward else forward

        def finished() -> Any:
            results = once()
            wait(where)
            return results

        run, taken = finished, None
        if self.graphed:
            run, taken = captured(once)

        def check() -> dict[str, float]:
            dy.copy_(torch.from_numpy(draw_cotangent(spec)))
            output, gradients = run()
            found = None
            if gradients is not None:
                arrays = [g.float().cpu().numpy() for g in gradients]
                found = dict(zip(names, arrays, strict=True))
            relative = errors(spec, output.detach().float().cpu().numpy(), found)
            dy.copy_(ones)
            return pytorch_compiled.checked(spec, relative) if self.compiled else relative

        note = "its formulas over torch's scan (nn.LSTM, GRU and RNN are not compiled)"
        return Contender(
            run=run,
            compile_s=settle(run) if self.compiled else None,
            layout="(T, N, D)",
            note=note if self.compiled else "",
            check=check,
            memory=lambda: peak_bytes(run, where) if taken is None else taken,
        )
