"""One thread, torch's plain path, and when the truth of the galleries is tested."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gallery import truth

is_recorded = functools.cache(truth.is_recorded)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves the recorded truth, more than a thousand tests, to `make gallery`: `make test` does not collect it."""
    left_out = "not gallery" in config.getoption("-m")
    return True if left_out and collection_path in truth.TESTS and is_recorded() else None


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the recorded truth."""
    for item in items:
        if item.path in truth.TESTS and is_recorded():
            item.add_marker(pytest.mark.gallery)


@pytest.fixture(autouse=True)
def plain_path() -> Iterator[None]:
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(fast)
    torch.set_num_threads(threads)
