"""Training in compiled loops: `fit`, gradient steps, sweeps, checkpoints, several devices."""

from jaxrnn.data import streams
from jaxrnn.training.checkpoints import CheckpointError, Checkpoints
from jaxrnn.training.distributed import ProcessLost, initialize
from jaxrnn.training.fit import EarlyStopping, FitOptions, Fitted, NonFiniteLoss, fit
from jaxrnn.training.history import History, Progress
from jaxrnn.training.steps import (
    Timed,
    Trained,
    compile_and_run,
    jit_steps,
    train_steps,
    truncated_bptt,
)
from jaxrnn.training.sweep import Groups, Swept, grouped, results_table, sweep, sweep_figure

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
    "sweep_figure",
    "train_steps",
    "truncated_bptt",
]
