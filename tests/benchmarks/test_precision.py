"""The figures of the precisions: measured by the benchmark, and told in the document as they were measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import precision
from lengthwise.decoding import dataset

DOCUMENT = Path("docs/precision.md")


def row(measured: dict[str, float | str | None]) -> str:
    together = measured["together_us_a_step"]
    return (
        f"| {measured['precision']} | {measured['accuracy']:.4f} | {measured['labels_changed']} "
        f"| {measured['largest_difference']:.2g} | {measured['graph_bytes'] / 1000:.0f} KB "
        f"| {measured['alone_us_a_step']:.1f} us | {'never' if together is None else f'{together:.1f} us'} |"
    )


def test_the_document_tells_the_figures_as_they_were_measured() -> None:
    measured = json.loads(precision.RESULTS.read_text())["precisions"]
    assert [each["precision"] for each in measured] == ["fp32", "fp16", "int8"]
    text = DOCUMENT.read_text()
    for each in measured:
        assert row(each) in text


def test_every_precision_is_asked_for_every_recording() -> None:
    records = list(dataset.read(dataset.locate(precision.DATA)))[:40]
    exact, half, eight = precision.measured(records, rounds=1)
    assert (exact.labels_changed, exact.largest_difference) == (0, 0.0)
    assert min(exact.accuracy, half.accuracy, eight.accuracy) > 0.9
    assert 0 < half.largest_difference < eight.largest_difference < 0.5
    assert eight.graph_bytes < half.graph_bytes < exact.graph_bytes
    assert (half.together_us_a_step is None, eight.together_us_a_step is None) == (False, True)
