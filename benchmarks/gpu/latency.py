"""Section `latency`: p50 and p99 at half load, sequences arriving one by one as from many users.

Poisson arrivals at half of what the best of the three others took in `throughput`, the same moments for everybody, and
for the service also at half of what it took itself. Latency counts from the moment a sequence is due. The others take
what waits, in order of arrival, up to as many rows as suited them best.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu import contenders, packed
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.in_process import Desk, feed
from benchmarks.gpu.stage import DISTRIBUTIONS, Stage
from benchmarks.gpu.throughput import LIMITS
from lengthwise.padding import Steps

_OVERTIME_SECONDS = 5.0
_PEERS: dict[str, Callable[[Stage], Sequence[contenders.Peer[Any]]]] = {
    "alone": contenders.alone,
    "arrival": contenders.arrival,
    "torch": contenders.torch_packed,
}


def measure(stage: Stage, figures: Figures) -> None:
    """Notes `half_load` and `own_half_load`: the rate, and for each contender the percentiles of each round."""
    sequences = stage.sequences(DISTRIBUTIONS[0], stage.pick(4000, 60))
    peers = found_peers(stage, figures)
    desks = {name: stage.desk("fp32", limits, figures) for name, limits in [*LIMITS.items()][: stage.pick(2, 1)]}
    capacity = capacities(stage, sequences, peers, desks)
    figures.note(distribution=DISTRIBUTIONS[0], capacity=capacity)
    online: dict[str, Online] = {
        **{name: partial(desk.open, overtime=_OVERTIME_SECONDS) for name, desk in desks.items()},
        **{peer.name: partial(taking_what_waits, peer) for peer in peers.values()},
    }
    others = [capacity[peer.name] for peer in peers.values()]
    if others:
        under_load(stage, figures, "half_load", max(others) / 2, online, sequences)
    own = {name: run for name, run in online.items() if name in desks}
    under_load(stage, figures, "own_half_load", max(capacity[name] for name in own) / 2, own, sequences)


Online = Callable[[Sequence[Steps], NDArray[np.float64]], NDArray[np.float64]]
"""Takes sequences and the moments when they are due; gives the seconds to each answer, NaN where there was none."""


def found_peers(stage: Stage, figures: Figures) -> dict[str, contenders.Peer[Any]]:
    """The others by family, each with as many rows as was best in `throughput`."""
    found: dict[str, contenders.Peer[Any]] = {}
    for family, make in _PEERS.items():
        if family == "torch" and not packed.precisions(stage):
            figures.note(left_out={family: "torch is not installed"})
            continue
        with figures.trying(family):
            made = {peer.name: peer for peer in make(stage)}
            best = _throughput(stage).get(family, {}).get("of")
            found[family] = made.get(best, [*made.values()][-1])
    return found


def capacities(
    stage: Stage, sequences: Sequence[Steps], peers: dict[str, contenders.Peer[Any]], desks: dict[str, Desk]
) -> dict[str, float]:
    """Sequences a second of everybody: those of `throughput`, or measured shortly where it did not run."""
    rounds = stage.earlier.get("throughput", {}).get("rates", {}).get(f"{DISTRIBUTIONS[0]} fp32", {})
    seconds = stage.pick(1.0, 0.05)
    found = {name: float(np.median([each["sequences_per_second"] for each in seen])) for name, seen in rounds.items()}
    for peer in peers.values():
        if peer.name not in found:
            found[peer.name] = contenders.rate(peer.work, peer.in_turn(sequences), seconds, peer.threads)
    for name, desk in desks.items():
        if name not in found:
            found[name] = desk.closed(sequences, seconds, 64)["sequences_per_second"]
    return found


def under_load(
    stage: Stage,
    figures: Figures,
    load: str,
    rate: float,
    online: dict[str, Online],
    sequences: Sequence[Steps],
) -> None:
    """One load on everybody in turn, some rounds of it."""
    figures.note(**{load: {"rate": rate}})
    seconds = stage.pick(4.0, 0.3)
    rounds: dict[str, list[dict[str, float | None]]] = {name: [] for name in online}
    for number in range(stage.pick(2, 1)):
        random = np.random.default_rng(stage.seed + number)
        moments = np.sort(random.uniform(0.0, seconds, size=max(1, random.poisson(rate * seconds))))
        for name, run in online.items():
            stage.say(f"{load}, {name}, {rate:,.0f}/s")
            with figures.trying(f"{load}, {name}"):
                rounds[name].append(percentiles(run(sequences, moments)))
            figures.note(**{load: {name: rounds[name]}})


def percentiles(seconds: NDArray[np.float64]) -> dict[str, float | None]:
    """In milliseconds, of what was answered, and the share that was."""
    answered = seconds[np.isfinite(seconds)]
    names = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99, "p99_9_ms": 99.9}
    values = np.percentile(answered, [*names.values()]) * 1e3 if len(answered) else [None] * len(names)
    return {**dict(zip(names, values, strict=True)), "answered": len(answered) / len(seconds), "due": len(seconds)}


def taking_what_waits(
    peer: contenders.Peer[Any], sequences: Sequence[Steps], moments: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A peer under an open load: each of its threads takes what waits, up to its rows, and runs it."""
    answered = np.full(len(moments), np.nan)
    work = threading.Condition()
    arrived = taken = 0
    start = time.perf_counter()
    end = start + float(moments[-1]) + _OVERTIME_SECONDS
    failed: list[BaseException] = []

    def arrive(_first: int, last: int) -> None:
        nonlocal arrived
        with work:
            arrived = last
            work.notify_all()

    def take() -> tuple[int, int]:
        nonlocal taken
        with work:
            work.wait_for(lambda: taken < arrived or taken == len(moments), timeout=max(0.0, end - time.perf_counter()))
            first, taken = taken, min(arrived, taken + peer.rows)
            if taken == len(moments):
                work.notify_all()
            return first, taken

    def run() -> None:
        try:
            while time.perf_counter() < end and not failed:
                first, last = take()
                if first == last:
                    return
                peer.work([sequences[number % len(sequences)] for number in range(first, last)])
                answered[first:last] = time.perf_counter() - start
        except BaseException as error:  # told to the thread that waits
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(peer.threads)]
    threads.append(threading.Thread(target=feed, args=(moments, start, arrive)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return answered - moments


def _throughput(stage: Stage) -> dict[str, Any]:
    best: dict[str, Any] = stage.earlier.get("throughput", {}).get("best", {}).get(f"{DISTRIBUTIONS[0]} fp32", {})
    return best
