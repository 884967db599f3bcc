"""Section `busy`: the share of time in which the device computes while the service is under full load.

Read twice, as neither way is known to work everywhere: torch's profiler sees every kernel of this process, whoever
started it, and the union of their times over the time on the wall is the share; the driver says the share of its own
sampling period in which any kernel ran. On the CPU it is processor time over time on the wall, of one core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from statistics import mean
from typing import Any

from benchmarks.gpu.device import busy_reader, module
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.in_process import Desk
from benchmarks.gpu.stage import DISTRIBUTIONS, Stage
from benchmarks.gpu.throughput import LIMITS, in_flight
from lengthwise.padding import Steps


def measure(stage: Stage, figures: Figures) -> None:
    """Notes the share for each of the service's limits."""
    sequences = stage.sequences(DISTRIBUTIONS[0], stage.pick(4000, 60))
    for name, limits in [*LIMITS.items()][: stage.pick(2, 1)]:
        desk = stage.desk("fp32", limits, figures)
        desk.closed(sequences, stage.pick(1.0, 0.05), in_flight(stage))
        seconds = stage.pick(3.0, 0.2)
        stage.say(f"busy, {name}")
        if stage.provider == "cpu":
            figures.note(**{name: by_processor_time(desk, sequences, seconds, in_flight(stage))})
            continue
        figures.note(**{name: by_sampling(desk, sequences, seconds, in_flight(stage))})
        with figures.trying(f"{name}, profiled"):
            figures.note(**{name: by_profiler(desk, sequences, min(1.5, seconds), in_flight(stage))})


def by_processor_time(desk: Desk, sequences: list[Steps], seconds: float, count: int) -> dict[str, Any]:
    """Processor time of this process over the time on the wall: above 1 where several cores compute."""
    clock, effort = time.perf_counter(), time.process_time()
    seen = desk.closed(sequences, seconds, count)
    return {"processor_share": (time.process_time() - effort) / (time.perf_counter() - clock), **seen}


def by_sampling(desk: Desk, sequences: list[Steps], seconds: float, count: int) -> dict[str, Any]:
    """What the driver says meanwhile."""
    over, read = threading.Event(), busy_reader()
    shares: list[float] = []

    def sample() -> None:
        while not over.wait(0.1):
            said = read()
            if said is not None:
                shares.append(said)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        seen = desk.closed(sequences, seconds, count)
    finally:
        over.set()
        sampler.join()
    # The first readings are of a period that began before the load.
    return {
        "driver_share": mean(shares[len(shares) // 3 :]) if shares else None,
        "driver_readings": len(shares),
        **seen,
    }


def by_profiler(desk: Desk, sequences: list[Steps], seconds: float, count: int) -> dict[str, Any]:
    """The union of all kernels' times over the time from the first to the last of them."""
    torch = module("torch")
    if torch is None:
        raise RuntimeError("torch is not installed")
    torch.cuda.init()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seen = desk.closed(sequences, seconds, count)
        torch.cuda.synchronize()
    kernels: list[tuple[int, int]] = []
    copying: list[tuple[int, int]] = []
    for event in profile.profiler.kineto_results.events():
        if "CUDA" not in str(event.device_type()):
            continue
        start = event.start_ns() if hasattr(event, "start_ns") else event.start_us() * 1000
        length = event.duration_ns() if hasattr(event, "duration_ns") else event.duration_us() * 1000
        copies = event.name().startswith(("Memcpy", "Memset"))
        (copying if copies else kernels).append((start, start + length))
    if not kernels:
        raise RuntimeError("the profiler saw no kernel")
    span = max(end for _, end in kernels) - min(start for start, _ in kernels)
    return {
        "kernel_share": union(kernels) / span,
        "copy_share": union(copying) / span,
        "kernels": len(kernels),
        "sequences_per_second_profiled": seen["sequences_per_second"],
    }


def union(spans: Iterable[tuple[int, int]]) -> int:
    """How much of the time any of the spans covers."""
    covered, reached = 0, None
    for start, end in sorted(spans):
        if reached is None or start > reached:
            covered += end - start
            reached = end
        elif end > reached:
            covered += end - reached
            reached = end
    return covered
