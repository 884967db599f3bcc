"""Limits for a process that reads files of other people: low priority, little memory, no longer life than its parent's.

Also measures how much memory a process uses, and how much the container has left.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from lengthwise.files import own_cgroups

NICER: Final = 5  # added to its nice value: it then gets about a third of the service's share of a busy core
SHARE_OF_MEMORY: Final = 0.8  # the part of what the container has left that the process may use
LEAST_BYTES: Final = 2**27  # with less memory the process cannot start
_PR_SET_PDEATHSIG: Final = 1
LATER_SECONDS: Final = 5  # from the timeout to SIGALRM
_NO_LIMIT_BYTES: Final = 2**60  # cgroup v1 writes a number above this one where there is no limit


def share_of_memory(most_bytes: int, allotted_bytes: int = 0) -> int:
    """Returns the bytes of memory that a new process may use: `most_bytes`, or less if the container has less left.

    A part of what is left stays free (`SHARE_OF_MEMORY`), as a container that runs out of memory may be killed as a
    whole.

    Args:
        most_bytes: The most that the process may use.
        allotted_bytes: What other such processes may still use.
    """
    if (available := memory_left_bytes()) is None:
        return most_bytes
    return min(most_bytes, int(SHARE_OF_MEMORY * max(0, available - allotted_bytes)))


def memory_left_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the bytes of memory that this process's cgroups, v2 or v1, may still use; None if none has a limit.

    It is the lowest number of all cgroups that contain the process. Caches of files count as free: the kernel drops
    them.
    """
    available = list[int]()
    for controller, limit_name, used_name, cache_name in (
        ("", "max", "current", "inactive_file"),  # v2
        ("memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),  # v1
    ):
        for folder in own_cgroups(root, controller):
            with suppress(OSError, ValueError):  # cgroup v2 writes "max" for no limit
                limit, used = (int((folder / f"memory.{name}").read_text()) for name in (limit_name, used_name))
                lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cache = next((int(number) for name, number in lines if name == cache_name), 0)
                if limit < _NO_LIMIT_BYTES:
                    available.append(max(0, limit - used + cache))
    return min(available, default=None)


def memory_bytes(pid: int) -> int:
    """Returns the memory of a process in bytes: its proportional set size (PSS); 0 if the system does not say."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def end_with_parent() -> None:
    """Lets the kernel kill this process when its parent ends; only Linux can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def be_modest(parent: int) -> None:
    """Limits what this process can do to others.

    - It is killed when its parent ends.
    - It has a lower CPU priority, and writes no core dump.
    - It is the first that the kernel kills when memory runs out.

    Args:
        parent: The process id of the parent.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getppid() != parent:  # the parent ended before the call of prctl
        os._exit(1)
    with suppress(OSError):
        os.nice(NICER)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dump if a graph crashes it
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def bound_time(timeout_seconds: float) -> None:
    """Lets the kernel end this process by SIGALRM, `LATER_SECONDS` after the timeout of its work, in any case.

    Args:
        timeout_seconds: The timeout, from now.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(timeout_seconds) + LATER_SECONDS)


def bound_memory(more_bytes: int) -> None:
    """Limits the memory of this process (RLIMIT_DATA) to `more_bytes` beyond what it has now, if the system can."""
    present_bytes = 0
    with suppress(OSError), open("/proc/self/status") as file:
        present_bytes = next((1024 * int(line.split()[1]) for line in file if line.startswith("VmData:")), 0)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    bound = present_bytes + more_bytes
    soft_limit = bound if hard_limit == resource.RLIM_INFINITY else min(bound, hard_limit)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft_limit, hard_limit))
