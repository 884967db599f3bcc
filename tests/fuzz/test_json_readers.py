"""A quick look at both readers of JSON bodies, and one at the reader in C with every access to memory watched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lengthwise.decoding import fast_json
from tests.fuzz.json_readers import fuzz

BODIES = 5000

pytestmark = pytest.mark.skipif(
    not fast_json.COMPILED, reason="lengthwise.decoding._fast_json is optional: this installation had no C compiler"
)


def test_what_is_read_in_c_is_what_is_read_in_python() -> None:
    ordinary, told = fuzz(BODIES, 1)
    assert ordinary > BODIES / 5
    assert told > BODIES / 50


@pytest.mark.process
@pytest.mark.long
def test_the_reader_in_c_never_touches_memory_that_is_not_its_own(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no gcc for Linux here")
    sanitizer = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(sanitizer).is_absolute():
        pytest.skip("this gcc has no sanitizers")
    source, module = Path(fast_json.__file__).with_name("_fast_json.c"), tmp_path / "_fast_json.so"
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-shared", "-fPIC"]
    include = sysconfig.get_path("include")
    subprocess.run([compiler, *flags, f"-I{include}", str(source), "-o", str(module)], check=True)
    watched = {
        "LD_PRELOAD": sanitizer,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",  # each object in memory of its own, so that an access behind it is seen
    }
    command = [sys.executable, "-m", "tests.fuzz.json_readers", "--bodies", "30000", "--module", str(module)]
    done = subprocess.run(command, env=os.environ | watched, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    read = re.fullmatch(r"(\d+) of 30000 bodies were read in C, \d+ explained, and all as in Python\n", done.stdout)
    assert read is not None
    assert int(read[1]) > 6000
