"""The tables of cases. To add a suite: a file with a `SUITE`, and its name here."""

from bench.core import Suite
from bench.suites import (
    compiling,
    deepbench,
    dispatch,
    layers,
    memory,
    ragged,
    stacks,
    sweep,
    training,
)

SUITES: dict[str, Suite] = {
    module.SUITE.name: module.SUITE
    for module in (
        *(layers, stacks, ragged, deepbench, training),
        *(sweep, memory, compiling, dispatch),
    )
}

DEFAULT = "layers"
