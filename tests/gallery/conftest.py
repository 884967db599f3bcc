"""One thread, torch's plain path, and when the truth of the galleries is tested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gallery import truth


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the recorded truth to `make gallery`."""
    if truth.is_recorded():
        for item in items:
            if item.path in truth.TESTS:
                item.add_marker(pytest.mark.gallery)


@pytest.fixture(autouse=True)
def plain_path() -> Iterator[None]:
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(fast)
    torch.set_num_threads(threads)
