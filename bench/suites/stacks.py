"""Stacked and bidirectional layers."""

from bench.core import Suite
from bench.layers import NAMES, Spec
from bench.suites.layers import SIZES, layer_cases

STACKS = {  # name: layers, bidirectional, label in the tables
    "bi2": (2, True, "2 layers, bidirectional"),
    "deep3": (3, False, "3 layers"),
}

SUITE = Suite(
    name="stacks",
    about="2 layers bidirectional and 3 layers, forward and forward+backward",
    cases=tuple(
        case
        for cell in NAMES
        for stack, (L, both, label) in STACKS.items()
        for size in ("window", "small", "mid")
        for case in layer_cases(
            f"{cell}-{stack}-{size}",
            Spec(cell, *SIZES[size], num_layers=L, bidirectional=both),
            f"{NAMES[cell]} {size}, {label}",
        )
    ),
    quick=("*-window-*",),
    notes=("Libraries without stacked layers apply their layers one after another.",),
)
