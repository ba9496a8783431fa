"""Timing of contenders: calibrated calls, interleaved rounds, paired ratios.

On a shared machine the speed drifts by tens of percent within minutes, for all contenders. They are
measured in turn, round after round, and a ratio is taken within a round. The median over the rounds
discards outliers.
"""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from bench.core import BASELINE, Contender
from bench.machine import Others, usable_cores

MAX_CALLS = 100_000


def busy_cores() -> float:
    """Return the number of cores used by other processes above which a round is repeated.

    Thread pools with barriers, such as PyTorch's, become hundreds of times slower if another
    process uses one of a few cores. An idle machine shows 0.02.
    """
    return max(0.3, 0.05 * usable_cores())


def calls_for(seconds: float, target_s: float) -> int:
    """Return the number of calls of `seconds` that fill `target_s`, at least one.

    >>> calls_for(0.002, 0.05), calls_for(3.0, 0.05)
    (25, 1)
    """
    return min(MAX_CALLS, max(1, math.ceil(target_s / max(seconds, 1e-9) - 1e-6)))


def seconds_per_call(run: Callable[[], object], calls: int) -> float:
    """Return the mean time of consecutive calls, each waiting for its result."""
    start = perf_counter()
    for _ in range(calls):
        run()
    return (perf_counter() - start) / calls


def calibrate(run: Callable[[], object], target_s: float) -> int:
    """Determine the calls per measurement; this also warms caches and allocators."""
    run()  # May compile.
    seconds = seconds_per_call(run, 1)
    if seconds < target_s:  # One call is a poor estimate of short ones: look again, longer.
        seconds = seconds_per_call(run, calls_for(seconds, target_s / 5))
    return calls_for(seconds, target_s)


def rotated(names: Sequence[str], by: int) -> list[str]:
    """Rotate names by one place per round, so that the order varies.

    >>> rotated(["a", "b", "c"], 1)
    ['b', 'c', 'a']
    """
    by %= max(1, len(names))
    return [*names[by:], *names[:by]]


def measure(contender: Contender, calls: int) -> float:
    """Return the seconds per call of one measurement, or the value of the contender."""
    if contender.value is not None:
        return contender.value()
    assert contender.run is not None
    if calls > 1:
        # Untimed: lets the previous contender's thread pool go to sleep, and reloads the caches.
        contender.run()
    return seconds_per_call(contender.run, calls)


@dataclass
class Measured:
    """Result of the rounds of a case.

    Attributes:
        samples: seconds per call by contender, one per selected round.
        calls: calls per measurement by contender.
        failed: reasons of failures by contender.
        rounds: number of rounds measured, of which the quietest are selected.
        others_cores: mean number of cores used by other processes in the selected rounds.
    """

    samples: dict[str, list[float]]
    calls: dict[str, int]
    failed: dict[str, str]
    rounds: int = 0
    others_cores: float | None = None


def interleave(
    contenders: dict[str, Contender],
    reps: int,
    target_s: float,
    patience_s: float = 0.0,
    *,
    limit_s: float | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Measured:
    """Time all contenders in rounds until `reps` rounds were quiet.

    A round disturbed by other processes is repeated within the first `patience_s`. The `reps`
    rounds with the least use by other processes are selected, independent of the measured times.
    After `limit_s` only the first round starts. `watch` receives an event for each start and round.
    """
    start = perf_counter()
    rounds: list[dict[str, float]] = []
    busy: list[float | None] = []
    result = Measured({}, {}, {})
    for name, contender in contenders.items():
        watch({"event": "begin", "peer": name, "what": "first calls"})
        try:
            result.calls[name] = 1
            if contender.value is None and contender.run is not None:
                result.calls[name] = calibrate(contender.run, target_s)
        except Exception as error:
            result.failed[name] = describe(error)
            watch({"event": "failed", "peer": name, "reason": result.failed[name]})
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(rounds) < reps or (
            len(quiet(busy)) < reps and perf_counter() - start < patience_s
        ):
            if rounds and limit_s is not None and perf_counter() - start > limit_s:
                break
            others, times = Others(), {}
            for name in rotated(list(contenders), len(rounds)):
                if name in result.failed:
                    continue
                watch({"event": "begin", "peer": name, "what": "a round"})
                try:
                    times[name] = measure(contenders[name], result.calls[name])
                except Exception as error:
                    result.failed[name] = describe(error)
                    watch({"event": "failed", "peer": name, "reason": result.failed[name]})
                    continue
                if contenders[name].value is None:  # Calibrated in a bad moment: more calls.
                    again = calls_for(times[name], target_s)
                    result.calls[name] = max(result.calls[name], again)
            watch({"event": "round", "seconds": times, "calls": dict(result.calls)})
            rounds.append(times)
            busy.append(others.cores())
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    selected = quietest(busy, reps)
    known = [cores for i in selected if (cores := busy[i]) is not None]
    result.rounds = len(rounds)
    result.others_cores = sum(known) / len(known) if known else None
    for name in contenders:
        if name not in result.failed:
            result.samples[name] = [rounds[i][name] for i in selected]
    return result


def quiet(busy: Sequence[float | None]) -> list[int]:
    """Return the rounds that other processes did not disturb, as far as known."""
    limit = busy_cores()
    return [i for i, cores in enumerate(busy) if (cores or 0.0) < limit]


def quietest(busy: Sequence[float | None], reps: int) -> list[int]:
    """The `reps` rounds with the least use by others, in their order.

    >>> quietest([0.9, 0.0, 0.4, 0.1], 2), quietest([None, None], 5)
    ([1, 3], [0, 1])
    """
    return sorted(sorted(range(len(busy)), key=lambda i: busy[i] or 0.0)[:reps])


def describe(error: BaseException) -> str:
    """Return an exception as one line."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    return text if len(text) <= 300 else text[:297] + "..."


def summarise(samples: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Return minimum, median and ratios to the baseline of each contender.

    ``ratio`` is the median over the rounds of contender / baseline within the round; ``ratio_min``
    is the ratio of the minima. Both are above 1 where the baseline is faster.

    >>> table = summarise({"jaxrnn": [1.0, 2.0, 1.0], "torch": [3.0, 4.0, 4.0]})
    >>> table["torch"]["min"], table["torch"]["ratio"], table["torch"]["ratio_min"]
    (3.0, 3.0, 3.0)
    """
    base = samples.get(BASELINE)
    table: dict[str, dict[str, Any]] = {}
    for name, values in samples.items():
        entry: dict[str, Any] = {"min": min(values), "median": median(values), "samples": values}
        if base:
            entry["ratio"] = median([value / b for value, b in zip(values, base, strict=True)])
            entry["ratio_min"] = min(values) / min(base)
        table[name] = entry
    return table


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of ratios; NaN for no values.

    >>> geometric_mean([0.5, 2.0, 1.0])
    1.0
    """
    if not values:
        return math.nan
    return math.exp(sum(math.log(value) for value in values) / len(values))
