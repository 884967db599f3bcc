"""Section `limits`: what the device can do at most, by a large matrix product, by large copies and by empty work.

A matrix product of 8192 by 8192 takes 2 x 8192^3 operations; a copy counts its bytes once read and once written where
both ends are on the device, else once. Through torch, whose matrix products and copies are the vendor's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

from benchmarks.gpu.device import module
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.sections import NotHere
from benchmarks.gpu.stage import Stage


def measure(stage: Stage, figures: Figures) -> None:
    """Notes `flops` by precision, `copies` in bytes a second, and `launch` in seconds."""
    torch = module("torch")
    if torch is None:
        raise NotHere("torch is not installed: the device's limits are measured through it")
    if stage.provider == "cpu":
        torch.set_num_threads(1)  # what one run has there
    device = torch.device(stage.provider)
    timed = Timed(torch.cuda.synchronize if stage.provider == "cuda" else lambda: None, stage.pick(10, 2))
    size = stage.pick(8192, 2048) if stage.provider == "cuda" else stage.pick(1024, 256)
    figures.note(flops={"size": size})
    for precision in ("fp32", "tf32", "fp16") if stage.provider == "cuda" else ("fp32",):
        stage.say(f"matrix product, {precision}")
        with figures.trying(f"matrix product, {precision}"):
            figures.note(flops={precision: matmul_flops(torch, device, precision, size, timed)})
    mib = stage.pick(1024, 64) if stage.provider == "cuda" else stage.pick(64, 8)
    figures.note(copies={"mib": mib})
    with figures.trying("copies"):
        for name, seconds, passes in copies(torch, device, mib, timed):
            stage.say(f"copy, {name}")
            figures.note(copies={name: passes * mib * 2**20 / seconds})
    one = torch.zeros(1, device=device)
    figures.note(launch={"seconds": Timed(timed.synchronize, stage.pick(1000, 50))(lambda: one.add_(1))})


class Timed:
    """Median seconds of some work, until the device has finished it.

    Args:
        synchronize: Waits for the device.
        repetitions: How many times it is measured, after three that do not count.
    """

    def __init__(self, synchronize: Callable[[], Any], repetitions: int) -> None:
        self.synchronize = synchronize
        self._repetitions = repetitions

    def __call__(self, work: Callable[[], Any]) -> float:
        """Runs the work."""
        for _ in range(3):
            work()
        seconds = []
        for _ in range(self._repetitions):
            self.synchronize()
            before = time.perf_counter()
            work()
            self.synchronize()
            seconds.append(time.perf_counter() - before)
        return median(seconds)


def matmul_flops(torch: Any, device: Any, precision: str, size: int, timed: Timed) -> float:
    """Operations a second of a square matrix product, on random numbers: zeros would be faster."""
    kind = torch.float16 if precision == "fp16" else torch.float32
    left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        return 2 * size**3 / timed(lambda: left @ right)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copies(torch: Any, device: Any, mib: int, timed: Timed) -> Iterator[tuple[str, float, int]]:
    """Each way of copying so much, with its seconds and how many times each byte passes the memory that is meant."""
    count = mib * 2**18  # float32
    there = torch.randn(count, device=device)
    onto = torch.empty_like(there)
    yield "device_to_device", timed(lambda: onto.copy_(there)), 2
    if device.type == "cpu":
        return
    for name, pinned in (("pinned", True), ("pageable", False)):
        here = torch.empty(count, pin_memory=pinned)
        yield f"host_to_device_{name}", timed(partial(there.copy_, here, non_blocking=True)), 1
        yield f"device_to_host_{name}", timed(partial(here.copy_, there, non_blocking=True)), 1
