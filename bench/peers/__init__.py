"""The libraries that are compared, one adapter file each, imported only when used.

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
    """A peer by name: what must be installed, and the file that adapts it."""

    name: str
    package: str
    adapter: str
    uses_jax: bool = True
    also: tuple[str, ...] = ()
    """Other packages that its adapter imports."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """What the adapter's `Peer` is made with."""
    ours: bool = False
    """It is another way of ours: a figure for the table, not somebody to be ahead of."""
    gpu: bool = False
    """It is for a GPU: only the suites that name it have it."""
    slow_to_build: bool = False
    """It compiles for seconds a case: ``--quick`` leaves it out unless it is asked for."""

    @property
    def installed(self) -> bool:
        return all(find_spec(package) is not None for package in (self.package, *self.also))

    def require(self) -> None:
        """Raises `Unsupported` if the library is not there."""
        if not self.installed:
            raise Unsupported("not installed")

    def load(self) -> Any:
        """The adapter's `Peer`."""
        self.require()
        return import_module(f"bench.peers.{self.adapter}").Peer(**self.arguments)


GRAPHS = {
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE"
    ),
    "xla_gpu_graph_min_graph_size": 1,
}
"""Options of XLA's GPU compiler for one function: its loops too as CUDA graphs."""

PEERS = {
    entry.name: entry
    for entry in (
        Entry("jaxrnn", "jaxrnn", "ours"),
        Entry("jaxrnn.scan", "jaxrnn", "ours", arguments={"backend": "scan"}, ours=True),
        *(
            Entry(f"jaxrnn.{name}", "jaxrnn", "ours", arguments=arguments, ours=True, gpu=True)
            for name, arguments in (
                ("kernel", {"backend": "kernel"}),
                ("cudnn", {"backend": "cudnn"}),
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
"""The peers of suites that are not for a GPU alone."""

JAX_PEERS = tuple(name for name in ANYWHERE if PEERS[name].uses_jax and name not in OURS)
