"""Training as compiled loops: many steps in one call, many runs at once, progress if watched."""

from jaxrnn.training.progress import Progress
from jaxrnn.training.steps import Trained, jit_steps, train_steps
from jaxrnn.training.sweeps import Swept, sweep
from jaxrnn.training.tbptt import streams, truncated_bptt
from jaxrnn.training.timing import Timed, compile_and_run

__all__ = [
    "Progress",
    "Swept",
    "Timed",
    "Trained",
    "compile_and_run",
    "jit_steps",
    "streams",
    "sweep",
    "train_steps",
    "truncated_bptt",
]
