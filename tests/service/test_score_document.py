"""`docs/data.md` says what happens: its shell blocks are run, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


@pytest.mark.long
def test_every_command_of_the_page_on_data_runs_and_the_last_line_is_as_shown(tmp_path: Path):
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S))
    (shown,) = re.findall(r"^```json\n(.*?)^```", TEXT, re.M | re.S)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(shown)
    assert "without an answer: 1 of them" in done.stdout
