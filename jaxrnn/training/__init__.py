"""Training as compiled loops: many steps in one call, with progress if somebody is watching."""

from jaxrnn.training.progress import Progress
from jaxrnn.training.steps import Trained, train_steps

__all__ = ["Progress", "Trained", "train_steps"]
