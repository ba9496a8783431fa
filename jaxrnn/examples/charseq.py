"""Learn a sentence by heart: from each of its characters, the next.

The characters are one-hot vectors, and the outputs of the recurrent layer, one for each character
there is, are the logits of the next one: the hidden state is the answer, there is no other layer.
Nine seeds of ten learn all 15 characters of the sentence in 100 steps, here as in PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import _checks as checks
from jaxrnn import data, plotting
from jaxrnn.layers.heads import LAYERS
from jaxrnn.training import Progress, Trained, compile_and_run, sweep, train_steps

REPORTED = "'if you want you', 15 of 15 right"


@dataclass(frozen=True)
class Settings:
    """The options of ``jaxrnn run charseq``."""

    text: str = field(default=" if you want you", metadata={"help": "what is to be learned"})
    steps: int = field(default=100, metadata={"help": "training steps, the whole text each"})
    every: int = field(default=1, metadata={"help": "print what it says every so many steps"})
    cell: str = field(default="rnn", metadata={"help": "the cell", "choices": tuple(LAYERS)})
    lr: float = field(default=0.1, metadata={"help": "learning rate of Adam"})
    seed: int = field(default=1, metadata={"help": "seed of the initial weights"})
    out: str = field(
        default="charseq.png", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )

    def __post_init__(self) -> None:
        if len(set(self.text)) < 2:
            raise ValueError(f"text should have at least 2 different characters, got {self.text!r}")
        for name in ("steps", "every"):
            checks.at_least(name, getattr(self, name), 1)
        checks.seed(self.seed)
        checks.positive("lr", self.lr)
        checks.choice("cell", self.cell, tuple(LAYERS))


class History(NamedTuple):
    """What a run leaves. T is one less than the length of the text, D the characters there are.

    Attributes:
        losses: cross-entropy at each step, in nats, before its update (steps,).
        logits: what the layer puts out at each step, before its update (steps, T, D).
        targets: the number of each next character (T,).
        characters: the characters by their numbers.
        model: the trained layer.
        compile_seconds, run_seconds: what compiling and what training took.
    """

    losses: np.ndarray
    logits: np.ndarray
    targets: np.ndarray
    characters: str
    model: Any
    compile_seconds: float
    run_seconds: float

    @property
    def predictions(self) -> np.ndarray:
        """The number of the likeliest character, at each step and place (steps, T)."""
        return self.logits.argmax(-1)

    @property
    def right(self) -> np.ndarray:
        """How many characters are right at each step (steps,)."""
        return (self.predictions == self.targets).sum(-1)

    def string(self, numbers: np.ndarray) -> str:
        """Numbers of characters as a string."""
        return "".join(self.characters[n] for n in numbers)


def make_model(settings: Settings, rngs: nnx.Rngs) -> Any:
    """A layer with as many hidden features as there are characters."""
    size = len(set(settings.text))
    return LAYERS[settings.cell](size, size, batch_first=True, rngs=rngs)


def make_training(settings: Settings, model: Any, progress: Progress | None = None) -> Any:
    """The whole training as one pure function of the parameters; its outputs are the logits."""
    graph = nnx.graphdef(model)
    _, x, y = data.next_characters(settings.text)

    def loss(params: Any, step: jax.Array) -> Any:
        logits, _ = nnx.merge(graph, params)(x[None])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits[0], y)
        return entropy.mean(), logits[0]

    def training(params: Any, lr: Any = settings.lr) -> Trained:
        steps = jnp.arange(settings.steps)
        return train_steps(loss, optax.adam(lr), params, steps, progress=progress)

    return training


def train(settings: Settings = Settings(), model: Any = None) -> History:
    """Train, from the seed or from a layer's weights; the layer given is left as it was."""
    model = make_model(settings, nnx.Rngs(settings.seed)) if model is None else nnx.clone(model)
    characters, _, targets = data.next_characters(settings.text)
    with Progress("characters", settings.steps) as progress:
        params = nnx.state(model, nnx.Param)
        timed = compile_and_run(make_training(settings, model, progress), params)
    trained = timed.result
    nnx.update(model, trained.params)
    return History(
        losses=np.asarray(trained.losses),
        logits=np.asarray(trained.metrics),
        targets=np.asarray(targets),
        characters=characters,
        model=model,
        compile_seconds=timed.compile_seconds,
        run_seconds=timed.run_seconds,
    )


def right_by(settings: Settings, **axes: jax.Array) -> np.ndarray:
    """How many characters are right at the last step, for every combination of seeds and rates.

    ``right_by(settings, seed=jnp.arange(20), lr=jnp.array([0.03, 0.1]))`` is (20, 2).
    """
    _, _, y = data.next_characters(settings.text)

    def run(seed: Any = settings.seed, lr: Any = settings.lr) -> jax.Array:
        model = make_model(settings, nnx.Rngs(jax.random.key(seed)))
        trained = make_training(settings, model)(nnx.state(model, nnx.Param), lr)
        return (trained.metrics[-1].argmax(-1) == y).sum()

    return np.asarray(sweep(run, **axes).results)


def draw(history: History) -> Any:
    """The loss, the characters right, and the probabilities of the last step."""
    logits = history.logits[-1]
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return plotting.characters(
        history.losses,
        history.right,
        odds / odds.sum(-1, keepdims=True),
        history.string(history.targets),
        history.characters,
        title=f"The next character: {history.model}",
    )


def result(history: History) -> str:
    """What came out, in a line."""
    said, right = history.string(history.predictions[-1]), history.right[-1]
    return f"{said!r}, {right} of {len(history.targets)} right"


def main(settings: Settings) -> History:
    """Train, print what the source prints at each step, save the figure."""
    target = plotting.check_target(settings.out)
    history = train(settings)
    truth = history.targets[None].tolist()
    for i in range(0, settings.steps, settings.every):
        loss, said = history.losses[i], history.predictions[i]
        print(i, "loss: ", loss, "prediction: ", said[None], "true Y: ", truth, end=" ")
        print("prediction str: ", history.string(said))
    print(f"{history.right[-1]} of {len(history.targets)} characters right")
    print(f"compiled in {history.compile_seconds:.2f} s", end=", ")
    print(f"{settings.steps} steps in {history.run_seconds * 1e3:.1f} ms")
    print(f"figure: {plotting.save(draw(history), target)}")
    return history
