"""Record PyTorch's numbers, for the tests to use where it is not installed.

Run ``python -m tests.golden`` from the top of the project, with torch 2.13.0 installed.
"""

from pathlib import Path

import numpy as np
import torch

from tests import oracle, sine_oracle

HERE = Path(__file__).parent

if __name__ == "__main__":
    layers = {case.name: oracle.flatten(oracle.torch_results(case)) for case in oracle.CASES}
    for name, arrays in {"layers": layers, "sine": sine_oracle.torch_run(0)}.items():
        np.savez_compressed(HERE / f"{name}.npz", allow_pickle=False, **arrays)
    print(f"recorded {len(layers)} layers and the sine job from torch {torch.__version__}")
