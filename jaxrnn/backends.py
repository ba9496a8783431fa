"""Who runs the loop of a recurrence.

| backend | cells | platforms | dtypes | derivatives |
|---|---|---|---|---|
| scan | all | all | all floating | all |

"auto" takes the fastest that can serve a call; today that is always the scan.
"""

from __future__ import annotations

from jaxrnn import checks

CHOICES = ("auto", "scan")


def check(backend: str) -> None:
    """Refuse a backend that does not exist.

    Raises:
        ValueError: naming the choices.
    """
    checks.choice("backend", backend, CHOICES)
