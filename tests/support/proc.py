"""What Linux says of a process. On other systems a test that asks is skipped."""

import os
import re
from contextlib import suppress
from pathlib import Path

import pytest

PROC = Path("/proc")


def of(pid: int) -> Path:
    """The folder of a process."""
    if not (PROC / "self").exists():
        pytest.skip("this system has no /proc")
    return PROC / str(pid)


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not asked for its end does not."""
    try:
        return fields(pid)[0] != "Z"
    except OSError:
        return False


def fields(pid: int) -> list[str]:
    """What `stat` says after the name: state first, then user and system ticks at 11 and 12, niceness at 16."""
    return (of(pid) / "stat").read_text().rpartition(")")[2].split()


def processor_seconds(pid: int, *, of_children: bool = False) -> float:
    """The processor time that a process has used, or its children that have ended."""
    first = 13 if of_children else 11
    return sum(map(int, fields(pid)[first : first + 2])) / float(os.sysconf("SC_CLK_TCK"))


def open_files(pid: int) -> int:
    """How many files a process has open."""
    return len(list((of(pid) / "fd").iterdir()))


def files_in(pid: int, *folders: str) -> list[str]:
    """Files of these folders that a process has open or mapped."""
    mapped = (line.split(maxsplit=5)[-1] for line in (of(pid) / "maps").read_text().splitlines())
    opened = []
    for file in (of(pid) / "fd").iterdir():
        with suppress(OSError):
            opened.append(os.readlink(file))
    return [path for path in (*mapped, *opened) if path.startswith(tuple(f"{folder}/" for folder in folders))]


def holds(pid: int, number: int) -> bool:
    """Whether a process blocks, ignores or handles a signal, which then does not end it at once."""
    text = (of(pid) / "status").read_text()
    masks = re.findall(r"Sig(?:Blk|Ign|Cgt):\s+([0-9a-f]+)", text)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def connections(pid: int, port: int) -> int:
    """Established connections to a port that a process has."""
    held = set()
    for file in (of(pid) / "fd").iterdir():
        with suppress(OSError):
            held.add(os.readlink(file))
    lines = [line.split() for line in (of(pid) / "net" / "tcp").read_text().splitlines()[1:]]
    inodes = [line[9] for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "01"]
    return sum(f"socket:[{inode}]" in held for inode in inodes)


def variables(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    texts = (of(pid) / "environ").read_bytes().decode().split("\0")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(list((of(pid) / "task").iterdir()))


def children(pid: int, command: str) -> list[int]:
    """The processes that a process has started and that have a word in their command; one that ends now has none."""
    pids: list[int] = []
    for task in (of(pid) / "task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends now
            pids += map(int, task.read_text().split())
    running = []
    for child in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            if command.encode() in (of(child) / "cmdline").read_bytes():
                running.append(child)
    return running


def serving(pid: int) -> list[int]:
    """The processes that serve: the workers of a parent, or a server itself."""
    with suppress(OSError):  # one has just ended
        return children(pid, "\0serve\0") or [pid]
    return [pid]


def resident_bytes(pid: int) -> int:
    """The memory that a process holds now."""
    return _status_bytes(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held."""
    return _status_bytes(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Lets the peak of a process's memory begin anew."""
    (of(pid) / "clear_refs").write_text("5")


def processor_flags() -> set[str]:
    """The instructions that the processor has, by Linux's names; where it says none the test is skipped."""
    of(os.getpid())
    lines = (PROC / "cpuinfo").read_text().splitlines()
    found = next((line for line in lines if line.startswith("flags")), None)
    if found is None:
        pytest.skip("this processor's instructions have no names in /proc/cpuinfo")
    return set(found.split())


def _status_bytes(pid: int, name: str) -> int:
    return int(re.findall(rf"{name}:\s+(\d+) kB", (of(pid) / "status").read_text())[0]) * 1024


def environment(pid: int) -> dict[str, str]:
    """The environment with which a process was started."""
    variables = (of(pid) / "environ").read_text().split("\0")
    return dict(variable.split("=", 1) for variable in variables if "=" in variable)
