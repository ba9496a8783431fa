# pyright: reportMissingImports=false
"""Base of the training jobs: common initial weights, errors and contenders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np

from bench.core import Contender
from bench.layers import Spec, draw_weights, relative_error
from bench.peers import PEERS
from bench.timing import seconds_per_call

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """A training job of PyTorch and jaxrnn from the same initial weights.

    Attributes:
        weights: draws the initial weights, under PyTorch's names.
        torch: (weights, dtype, device) -> a function that trains as a PyTorch user would write it,
            from those weights each time it is called, and returns the losses.
        jaxrnn: weights -> (a pure function that trains, its parameters). The function returns
            something with ``losses``.
        note: what a reader must know of the PyTorch loop.
        seconds: whether the PyTorch loop takes many seconds: it is run once a round then.
        others: as `jaxrnn`, of other JAX libraries by name.
    """

    weights: Callable[[], Weights]
    torch: Callable[[Weights, Any, Any], Callable[[], Any]]
    jaxrnn: Callable[[Weights], tuple[Callable[[Any], Any], Any]]
    note: str = "eager loop"
    seconds: bool = False
    others: Mapping[str, Callable[[Weights], tuple[Callable[[Any], Any], Any]]] = field(
        default_factory=dict, compare=False
    )

    def build(self, peer: str) -> Contender:
        """Build the contender of a peer."""
        PEERS[peer].require()
        if peer == "torch":
            return self._build_torch()
        return self._build_jax(self.others.get(peer, self.jaxrnn))

    def _build_torch(self) -> Contender:
        import torch

        from bench.peers.pytorch import device, peak_bytes

        where = device()
        train = self.torch(self.weights(), torch.float32, where)

        def check() -> dict[str, float]:
            return errors(train(), expected(self))

        if self.seconds:
            return Contender(value=lambda: seconds_per_call(train, 1), check=check, note=self.note)
        memory = partial(peak_bytes, train, where)
        return Contender(run=train, check=check, note=self.note, memory=memory)

    def _build_jax(self, job: Callable[[Weights], tuple[Callable[[Any], Any], Any]]) -> Contender:
        import jax

        from bench.peers.base import temporary_bytes

        training, params = job(self.weights())
        start = perf_counter()
        compiled = jax.jit(training).lower(params).compile()
        compile_s = perf_counter() - start

        def train() -> Any:
            return jax.block_until_ready(compiled(params))

        return Contender(
            run=train,
            compile_s=compile_s,
            check=(lambda: errors(train().losses, expected(self))) if find_spec("torch") else None,
            no_check="n/a (no PyTorch to compare with)",
            note="one compiled call",
            memory=lambda: temporary_bytes(compiled),
        )


@lru_cache(maxsize=2)
def expected(job: Job) -> np.ndarray:
    """Return the losses of a job in PyTorch float64."""
    import torch

    return np.asarray(job.torch(job.weights(), torch.float64, torch.device("cpu"))())


def errors(losses: Any, reference: np.ndarray) -> dict[str, float]:
    """Return the largest relative error of a loss."""
    ratios = np.asarray(losses, np.float64) / reference
    return {"losses": relative_error(ratios, np.ones_like(reference))}


def draw(spec: Spec, outputs: int, seed: int = 0) -> Weights:
    """Draw the weights of a recurrent stack ``rnn`` and a linear layer ``fc``, as PyTorch does."""
    rng, bound = np.random.default_rng((2, seed)), spec.H**-0.5
    weights = {f"rnn.{name}": value for name, value in draw_weights(spec, seed).items()}
    weights["fc.weight"] = rng.uniform(-bound, bound, (outputs, spec.H)).astype(np.float32)
    weights["fc.bias"] = rng.uniform(-bound, bound, (outputs,)).astype(np.float32)
    return weights


def load_torch(model: Any, weights: Weights) -> Callable[[], None]:
    """Return a function that loads the weights into a PyTorch model, in its dtype and device."""
    import torch

    one = next(model.parameters())
    start = {name: torch.from_numpy(w).to(one.device, one.dtype) for name, w in weights.items()}
    return lambda: model.load_state_dict(start)


def load_jaxrnn(model: Any, weights: Weights) -> Any:
    """Load the weights into a jaxrnn model, and return its parameters."""
    from flax import nnx

    import jaxrnn

    jaxrnn.load_state_dict(model, weights)
    return nnx.state(model, nnx.Param)
