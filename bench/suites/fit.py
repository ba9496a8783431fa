"""Overhead of `fit`: the same steps by `fit`, and compiled one by one in a loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench.core import Case, Contender, Suite
from bench.layers import Spec
from bench.peers import PEERS

RATE, EXAMPLES = 1e-3, 1024
JOBS = {  # name: (layers and sizes, steps in a measurement)
    "tiny": (Spec("lstm", 8, 10, 4, 16, 2), 1000),
    "small": (Spec("lstm", 16, 20, 32, 64, 2), 400),
    "mid": (Spec("lstm", 64, 50, 128, 128, 2), 40),
}


def model_of(spec: Spec) -> Any:
    """Build recurrent layers and a linear layer."""
    from flax import nnx

    import jaxrnn
    from jaxrnn.layers.heads import ManyToMany

    rngs = nnx.Rngs(0)
    rnn = jaxrnn.LSTM(spec.D, spec.H, spec.num_layers, batch_first=True, rngs=rngs)
    return ManyToMany(rnn, 1, rngs=rngs)


def examples(spec: Spec) -> Any:
    """Draw EXAMPLES inputs and targets."""
    import jax.numpy as jnp

    x = np.random.default_rng(0).standard_normal((EXAMPLES, spec.T, spec.D), dtype=np.float32)
    return jnp.asarray(x), jnp.asarray(x.mean(-1, keepdims=True))


def mean_error(model: Any, batch: Any) -> Any:
    """Return the mean squared error."""
    x, y = batch
    return ((model(x)[0] - y) ** 2).mean()


def build_bare(spec: Spec, steps: int) -> Contender:
    """Build the step alone: one batch on the device, losses on the device."""
    import jax
    import optax
    from flax import nnx

    model, optimizer = model_of(spec), optax.adam(RATE)
    graph, params = nnx.split(model)
    batch = jax.tree.map(lambda a: a[: spec.N], examples(spec))

    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            return mean_error(nnx.merge(graph, params), batch)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    state = [params, optimizer.init(params)]

    def run() -> None:
        for _ in range(steps):
            *state[:], value = compiled(*state, batch)
        jax.block_until_ready((state, value))

    return Contender(run=run, note="one compiled call a step, always the same batch")


def call_of_fit(spec: Spec, steps: int, **options: Any) -> Callable[[], Any]:
    """Build a call of `fit`: shuffled batches, metrics, history, checks of the losses."""
    import optax

    from jaxrnn.training import fit

    model, optimizer, data = model_of(spec), optax.adam(RATE), examples(spec)
    how = {"steps": steps, "batch_size": spec.N, **options}
    return lambda: fit(mean_error, optimizer, model, data, **how)


def build_fit(spec: Spec, steps: int) -> Contender:
    return Contender(
        run=call_of_fit(spec, steps),
        note="shuffled batches gathered, losses on the host, new optimiser",
    )


def build(spec: Spec, steps: int, name: str) -> Contender:
    PEERS["jaxrnn"].require()
    return build_fit(spec, steps) if name == "jaxrnn.fit" else build_bare(spec, steps)


SUITE = Suite(
    name="fit",
    about="the same training steps of an LSTM of two layers: called one by one, and by fit",
    cases=tuple(
        Case(
            name=name,
            build=partial(build, spec, steps),
            peers=("jaxrnn", "jaxrnn.fit"),
            table="steps of a training",
            row=f"LSTM({spec.D}, {spec.H}, 2), {steps} steps",
            detail={"N": spec.N, "T": spec.T, "D": spec.D, "H": spec.H},
        )
        for name, (spec, steps) in JOBS.items()
    ),
    notes=("The baseline is the compiled step alone; the ratio shows the overhead of fit.",),
)
