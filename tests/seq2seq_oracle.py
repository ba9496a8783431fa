"""Reference results of an encoder-decoder in PyTorch, with PackedSequences."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.oracle import flatten, live_or_recorded, torch

N, S, T, V_IN, V_OUT, D, H = 3, 5, 4, 6, 7, 3, 4
BOS, EOS = 0, 1
SOURCE_LENGTHS, TARGET_LENGTHS = np.array([3, 5, 1]), np.array([4, 2, 3])


@dataclass(frozen=True)
class Case:
    """A configuration of encoder and decoder."""

    cell: str
    num_layers: int
    bidirectional: bool
    attention: str | None

    @property
    def name(self) -> str:
        directions = "both" if self.bidirectional else "one"
        return f"{self.cell}-{self.num_layers}-{directions}-{self.attention}"

    @property
    def memory_size(self) -> int:
        return H * (2 if self.bidirectional else 1)

    def weights(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Return random parameters by name; the same in every run."""
        random = np.random.RandomState(zlib.crc32(self.name.encode()))
        return {name: random.uniform(-0.7, 0.7, shapes[name]) for name in sorted(shapes)}


CASES = [
    Case("GRU", 1, False, None),
    Case("GRU", 1, False, "dot"),
    Case("RNN", 2, True, "general"),
    Case("LSTM", 1, True, "additive"),
]


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Return sources (N, S) and targets (N, T) with random padding."""
    random = np.random.RandomState(5)
    source, target = random.randint(0, V_IN, (N, S)), random.randint(2, V_OUT, (N, T))
    target[np.arange(N), TARGET_LENGTHS - 1] = EOS
    return source, target


def torch_model(case: Case) -> Any:
    """Return the PyTorch modules, with the parameter names of jaxrnn."""
    assert torch is not None
    nn = torch.nn
    kind = getattr(nn, case.cell)
    model = nn.Module()
    model.encoder, model.decoder = nn.Module(), nn.Module()
    model.encoder.embedding = nn.Embedding(V_IN, D)
    model.encoder.rnn = kind(
        D, H, case.num_layers, batch_first=True, bidirectional=case.bidirectional
    )
    model.decoder.embedding = nn.Embedding(V_OUT, D)
    model.decoder.rnn = kind(D, H, case.num_layers, batch_first=True)
    model.decoder.fc = nn.Linear(H, V_OUT)
    if case.bidirectional:
        model.bridge = nn.Module()
        for name in ("h", "c") if case.cell == "LSTM" else ("h",):
            setattr(model.bridge, name, nn.Linear(2 * H, H))
    if case.attention is not None:
        model.decoder.attention = attention = nn.Module()
        model.decoder.combine = nn.Linear(case.memory_size + H, H)
        if case.attention != "dot":
            attention.memory = nn.Linear(case.memory_size, H, bias=False)
        if case.attention == "additive":
            attention.query = nn.Linear(H, H)
            attention.score = nn.Linear(H, 1, bias=False)
    return model.double()


def torch_encode(case: Case, model: Any, source: Any) -> tuple[Any, Any]:
    """Return the memory (N, S, M) and the decoder's initial state, by a PackedSequence."""
    assert torch is not None
    utils = torch.nn.utils.rnn
    embedded = model.encoder.embedding(source)
    lengths = torch.tensor(SOURCE_LENGTHS)
    packed = utils.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
    output, last = model.encoder.rnn(packed)
    memory, _ = utils.pad_packed_sequence(output, batch_first=True, total_length=S)
    if not case.bidirectional:
        return memory, last
    bridged = []
    for name, state in zip("hc", last if case.cell == "LSTM" else (last,)):
        # PyTorch's states are layer-major, direction-minor.
        features = torch.cat([state[0::2], state[1::2]], -1)
        bridged.append(getattr(model.bridge, name)(features))
    bridged[0] = torch.tanh(bridged[0])
    return memory, tuple(bridged) if len(bridged) > 1 else bridged[0]


def torch_decode(case: Case, model: Any, inputs: Any, state: Any, memory: Any) -> Any:
    """Return logits (N, T, V), attention weights (N, T, S) or None, and the state."""
    assert torch is not None
    decoder = model.decoder
    output, state = decoder.rnn(decoder.embedding(inputs), state)
    if case.attention is None:
        return decoder.fc(output), None, state
    keys = memory if case.attention == "dot" else decoder.attention.memory(memory)
    if case.attention == "additive":
        queries = decoder.attention.query(output)
        total = torch.tanh(queries[:, :, None] + keys[:, None])
        scores = decoder.attention.score(total)[..., 0]
    else:
        scores = output @ keys.transpose(1, 2)
    padding = torch.arange(S)[None] >= torch.tensor(SOURCE_LENGTHS)[:, None]
    weights = torch.softmax(scores.masked_fill(padding[:, None], -torch.inf), -1)
    features = torch.cat([weights @ memory, output], -1)
    return decoder.fc(torch.tanh(decoder.combine(features))), weights, state


def torch_results(case: Case) -> dict[str, np.ndarray]:
    """Return logits, weights, loss, gradients, and the most likely tokens fed back."""
    assert torch is not None
    model = torch_model(case)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    model.load_state_dict({n: torch.tensor(w) for n, w in case.weights(shapes).items()})
    source, target = map(torch.tensor, tokens())
    memory, state = torch_encode(case, model, source)
    inputs = torch.cat([torch.full((N, 1), BOS), target[:, :-1]], 1)
    logits, weights, _ = torch_decode(case, model, inputs, state, memory)
    valid = torch.arange(T)[None] < torch.tensor(TARGET_LENGTHS)[:, None]
    loss = torch.nn.functional.cross_entropy(logits[valid], target[valid])
    loss.backward()
    results = {"logits": logits * valid[..., None], "loss": loss}
    if weights is not None:
        results["weights"] = weights * valid[..., None]
    results |= {f"grad_{name}": p.grad for name, p in model.named_parameters()}

    token, written = torch.full((N, 1), BOS), []
    for _ in range(T):
        step_logits, _, state = torch_decode(case, model, token, state, memory)
        token = step_logits.argmax(-1)
        written.append(token)
    results["written"] = torch.cat(written, 1).double()
    return {name: value.detach().numpy() for name, value in results.items()}


def torch_runs() -> dict[str, np.ndarray]:
    """Return the flattened results of every case."""
    return {case.name: flatten(torch_results(case)) for case in CASES}


def expected() -> dict[str, np.ndarray]:
    """Return PyTorch's results of every case, computed or recorded."""
    return live_or_recorded("seq2seq", torch_runs)
