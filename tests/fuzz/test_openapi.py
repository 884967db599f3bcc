"""Schemathesis against `/openapi.json`: every operation, all checks, and no status that is not documented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server_process import started

pytestmark = pytest.mark.process

KEY = "a-key-of-many-characters"
SETTINGS = """
[checks]
positive_data_acceptance.enabled = false
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", {expected}]

[[operations]]
include-path = "/predict"
checks.negative_data_rejection.enabled = false
"""
"""A body may fit the document and nothing else in it (as many numbers as a shape says), and a deadline of no time is a
504. Of `POST /predict` the header and the query belong to octets, and beside JSON a strange one is passed over; that no
body passes that the document refuses is held in `test_body_schemas`."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "expected"),
    [((), "504"), (("--admin-calls", "--api-keys-file", "keys"), "503, 504")],
    ids=["as it comes", "with keys, and models that come and go"],
)
def test_a_fuzzer_of_the_document_finds_nothing(options: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    (tmp_path / "schemathesis.toml").write_text(SETTINGS.format(expected=expected))
    fuzzer = Path(sys.executable).with_name("schemathesis")
    load = ["--max-examples", "30", "--seed", "1", "--no-color", "--generation-database", "none"]
    absolute = [str(tmp_path / option) if option == "keys" else option for option in options]
    with started("--runners", "1", *absolute) as server:
        done = subprocess.run(
            [fuzzer, "run", *load, "-H", f"Authorization: Bearer {KEY}", server.url + "/openapi.json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert "Operations:       32 selected" in done.stdout
        assert "Traceback" not in server.text
