"""What a run of scoring came to."""

import pytest

from lengthwise.datasets.dataset import Label
from lengthwise.runtime.manifest import Task
from lengthwise.scoring.offline import ScoredBatch
from lengthwise.scoring.records import Summary, right

LABELS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("task", "label", "prediction", "expected"),
    [
        ("single-label", "a", {"label": "a"}, [True]),
        ("single-label", "elsewhere", {"label": "a"}, [False]),
        ("multi-label", ("a", "c"), {"assigned": ["a", "b"]}, [True, False, False]),
        ("multi-label", (), {"assigned": []}, [True, True, True]),
        ("per-step", ("a", "b", "c"), {"step_labels": [None, "b", "a"]}, [True, False]),
    ],
)
def test_each_answer_is_held_against_the_label(
    task: Task, label: Label, prediction: dict[str, object], expected: list[bool]
):
    assert right(label, prediction, LABELS, task) == expected


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


def test_figures_of_speed_are_of_this_run_alone():
    summary = Summary("m/1", records=30, resumed=20, seconds=2.0)
    summary.ran(ScoredBatch(rows=10, cost_steps=200, valid_steps=120, computed_padding_steps=30, cpu_seconds=0.75))
    summary.cpu_seconds["reading"] = 0.25
    assert "processor time 1.0 s: 25% reading the file, 0% planning batches, 75% running the model" in "\n".join(
        summary.lines()
    )
    assert summary.sequences_per_second == 5
    assert (summary.padding_share, summary.computed_padding_share) == (0.4, 0.2)
    assert "20.0%" in summary.note()
    assert {name: summary.to_json()[name] for name in ("padding_share", "computed_padding_share")} == {
        "padding_share": 0.4,
        "computed_padding_share": 0.2,
    }


def test_nothing_divides_by_zero():
    summary = Summary("m/1")
    assert (summary.sequences_per_second, summary.padding_share, summary.accuracy) == (0, 0, None)
    assert len(list(summary.lines())) == 1


def test_people_are_told_of_errors_and_of_accuracy():
    summary = Summary("m/1", records=3, errors=1, answers=2, right=1)
    _, errors, accuracy = summary.lines()
    assert errors.startswith("without an answer: 1 of them")
    assert accuracy == "accuracy 0.5000: 1 of 2 answers are the label"
