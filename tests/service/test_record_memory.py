"""What a group of recorded rows took goes back to the system when it is written."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

pytestmark = pytest.mark.process

PROGRAM = """
import os
import sys
from pathlib import Path

import numpy as np

from lengthwise.monitoring.record_file import RecordFile
from tests.support import proc


def row(index):
    steps = np.random.default_rng(index).standard_normal((15, 12), dtype=np.float32)
    values = {name: f"{name} {index}" for name in ("id", "model", "version", "request")}
    seconds = {"queue_seconds": 0.1, "inference_seconds": 0.2}
    answer = {"answer": ["3"], "probabilities": steps[0]}
    return values | seconds | answer | {"steps": steps, "length": len(steps), "arrived": index, "names": None}


rows = [row(index) for index in range(4000)]
file = RecordFile(Path(sys.argv[1]), "m", rows[0], 0.0)
file.write(rows[:50])
before = proc.resident_bytes(os.getpid())
for turn in range(20):
    size = 300 + 20 * turn
    for start in range(0, len(rows), size):
        file.write(rows[start : start + size])
print((proc.resident_bytes(os.getpid()) - before) / 2**20)
file.complete()
"""
MOST_MIB = 10
"""By itself Arrow's allocator kept 19 MiB of this; a writer and its encoders need 1 to 2."""


@pytest.mark.long
@pytest.mark.process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the program reads /proc")
@pytest.mark.skipif(pa.default_memory_pool().backend_name != "mimalloc", reason="another allocator of Arrow's")
def test_what_a_group_took_goes_back(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < MOST_MIB
