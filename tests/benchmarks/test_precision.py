"""The figures of the precisions: measured by the benchmark, and told in the document as they were measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks import pages, precision
from lengthwise.decoding import dataset

DOCUMENT = Path("docs/precision.md")


def test_the_document_tells_the_figures_as_they_were_measured() -> None:
    _, _, *lines = pages.first_table(precision.PAGE).splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| fp32", "| fp16", "| int8"]
    text = DOCUMENT.read_text()
    for line in lines:
        assert line in text


def test_every_precision_is_asked_for_every_recording() -> None:
    records = list(dataset.read(dataset.locate(precision.DATA)))[:40]
    exact, half, eight = precision.measured(records, rounds=1)
    assert (exact.labels_changed, exact.largest_difference) == (0, 0.0)
    assert min(exact.accuracy, half.accuracy, eight.accuracy) > 0.9
    assert 0 < half.largest_difference < eight.largest_difference < 0.5
    assert eight.graph_bytes < half.graph_bytes < exact.graph_bytes
    assert all(each.together_us_a_step is not None for each in (exact, half, eight))
