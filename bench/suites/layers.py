"""One layer, one direction: three cells at eight sizes, forward and forward+backward."""

from bench.core import Case, Contender, Suite
from bench.layers import NAMES, Spec, flops
from bench.peers import ANYWHERE, PEERS

SIZES = {  # name: N, T, D, H
    "sine": (1, 20, 1, 32),
    "window": (64, 32, 1, 30),
    "chars": (170, 10, 25, 25),
    "small": (64, 100, 64, 128),
    "mid": (64, 100, 256, 256),
    "wide": (32, 50, 512, 512),
    "long": (1, 500, 128, 256),
    "big": (16, 25, 1024, 1024),
}


def layer_cases(name: str, spec: Spec, row: str) -> list[Case]:
    """Return the forward and the forward+backward case of a layer."""

    def case(backward: bool) -> Case:
        def build(peer: str) -> Contender:
            return PEERS[peer].load().contender(spec, backward)

        return Case(
            name=f"{name}-{'backward' if backward else 'forward'}",
            build=build,
            peers=ANYWHERE,
            table="forward+backward" if backward else "forward",
            row=row,
            group=NAMES[spec.cell],
            detail={"N": spec.N, "T": spec.T, "D": spec.D, "H": spec.H},
            flops=flops(spec, backward),
        )

    return [case(False), case(True)]


SUITE = Suite(
    name="layers",
    about="one layer, LSTM, GRU and RNN(tanh), at 8 sizes, forward and forward+backward",
    cases=tuple(
        case
        for cell in NAMES
        for size, shape in SIZES.items()
        for case in layer_cases(f"{cell}-{size}", Spec(cell, *shape), f"{NAMES[cell]} {size}")
    ),
    quick=("*-sine-*", "*-window-*"),
    notes=(
        "Forward: the output, from zero initial states. Forward+backward: the output and the "
        "gradient of every weight (not of the input), for a cotangent of ones.",
    ),
)
