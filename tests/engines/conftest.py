"""Recordings as Parquet files, the answers to them, and a scorer whose process dies once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.engines import ROWS, Recordings, write_recordings

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test here."""
    for item in items:
        if item.nodeid.startswith("tests/engines/"):
            item.add_marker(pytest.mark.engines)
            # Engines warn of many things, such as of each other's packages.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def environment() -> None:
    """What engines hand on to their workers: where the tests are, and no network but this machine's own."""
    wanted = {
        "PYTHONPATH": str(ROOT),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_raylet_start_wait_time_s": "300",
    }
    os.environ.update(wanted)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """A folder with `ROWS` recordings in six files, and their answers."""
    found = write_recordings(tmp_path_factory.mktemp("recordings"))
    assert len(found.answers) == ROWS
    return found
