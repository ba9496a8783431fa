"""Training as compiled loops: many steps in one call, many runs at once, progress if watched."""

from jaxrnn.data import streams
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.fit import FitOptions, Fitted, fit
from jaxrnn.training.history import History
from jaxrnn.training.processes import ProcessLost, initialize
from jaxrnn.training.progress import Progress
from jaxrnn.training.results import Groups, grouped, results_table
from jaxrnn.training.running import NonFiniteLoss
from jaxrnn.training.steps import (
    Timed,
    Trained,
    compile_and_run,
    jit_steps,
    train_steps,
    truncated_bptt,
)
from jaxrnn.training.stopping import EarlyStopping
from jaxrnn.training.sweeps import Swept, sweep
from jaxrnn.training.written import CheckpointError

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "EarlyStopping",
    "FitOptions",
    "Fitted",
    "Groups",
    "History",
    "NonFiniteLoss",
    "ProcessLost",
    "Progress",
    "Swept",
    "Timed",
    "Trained",
    "compile_and_run",
    "fit",
    "grouped",
    "initialize",
    "jit_steps",
    "results_table",
    "streams",
    "sweep",
    "train_steps",
    "truncated_bptt",
]
