"""Figures: no display needed, colours that colour-blind readers can tell apart."""

from jaxrnn.plotting.base import (  # noqa: F401  the colours are offered, and no functions
    BLUE,
    FORMATS,
    GREY,
    PALETTE,
    VERMILLION,
    check_target,
    plain,
    plain_numbers,
    save,
    spread,
)
from jaxrnn.plotting.colours import HeatMap, heat_maps, hidden_states
from jaxrnn.plotting.curves import Panel, forecasts, predictions
from jaxrnn.plotting.texts import characters, text_windows

__all__ = [
    "HeatMap",
    "Panel",
    "characters",
    "check_target",
    "forecasts",
    "heat_maps",
    "hidden_states",
    "plain_numbers",
    "predictions",
    "save",
    "spread",
    "text_windows",
]
