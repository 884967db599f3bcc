"""Cores and processor time of servers and of what is compared with them.

Other work on the machine lowers throughput. It changes processor time far less: requests per core-second are what a
server would answer on a core of its own.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PATIENCE_SECONDS = 180.0


def first_core() -> int:
    """The first core, which is for the server; the load, which is this process, keeps to the others from now on."""
    first, *others = sorted(os.sched_getaffinity(0))
    if others:
        os.sched_setaffinity(0, others)
    else:
        print("one core only: the load takes its time from the servers; the figures are no good", file=sys.stderr)
    return first


def wait_for_workers(url: str, process: subprocess.Popen[bytes]) -> int:
    """Waits until all workers of a service are ready: how many they are."""
    while process.poll() is None:
        with suppress(httpx2.TransportError):
            answered = workers(url)
            if all(worker["ready"] for worker in answered):
                return len(answered)
        time.sleep(0.02)  # a server that starts tells nobody
    raise SystemExit("the service has ended")


def workers(url: str) -> list[dict[str, Any]]:
    """What `/healthz` says of each worker of a service."""
    answer = httpx2.get(f"{url}/healthz", trust_env=False, timeout=_PATIENCE_SECONDS)
    found: list[dict[str, Any]] = answer.json()["workers"]
    return found


def cpu_seconds(session: int) -> float:
    """Processor time, so far, of all processes of a session: a server and its workers."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The fields of proc_pid_stat(5) from the third one on: the second, in parentheses, may hold anything.
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_SECOND


def fastest(calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Processor time of each call's fastest run in this thread, in turns; the first turn does not count."""
    least = [math.inf] * len(calls)
    for call in calls:
        call()
    until = time.monotonic() + seconds
    while time.monotonic() < until or math.inf in least:
        for place, call in enumerate(calls):
            before = time.thread_time()
            call()
            least[place] = min(least[place], time.thread_time() - before)
    return least
