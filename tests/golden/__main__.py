"""Record PyTorch's results, for tests without PyTorch.

Run ``python -m tests.golden`` from the top of the project, with torch 2.13.0 installed.
"""

from pathlib import Path

import numpy as np
import torch

from tests import (
    chars_oracle,
    convert_oracle,
    longseq_oracle,
    oracle,
    packed_oracle,
    packing_oracle,
    seq2seq_oracle,
    sine_oracle,
    stateful_oracle,
    tbptt_oracle,
)

HERE = Path(__file__).parent

if __name__ == "__main__":
    files = {"layers": {c.name: oracle.flatten(oracle.torch_results(c)) for c in oracle.CASES}}
    files["ragged"] = {c.name: oracle.flatten(oracle.torch_results(c)) for c in oracle.RAGGED}
    files["sine"] = sine_oracle.torch_run()
    for name, variant in stateful_oracle.VARIANTS.items():
        files[name] = stateful_oracle.torch_run(*variant)
    for name, text in chars_oracle.TEXTS.items():
        files[name] = chars_oracle.torch_runs(text)
    files["tbptt"] = tbptt_oracle.torch_run()
    files["seq2seq"] = seq2seq_oracle.torch_runs()
    files["longseq"] = longseq_oracle.torch_runs()
    files["longseq_accuracies"] = longseq_oracle.torch_accuracies()
    files["packing"] = packing_oracle.record()
    files["onnx"] = convert_oracle.torch_exports()
    for name in packed_oracle.RUNS:
        files[name] = packed_oracle.torch_runs(name)
    for name, arrays in files.items():
        np.savez_compressed(HERE / f"{name}.npz", allow_pickle=False, **arrays)
    print(f"recorded {', '.join(files)} from torch {torch.__version__}")
