"""One thread, torch's plain path, which exhibits `make test` tries of the slowest tests, and which coverage follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sampled(n)`, each n-th exhibit is a part of `make test`; the others are marked `gallery`.

    Most of the time of these tests is that of torch and Keras: coverage follows each third exhibit.
    """
    seen: Counter[str] = Counter()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.traced(3))
        sampled = item.get_closest_marker("sampled")
        if sampled is None:
            continue
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
