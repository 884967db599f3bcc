"""Processor time and memory of a server's processes, from /proc.

Other work on the machine lowers throughput. It changes processor time far less: requests per core-second are what a
server would answer on a core of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(session: int) -> float:
    """Processor time, so far, of all processes of a session: a server and its workers."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = _fields(path)
        except OSError:  # the process has ended
            continue
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_SECOND


def resident_mib(pid: int) -> float:
    """Resident memory of one process."""
    return int(_fields(Path(f"/proc/{pid}/stat"))[21]) * _PAGE_BYTES / 2**20


def _fields(path: Path) -> list[str]:
    """The fields of proc_pid_stat(5) from the third one on: the second, in parentheses, may hold anything."""
    return path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
