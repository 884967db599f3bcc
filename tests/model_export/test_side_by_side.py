"""Runs of one graph side by side (`mending.side_by_side`)."""

import threading
from collections.abc import Iterator

import pytest

from lengthwise.exporter_api.contract import files
from lengthwise_export.mending import side_by_side as module
from lengthwise_export.mending.side_by_side import side_by_side

CORES = pytest.mark.parametrize("cores", [1, 2, 9])


@CORES
def test_results_are_in_the_order_of_the_items(monkeypatch: pytest.MonkeyPatch, cores: int):
    monkeypatch.setattr(files, "available_cores", lambda: cores)
    first_waits = threading.Event()

    def call(item: int) -> int:
        if cores > 1 and not item:
            assert first_waits.wait(60)  # another call runs meanwhile
        first_waits.set()
        return item * item

    assert [*side_by_side(call, range(20))] == [item * item for item in range(20)]


@CORES
def test_an_error_is_raised_where_its_result_would_come(monkeypatch: pytest.MonkeyPatch, cores: int):
    monkeypatch.setattr(files, "available_cores", lambda: cores)
    results = side_by_side(lambda item: 6 // (3 - item), range(20))
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


@CORES
def test_no_error_ends_the_results_as_if_they_were_all(monkeypatch: pytest.MonkeyPatch, cores: int):
    monkeypatch.setattr(files, "available_cores", lambda: cores)
    empty: list[int] = []
    with pytest.raises(RuntimeError, match="StopIteration"):
        [*side_by_side(lambda _: next(iter(empty)), range(3))]


@CORES
def test_items_are_read_a_few_ahead(monkeypatch: pytest.MonkeyPatch, cores: int):
    monkeypatch.setattr(files, "available_cores", lambda: cores)
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    for count, _ in enumerate(side_by_side(abs, items()), 1):
        assert len(read) <= count + min(cores, module.MOST_THREADS)
