"""Records on their way to a model: taken, refused, gathered; and what came of them."""

import numpy as np
import pytest

from lengthwise.datasets.dataset import BadRecord, Label, Record
from lengthwise.decoding.calls import Item
from lengthwise.errors import RecordError
from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Task
from lengthwise.scoring import records
from lengthwise.scoring.offline import ScoredBatch
from lengthwise.scoring.records import Chunk, Summary, ValidRecord, chunked, correct_answers, validated
from tests.support.numpy_models import manifest


def zeros(length: int) -> Steps:
    return np.zeros((length, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("task", "label", "said"),
    [
        ("single-label", ("a",), "a single-label model wants one label"),
        ("multi-label", "a", "a multi-label model wants a list of labels"),
        ("per-step", "a", "a per-step model wants one label a step"),
        ("per-step", ("a", "b"), "2 labels for 3 steps"),
        *(("single-label", "a", None), ("multi-label", (), None), ("per-step", ("a", "b", "c"), None)),
        ("per-step", None, None),
        ("per-step", ("a", None, "c"), None),
        ("multi-label", ("a", None), "null is among its labels, and only a step may lack one"),
    ],
)
def test_a_label_of_another_form_than_the_models_is_named(task: str, label: Label, said: str | None):
    (entry,) = validated([Record("r", zeros(3), label, "d.jsonl:7")], manifest(task=task))
    assert (str(entry.error) if isinstance(entry, BadRecord) else None) == (said and f"d.jsonl:7: {said}")


def taken(length: int = 1) -> ValidRecord:
    return ValidRecord("r", Item(zeros(length), length, id="r"), None, "d.jsonl:1")


BAD = BadRecord("b", RecordError("d.jsonl:2: bad"))


def sizes(chunks: list[Chunk]) -> list[int]:
    return [len(chunk.entries) for chunk in chunks]


def test_a_chunk_holds_so_many_records_and_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "CHUNK_BYTES", 10 * 8)
    assert sizes(list(chunked([taken(6), taken(6), taken(99), taken(1)], lambda: 0.5, stop_at_bad=True))) == [2, 1, 1]
    monkeypatch.setattr(records, "CHUNK_RECORDS", 2)
    assert sizes(list(chunked([taken()] * 5, lambda: 0.5, stop_at_bad=True))) == [2, 2, 1]
    assert sizes(list(chunked([taken()] * 4, lambda: 0.5, stop_at_bad=True))) == [2, 2]


def test_nothing_behind_a_bad_record_is_read_where_that_ends_the_run():
    entries = iter([taken(), BAD, taken()])
    (chunk,) = chunked(entries, lambda: 0.5, stop_at_bad=True)
    assert (chunk.entries[1], chunk.read) == (BAD, 0.5)
    assert len(list(entries)) == 1


LABELS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("task", "label", "prediction", "expected"),
    [
        ("single-label", "a", {"label": "a"}, [True]),
        ("single-label", "elsewhere", {"label": "a"}, [False]),
        ("multi-label", ("a", "c"), {"assigned": ["a", "b"]}, [True, False, False]),
        ("multi-label", (), {"assigned": []}, [True, True, True]),
        ("per-step", ("a", "b", "c"), {"step_labels": [None, "b", "a"]}, [True, False]),
        ("per-step", (None, "b", "d"), {"step_labels": ["a", "b", "a"]}, [True]),
    ],
)
def test_each_answer_is_held_against_the_label(
    task: Task, label: Label, prediction: dict[str, object], expected: list[bool]
):
    assert correct_answers(label, prediction, LABELS, task) == expected


def test_a_summary_counts_records_errors_and_right_answers():
    summary = Summary("m/1")
    for label, prediction in [
        ("a", {"label": "a"}),
        ("b", {"label": "a"}),
        (None, {"label": "a"}),
        ("a", {"error": ""}),
    ]:
        summary.count(label, prediction, LABELS, "single-label")
    assert (summary.records, summary.errors, summary.right, summary.answers) == (4, 1, 1, 2)
    assert summary.accuracy == 0.5
    assert list(summary.lines())[-1] == "accuracy 0.5000: 1 of 2 answers are the label"
    summary.right, summary.answers = 0, 10
    assert list(summary.lines())[-1].endswith(
        "are the label: are the labels of the data written as those of the model?"
    )


def test_labels_that_the_model_does_not_have_are_said_and_not_compared():
    summary = Summary("m/1")
    for label in ("d", "a", "e"):
        summary.count(label, {"label": "a"}, LABELS, "single-label")
    summary.count(("a", "d"), {"step_labels": ["b", "a"]}, LABELS, "per-step")
    assert list(summary.lines())[1:] == [
        "3 of 4 records are not compared: label 'd' is none of the model's labels; these 3 are 'a', 'b', 'c'",
        "accuracy 0.5000: 1 of 2 answers are the label",
    ]
    other = Summary("m/1")
    other.count("d", {"label": "a"}, LABELS, "single-label")
    assert (other.accuracy, other.to_json()["answers"]) == (None, 0)


def test_figures_of_speed_are_of_this_run_alone():
    summary = Summary("m/1", records=30, resumed=20, seconds=2.0)
    summary.count_batch(
        ScoredBatch(rows=10, cost_steps=200, valid_steps=120, computed_padding_steps=30, cpu_seconds=0.75)
    )
    summary.cpu_seconds["reading"] = 0.25
    assert "processor time 1.0 s: 25% reading the file, 0% planning batches, 75% running the model" in "\n".join(
        summary.lines()
    )
    assert summary.sequences_per_second == 5
    assert (summary.padding_share, summary.computed_padding_share) == (0.4, 0.2)
    assert summary.note() == "10 sequences, 5/s, 20.0% computed as padding"
    assert Summary("m/1", records=20, resumed=20, rows=2, seconds=0.4).note().startswith("2 sequences, 0.0%")
    assert {name: summary.to_json()[name] for name in ("padding_share", "computed_padding_share")} == {
        "padding_share": 0.4,
        "computed_padding_share": 0.2,
    }


def test_nothing_divides_by_zero():
    summary = Summary("m/1")
    assert (summary.sequences_per_second, summary.padding_share, summary.accuracy) == (0, 0, None)
    assert len(list(summary.lines())) == 1
