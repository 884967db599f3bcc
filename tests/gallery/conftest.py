"""One thread, torch's plain path, and which exhibits `make test` tries of the slowest tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from tests.gallery import truth


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves to `make gallery` the recorded truth, and of a test marked `sampled(n)` all but each n-th exhibit."""
    known = truth.is_recorded()
    seen: Counter[str] = Counter()
    for item in items:
        if known and item.path in truth.TESTS:
            item.add_marker(pytest.mark.gallery)
        if sampled := item.get_closest_marker("sampled"):
            test = item.nodeid.partition("[")[0]
            if seen[test] % sampled.args[0]:
                item.add_marker(pytest.mark.gallery)
            seen[test] += 1


@pytest.fixture(autouse=True)
def plain_path() -> Iterator[None]:
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(fast)
    torch.set_num_threads(threads)
