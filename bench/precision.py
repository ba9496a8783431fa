"""Setting of TF32 for JAX and PyTorch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any


@contextmanager
def precision(tf32: bool | None) -> Iterator[None]:
    """Return a context that allows or forbids TF32; None keeps the defaults.

    JAX takes it while tracing (`jax_default_matmul_precision`), PyTorch when it runs
    (``torch.backends.cuda.matmul.allow_tf32`` and ``torch.backends.cudnn.allow_tf32``).
    """
    if tf32 is None:
        yield
        return
    import jax

    with jax.default_matmul_precision("tensorfloat32" if tf32 else "highest"):
        if find_spec("torch") is None:
            yield
            return
        import torch

        places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [place.allow_tf32 for place in places]
        try:
            for place in places:
                place.allow_tf32 = tf32
            yield
        finally:
            for place, value in zip(places, before, strict=True):
                place.allow_tf32 = value


def stated() -> dict[str, str]:
    """Return the current settings of the libraries."""
    import jax

    found = {
        "jax_default_matmul_precision": str(
            getattr(jax.config, "jax_default_matmul_precision", None)
        )
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch.backends.cuda.matmul.allow_tf32"] = str(torch.backends.cuda.matmul.allow_tf32)
        found["torch.backends.cudnn.allow_tf32"] = str(torch.backends.cudnn.allow_tf32)
    return found
