"""Data-parallel training: the steps of `fit` on one device, and on two that share the cores.

Two devices of one process are two threads' worth of XLA on the same cores; a device alone may use
all cores in its products. What this shows is what splitting costs, not what two machines gain.
"""

from functools import partial
from time import perf_counter

from bench.core import Case, Contender, Suite, Unsupported
from bench.layers import Spec
from bench.suites.fit import call_of_fit

SIZES = {  # name: (layers and sizes, steps in a measurement)
    "small": (Spec("lstm", 64, 50, 64, 64, 1), 40),
    "mid": (Spec("lstm", 64, 50, 256, 256, 1), 4),
}


def build(spec: Spec, steps: int, name: str) -> Contender:
    import jax

    count = 2 if name == "jaxrnn.two" else 1
    if jax.device_count() < count:
        raise Unsupported(
            "one device: XLA_FLAGS=--xla_force_host_platform_device_count=2 makes two of a CPU"
        )
    run = call_of_fit(spec, steps, mesh=count)
    begun = perf_counter()
    run()
    return Contender(
        run=run,
        compile_s=perf_counter() - begun,
        no_check="n/a (tests/test_devices.py compares the losses)",
        note=f"mesh={count}",
    )


SUITE = Suite(
    name="devices",
    about="the same training steps of fit on one device and on two",
    cases=tuple(
        Case(
            name=name,
            build=partial(build, spec, steps),
            peers=("jaxrnn", "jaxrnn.two"),
            table="steps of a training among devices",
            row=f"LSTM({spec.D}, {spec.H}), N {spec.N}, T {spec.T}, {steps} steps",
            detail={"N": spec.N, "T": spec.T, "D": spec.D, "H": spec.H},
        )
        for name, (spec, steps) in SIZES.items()
    ),
    notes=("The baseline is one device; the ratio is the time of two that share the cores.",),
)
