"""Training jobs: the loop of a PyTorch user, compared with one compiled call.

To add a job: a file in `bench.jobs` with a ``build(peer) -> Contender``, a `bench.jobs.base.Job`'s
say, and a line in `JOBS`.
"""

from functools import partial
from importlib import import_module

from bench.core import Case, Contender, Suite

JOBS = {  # module in bench.jobs: (title, peers)
    "sine": ("sine: RNN(1, 32), 75 steps of Adam", ("jaxrnn", "torch")),
    "stateful": ("stateful: RNN(5, 30), 33 epochs over 995 steps", ("jaxrnn", "torch")),
    "charseq": ("charseq: RNN(10, 10), 100 steps of Adam", ("jaxrnn", "torch")),
    "language": ("language model: LSTM(256, 256, 2), 4 steps of Adam", ("jaxrnn", "torch")),
}


def build(job: str, name: str) -> Contender:
    return import_module(f"bench.jobs.{job}").build(name)


SUITE = Suite(
    name="training",
    about="training jobs from the same weights, without compile time",
    cases=tuple(
        Case(
            name=job,
            build=partial(build, job),
            peers=peers,
            table="training",
            row=label,
        )
        for job, (label, peers) in JOBS.items()
    ),
    quick=("sine", "charseq", "language"),
    reps=5,
    notes=(
        "A run starts from the initial weights and a new optimiser, and ends with trained weights "
        "and all losses. The error is the largest relative difference of a step's loss from the "
        "same job in PyTorch float64.",
    ),
)
