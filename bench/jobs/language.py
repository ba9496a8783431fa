# pyright: reportMissingImports=false
"""Language model: embedding, LSTM of two layers (D = H 256), linear layer to the vocabulary.

Four steps of Adam, learning rate 0.001, on random tokens from a seed: N 32 sequences of T 64, of a
vocabulary of 128, cross-entropy of the next token. The state starts from zeros at each step.
"""

from typing import Any

import numpy as np

from bench.jobs.base import Job, Weights, draw, load_jaxrnn, load_torch
from bench.layers import Spec, flops
from bench.peers import PEERS

STEPS, N, T, SIZE, LAYERS, VOCABULARY, RATE = 4, 32, 64, 256, 2, 128, 0.001
SPEC = Spec("lstm", N, T, SIZE, SIZE, LAYERS)


def initial_weights() -> Weights:
    """Draw the weights of ``embed``, ``rnn`` and ``fc``."""
    embed = np.random.default_rng(3).standard_normal((VOCABULARY, SIZE), dtype=np.float32)
    return {"embed.weight": embed, **draw(SPEC, VOCABULARY)}


def tokens() -> np.ndarray:
    """Draw the tokens of all steps, inputs and targets (STEPS, T + 1, N)."""
    return np.random.default_rng(4).integers(0, VOCABULARY, (STEPS, T + 1, N), dtype=np.int32)


def torch_job(weights: Weights, dtype: Any, device: Any) -> Any:
    """Return the training loop of a PyTorch user."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, SIZE)
            self.rnn = nn.LSTM(SIZE, SIZE, LAYERS)
            self.fc = nn.Linear(SIZE, VOCABULARY)

        def forward(self, x: Any) -> Any:
            return self.fc(self.rnn(self.embed(x))[0])

    model = Model().to(device, dtype)
    restart = load_torch(model, weights)
    batches = torch.from_numpy(tokens()).long().to(device)

    def train() -> Any:
        restart()
        criterion = nn.CrossEntropyLoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            logits = model(batch[:-1])
            loss = criterion(logits.view(-1, VOCABULARY), batch[1:].reshape(-1))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


def jaxrnn_job(weights: Weights) -> Any:
    """Return the same steps as a pure function, and its parameters."""
    import jax.numpy as jnp
    import optax
    from flax import nnx

    import jaxrnn
    from jaxrnn.training import train_steps

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.embed = nnx.Embed(VOCABULARY, SIZE, rngs=rngs)
            self.rnn = jaxrnn.LSTM(SIZE, SIZE, LAYERS, rngs=rngs)
            self.fc = nnx.Linear(SIZE, VOCABULARY, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.fc(self.rnn(self.embed(x))[0])

    model, batches = Model(nnx.Rngs(0)), jnp.asarray(tokens())
    graph = nnx.graphdef(model)

    def loss(params: Any, batch: Any) -> Any:
        logits = nnx.merge(graph, params)(batch[:-1])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1:])
        return entropy.mean()

    def training(params: Any) -> Any:
        return train_steps(loss, optax.adam(RATE), params, batches)

    return training, load_jaxrnn(model, weights)


def flax_job(weights: Weights) -> Any:
    """Return the same steps with the layers of flax.nnx, which have one bias instead of two."""
    import jax.numpy as jnp
    import optax

    from jaxrnn.training import train_steps

    layers, batches = PEERS["flax.nnx"].load().layer(SPEC), jnp.asarray(tokens())
    arrays = {name: jnp.asarray(value) for name, value in weights.items()}
    start = {name: value for name, value in arrays.items() if not name.startswith("rnn.")}
    own = {name.removeprefix("rnn."): value for name, value in arrays.items() if name not in start}
    start["rnn"] = layers.convert(own)

    def loss(params: Any, batch: Any) -> Any:
        x = jnp.take(params["embed.weight"], batch[:-1], axis=0)
        logits = layers.apply(params["rnn"], x) @ params["fc.weight"].T + params["fc.bias"]
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1:])
        return entropy.mean()

    return lambda params: train_steps(loss, optax.adam(RATE), params, batches), start


def operations() -> float:
    """Count the operations of all products: layers, dx of the first one, linear layer."""
    products = 2 * N * T
    first, linear = products * 4 * SIZE * SIZE, 3 * products * SIZE * VOCABULARY
    return STEPS * (flops(SPEC, True) + first + linear)


JOB = Job(
    *(initial_weights, torch_job, jaxrnn_job, "eager loop, one loss a step"),
    others={"flax.nnx": flax_job},
)
build = JOB.build
