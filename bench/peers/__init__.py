"""Registry of the compared libraries, one adapter module each, imported on first use.

To add one: a file with a class `Peer` (a `bench.peers.base.JaxPeer` with a `direction` of about
fifteen lines, or anything with a `contender` method), and a line in `PEERS`.
"""

from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from bench.core import Unsupported


@dataclass(frozen=True)
class Entry:
    """A peer: its name, required packages and adapter module."""

    name: str
    package: str
    adapter: str
    uses_jax: bool = True
    also: tuple[str, ...] = ()
    """Other packages that its adapter imports."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the adapter's `Peer`."""
    ours: bool = False
    """True for another backend of jaxrnn, which enters no comparison."""
    gpu: bool = False
    """True for a peer of GPU suites only."""
    slow_to_build: bool = False
    """True for a peer that compiles for seconds per case; ``--quick`` skips it by default."""

    @property
    def installed(self) -> bool:
        return all(find_spec(package) is not None for package in (self.package, *self.also))

    def require(self) -> None:
        """Raise `Unsupported` if the library is not installed."""
        if not self.installed:
            raise Unsupported("not installed")

    def load(self) -> Any:
        """Import the adapter, and return its `Peer`."""
        self.require()
        return import_module(f"bench.peers.{self.adapter}").Peer(**self.arguments)


GRAPHS = {
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE"
    ),
    "xla_gpu_graph_min_graph_size": 1,
}
"""Compiler options of XLA that capture loops as CUDA graphs."""

PEERS = {
    entry.name: entry
    for entry in (
        Entry("jaxrnn", "jaxrnn", "ours"),
        Entry("jaxrnn.scan", "jaxrnn", "ours", arguments={"backend": "scan"}, ours=True),
        *(
            Entry(f"jaxrnn.{name}", "jaxrnn", "ours", arguments=arguments, ours=True, gpu=True)
            for name, arguments in (
                ("kernel", {"backend": "kernel"}),
                ("graph", {"backend": "scan", "compiler": GRAPHS}),
            )
        ),
        Entry("torch", "torch", "pytorch", uses_jax=False),
        Entry(
            "torch.compile",
            "torch",
            "pytorch",
            uses_jax=False,
            arguments={"compiled": True},
            slow_to_build=True,
        ),
        Entry("onnxruntime", "onnxruntime", "onnx_runtime", uses_jax=False, also=("onnx",)),
        Entry(
            "torch.graph", "torch", "pytorch", uses_jax=False, arguments={"graphed": True}, gpu=True
        ),
        Entry("jax.rnn", "jax", "jax_rnn", gpu=True),
        Entry("flax.linen", "flax", "flax_linen"),
        Entry("flax.nnx", "flax", "flax_nnx"),
        Entry("haiku", "haiku", "dm_haiku"),
        Entry("equinox", "equinox", "eqx"),
        Entry("keras", "keras", "keras_jax"),
    )
}

OURS = tuple(name for name, entry in PEERS.items() if entry.ours)
ANYWHERE = tuple(name for name, entry in PEERS.items() if not entry.gpu)
"""Peers of suites that run on any platform."""

JAX_PEERS = tuple(name for name in ANYWHERE if PEERS[name].uses_jax and name not in OURS)
