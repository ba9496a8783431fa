"""Registry of the suites. To add one: a module with a `SUITE`, and its name here."""

from bench.core import Suite
from bench.suites import (
    compiling,
    deepbench,
    devices,
    dispatch,
    fit,
    gpu,
    launches,
    layers,
    memory,
    own_cells,
    ragged,
    stacks,
    sweep,
    tilings,
    training,
)

_MODULES = (
    layers,
    stacks,
    own_cells,
    ragged,
    deepbench,
    gpu,
    tilings,
    devices,
    training,
    fit,
    sweep,
    memory,
    compiling,
    launches,
    dispatch,
)
SUITES: dict[str, Suite] = {module.SUITE.name: module.SUITE for module in _MODULES}

DEFAULT = "layers"
