"""How a process that reads what others made behaves: nicely, within bounds, and no longer than its parent.

And how much memory processes have, and may have.
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

NICER: Final = 5  # of the process: it then gets about a third of the service's share of a busy core
SHARE_OF_MEMORY: Final = 0.8  # most of the process, of what the container has left
LEAST_BYTES: Final = 2**27  # least memory with which the process can start
_PR_SET_PDEATHSIG: Final = 1
_LATER_SECONDS: Final = 5
_NO_LIMIT_BYTES: Final = 2**60  # cgroup v1 writes a number above this one where there is no limit


def share_of_memory(most_bytes: int, allotted_bytes: int = 0) -> int:
    """The bytes that a new process may use, if others may use `allotted_bytes`; at most `most_bytes`.

    A container that runs out of memory may be killed as a whole.
    """
    available = memory_left_bytes()
    return (
        most_bytes if available is None else min(most_bytes, int(SHARE_OF_MEMORY * max(0, available - allotted_bytes)))
    )


def memory_left_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that the cgroups of this process, v2 or v1, may still use; None if none has a limit."""
    available = list[int]()
    for controller, limit, used, cached in (
        ("", "max", "current", "inactive_file"),
        ("memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
    ):
        for folder in own_cgroups(root, controller):
            with suppress(OSError, ValueError):  # cgroup v2 writes "max" for no limit
                most, in_use = (int((folder / f"memory.{name}").read_text()) for name in (limit, used))
                lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                reclaimable = next((int(number) for name, number in lines if name == cached), 0)
                available += [max(0, most - in_use + reclaimable)] * (most < _NO_LIMIT_BYTES)
    return min(available, default=None)


def memory_bytes(pid: int) -> int:
    """The memory of a process in bytes: its proportional set size (PSS); 0 where the system does not tell it."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def be_modest(parent: int, timeout_seconds: float) -> None:
    """Lowers this process's CPU priority, and makes it the first that the kernel kills when memory runs out.

    It is killed when its parent ends, and by SIGALRM a few seconds after its timeout in any case.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(timeout_seconds) + _LATER_SECONDS)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getppid() != parent:  # the parent ended before this was set
        os._exit(1)
    with suppress(OSError):
        os.nice(NICER)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dump if a graph crashes it
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def bound_memory(more_bytes: int) -> None:
    """Limits this process to `more_bytes` beyond its present memory, if the system can."""
    has = 0
    with suppress(OSError), open("/proc/self/status") as file:
        has = next((1024 * int(line.split()[1]) for line in file if line.startswith("VmData:")), 0)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    bound = has + more_bytes
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (bound if most == resource.RLIM_INFINITY else min(bound, most), most))
