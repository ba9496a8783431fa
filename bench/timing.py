"""How contenders are timed: calibrated calls, interleaved rounds, ratios taken pair by pair.

On a shared machine the speed drifts by tens of percent within minutes, for everybody alike. So all
contenders of a case are measured in turn, round after round, and a ratio is taken within a round,
where both saw the same machine; the median over the rounds then discards the disturbed ones.
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
    """A round during which other processes used this many cores is repeated.

    Thread pools that wait for each other, PyTorch's above all, become hundreds of times slower
    when one of a few cores is taken. 0.02 is what an idle machine shows.
    """
    return max(0.3, 0.05 * usable_cores())


def calls_for(seconds: float, target_s: float) -> int:
    """The number of calls that fill `target_s`, for a call of `seconds`: at least one.

    >>> calls_for(0.002, 0.05), calls_for(3.0, 0.05)
    (25, 1)
    """
    return min(MAX_CALLS, max(1, math.ceil(target_s / max(seconds, 1e-9) - 1e-6)))


def seconds_per_call(run: Callable[[], object], calls: int) -> float:
    """The mean time of `calls` calls in a row, each of which waits for its own result."""
    start = perf_counter()
    for _ in range(calls):
        run()
    return (perf_counter() - start) / calls


def calibrate(run: Callable[[], object], target_s: float) -> int:
    """Calls per measurement, found by calling (which also warms caches and allocators)."""
    run()  # May compile.
    seconds = seconds_per_call(run, 1)
    if seconds < target_s:  # One call is a poor estimate of short ones: look again, longer.
        seconds = seconds_per_call(run, calls_for(seconds, target_s / 5))
    return calls_for(seconds, target_s)


def rotated(names: Sequence[str], by: int) -> list[str]:
    """`names` starting from another place each round, so that nobody always follows the same one.

    >>> rotated(["a", "b", "c"], 1)
    ['b', 'c', 'a']
    """
    by %= max(1, len(names))
    return [*names[by:], *names[:by]]


def measure(contender: Contender, calls: int) -> float:
    """One measurement: seconds per call, or the contender's own value."""
    if contender.value is not None:
        return contender.value()
    assert contender.run is not None
    if calls > 1:
        # Untimed: lets the previous contender's thread pool go to sleep, and reloads the caches.
        contender.run()
    return seconds_per_call(contender.run, calls)


@dataclass
class Measured:
    """What the rounds of a case gave.

    Attributes:
        samples: seconds per call by contender, one for each round kept.
        calls: calls per measurement by contender.
        failed: why a contender left the rounds; the others went on.
        rounds: rounds measured, of which the quietest were kept.
        others_cores: cores that other processes used during the rounds kept, on average.
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
    """Times all contenders in rounds until `reps` of them were quiet.

    A round in which other processes took a core from the contenders is repeated while the case has
    lasted less than `patience_s`. What is kept are the `reps` rounds with the least use by others:
    chosen by the machine's state, never by the times measured. After `limit_s` no round is begun
    but the first. `watch` is told who is about to run, and what a round gave.
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
    kept = quietest(busy, reps)
    known = [cores for i in kept if (cores := busy[i]) is not None]
    result.rounds = len(rounds)
    result.others_cores = sum(known) / len(known) if known else None
    for name in contenders:
        if name not in result.failed:
            result.samples[name] = [rounds[i][name] for i in kept]
    return result


def quiet(busy: Sequence[float | None]) -> list[int]:
    """The rounds in which nobody else took much of the machine (or it cannot be told)."""
    limit = busy_cores()
    return [i for i, cores in enumerate(busy) if (cores or 0.0) < limit]


def quietest(busy: Sequence[float | None], reps: int) -> list[int]:
    """The `reps` rounds with the least use by others, in their order.

    >>> quietest([0.9, 0.0, 0.4, 0.1], 2), quietest([None, None], 5)
    ([1, 3], [0, 1])
    """
    return sorted(sorted(range(len(busy)), key=lambda i: busy[i] or 0.0)[:reps])


def describe(error: BaseException) -> str:
    """An exception as one line for a report."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    return text if len(text) <= 300 else text[:297] + "..."


def summarise(samples: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Minimum and median of each contender, and its ratios to the baseline.

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
    """The mean for ratios: that of the inverses is its inverse. NaN for no values.

    >>> geometric_mean([0.5, 2.0, 1.0])
    1.0
    """
    if not values:
        return math.nan
    return math.exp(sum(math.log(value) for value in values) / len(values))
