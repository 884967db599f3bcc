"""Memory that is freed goes back to the system."""

import os
import platform
import subprocess
import sys

import pytest

from lengthwise.settings import mmap_threshold_is_set

PROGRAM = """
import ctypes, sys
from lengthwise.runtime.free_memory import LARGE_BYTES, map_large_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)


class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks a b c d e f".split()]


libc.mallinfo2.restype = Mallinfo2
if "map" in sys.argv:
    map_large_blocks()
libc.free(libc.malloc(16 * 1024 * 1024))  # glibc's own limit is that of the largest block from now on
before = libc.mallinfo2().hblks
for _ in range(20):  # a few may fit into what Python has freed
    libc.malloc(LARGE_BYTES)
print(libc.mallinfo2().hblks - before)
"""


def mapped(*arguments: str) -> int:
    """How many blocks a new process has mapped for twenty large allocations."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_large_block_is_mapped_by_itself() -> None:
    assert mapped() == 0
    assert mapped("map") >= 15


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("MALLOC_MMAP_THRESHOLD_", "65536", True),
        ("GLIBC_TUNABLES", "glibc.malloc.check=3:glibc.malloc.mmap_threshold=65536", True),
        ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2", False),
        ("MALLOC_ARENA_MAX", "2", False),  # many images set it
    ],
)
def test_what_the_user_has_set_stays(name: str, text: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in os.environ:
        if known.startswith(("MALLOC_", "GLIBC_")):
            monkeypatch.delenv(known)
    assert not mmap_threshold_is_set()
    monkeypatch.setenv(name, text)
    assert mmap_threshold_is_set() is expected
