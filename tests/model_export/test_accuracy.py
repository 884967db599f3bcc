"""The accuracy on labelled data, before and after a mend too, and the profile of the data that an export keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from lengthwise.commands.cli import main
from lengthwise.datasets.dataset import Label, Record
from lengthwise.errors import ConfigurationError, VerificationError
from lengthwise.padding import PaddedBatch
from lengthwise.runtime.manifest import Manifest, StepInput, Task
from lengthwise.runtime.session import Outputs, Session
from lengthwise_export.architecture.trained import UNTRAINED
from lengthwise_export.errors import PublishError
from lengthwise_export.exporting import accuracy, flow
from lengthwise_export.exporting.flow import publish
from lengthwise_export.mending import mended_accuracy
from lengthwise_export.options import ExportOptions
from tests.support.mends import WEIGHTS, NumpySubject, mended_mean, over_the_steps, raising_below
from tests.support.specs import candidate

LABELS = ("slow", "mid", "fast")


class Oracle:
    """In the place of a session: the first value of a step says which output is the highest there."""

    def run(self, batch: PaddedBatch) -> Outputs:
        return Outputs(self.logits(batch).astype(np.float32), None)

    def logits(self, batch: PaddedBatch) -> NDArray[np.float64]:
        return np.eye(3)[batch.steps[:, 0, 0].astype(int)]


class PerStep(Oracle):
    def logits(self, batch: PaddedBatch) -> NDArray[np.float64]:
        return np.eye(3)[batch.steps[:, :, 0].astype(int)]


class Several(Oracle):
    def logits(self, batch: PaddedBatch) -> NDArray[np.float64]:
        return np.where(np.eye(3)[batch.steps[:, 0, 0].astype(int)] > 0, 5.0, -5.0)


def manifest(task: Task = "single-label", **more: Any) -> Manifest:
    return Manifest(name="m", version=1, input=StepInput(features=1), labels=LABELS, task=task, **more)


def record(values: list[float], label: Label, number: int = 1) -> Record:
    return Record(str(number), np.array(values, dtype=np.float32)[:, None], label, f"d.jsonl:{number}")


def measured(
    records: list[Record], described: Manifest | None = None, graph: Oracle | None = None
) -> accuracy.DataAccuracy:
    session = cast("Session", graph or Oracle())
    found = accuracy.measure(session, described or manifest(), records)
    assert found is not None
    return found


def told(count: int, label_of: Callable[[int], str]) -> list[Record]:
    """Records of 1 to 5 steps, answered 0, 1, 2, 0, 1, 2 and so on."""
    return [record([float(i % 3)] * (1 + i % 5), label_of(i % 3), i + 1) for i in range(count)]


def test_right_labels_are_counted() -> None:
    found = measured(told(90, lambda answered: LABELS[answered]))
    assert (found.answers, found.right, found.accuracy, found.absent) == (90, 90, 1.0, [])
    assert list(found.notices(1.0)) == []


def test_labels_in_another_order_are_refused_by_name_though_some_answers_are_wrong() -> None:
    with pytest.raises(VerificationError, match=r"0\.3333"):
        measured(told(90, lambda answered: LABELS[::-1][answered]))
    records = told(90, lambda answered: LABELS[(answered + 1) % 3])
    records += [record([0.0], LABELS[i % 3], 100 + i) for i in range(30)]
    with pytest.raises(VerificationError):
        measured(records)


def test_a_poor_model_is_no_other_order_of_labels() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        measured(told(90, lambda answered: LABELS[int(random.integers(3))]))
    assert measured(told(6, lambda answered: LABELS[::-1][answered])).right == 2


def test_what_never_learnt_or_always_answers_the_same_is_no_other_order_of_labels() -> None:
    turned = told(90, lambda answered: LABELS[::-1][answered])
    assert measured(turned, manifest(made={"weights": UNTRAINED})).right == 30
    assert measured([record([1.0], "slow", i) for i in range(90)]).right == 0


def test_a_class_that_the_data_lacks_is_told_by_name() -> None:
    found = measured([record([float(i % 2)], LABELS[i % 2], i) for i in range(20)])
    assert found.absent == ["fast"]
    (notice,) = found.notices(None)
    assert "no sequence labelled 'fast'" in notice


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("quick", r"label 'quick' is none of the model's labels; these 3 are 'slow', 'mid', 'fast': .*--labels"),
        (("slow",), "a single-label model wants one label"),
    ],
)
def test_labels_that_the_model_does_not_have_are_refused_by_name(label: Label, said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"d.jsonl:3: {said}"):
        measured([*told(2, lambda answered: LABELS[answered]), record([0.0], label, 3)])


@pytest.mark.parametrize(
    ("right", "wrong", "expected", "expected_answers", "is_told"),
    [
        *((60, 40, 0.95, None, True), (60, 40, 0.62, None, False), (3, 2, 0.8, None, False)),
        *((90, 10, 1.0, 4, False), (60, 40, 1.0, 4, False)),  # all of four says little
        *((65, 35, 0.95, 20, False), (65, 35, 0.95, 2000, True), (20, 80, 1.0, 12, True)),
        *((97, 3, 1.0, 100_000, False), (80, 20, 1.0, 100_000, True)),
    ],
)
def test_an_accuracy_far_below_the_training_is_a_warning_with_many_records(
    right: int, wrong: int, expected: float, expected_answers: int | None, is_told: bool
) -> None:
    records = [record([0.0], "slow", i) for i in range(right)]
    found = measured(records + [record([0.0], LABELS[1 + i % 2], i) for i in range(wrong)])
    assert any("in training" in notice for notice in found.notices(expected, expected_answers)) == is_told


def test_sequences_that_the_model_refuses_are_left_out_and_told() -> None:
    records = [*told(9, lambda answered: LABELS[answered]), record([0.0] * 30, "slow", 10)]
    found = measured(records, manifest(max_length=20))
    assert (found.answers, found.left_out) == (9, 1)
    assert any("d.jsonl:10: 30 steps" in notice for notice in found.notices(None))
    with pytest.raises(ConfigurationError, match=r"d\.jsonl:10: "):
        measured(records[-1:], manifest(max_length=20))


def test_without_labels_there_is_nothing_to_tell_or_to_compare() -> None:
    session, unlabelled = cast("Session", Oracle()), [record([0.0], None)]
    assert accuracy.measure(session, manifest(), unlabelled) is None
    assert mended_accuracy.measure(NumpySubject(over_the_steps), session, manifest(), unlabelled) is None


@pytest.mark.parametrize(("long", "answers"), [("head", 20), ("tail", 20), ("window", 30)])
def test_each_step_is_held_against_its_label(long: str, answers: int) -> None:
    values = [float(i % 3) for i in range(30)]
    labels = tuple(LABELS[int(value)] for value in values)
    found = measured([record(values, labels)], manifest("per-step", max_length=20, long=long), PerStep())
    assert (found.answers, found.right) == (answers, answers)


def test_each_label_of_several_is_an_answer_and_another_order_is_refused() -> None:
    records = [record([0.0], ("slow",), 1), record([1.0], ("mid", "fast"), 2), record([2.0], (), 3)]
    found = measured(records, manifest("multi-label"), Several())
    assert (found.answers, found.right) == (9, 7)
    assert found.counts.tolist() == [1, 1, 1]
    turned = [record([float(i % 3)], (LABELS[::-1][i % 3],), i) for i in range(90)]
    with pytest.raises(VerificationError):
        measured(turned, manifest("multi-label"), Several())


class Mean(torch.nn.Module):
    """Answers 0, 1 or 2 by the mean of the one feature."""

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        mask = torch.arange(values.shape[1])[None, :] < lengths[:, None]
        mean = torch.where(mask[..., None], values, 0.0).sum(dim=1) / lengths[:, None]
        return torch.cat([-mean, 0.5 - mean.abs(), mean], dim=1)


def make() -> torch.nn.Module:
    return Mean()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled data, and a graph that says nothing of its labels."""
    folder = tmp_path_factory.mktemp("files")
    lines = [json.dumps({"steps": [i % 3 - 1.0] * (1 + i % 7), "label": LABELS[i % 3]}) for i in range(90)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["module", "onnx"])
def test_models_of_the_users_are_held_against_labelled_data(kind: str, files: Path, tmp_path: Path) -> None:
    target = f"{__name__}:make"
    if kind == "onnx":
        assert run(target, "--features", 1, "--max-length", 30, "--out", tmp_path / "plain").exit_code == 0
        graph = onnx.load(tmp_path / "plain" / "1" / "model.onnx")
        del graph.metadata_props[:]
        onnx.save(graph, tmp_path / "plain.onnx")
        target = str(tmp_path / "plain.onnx")
    call = (target, "--features", 1, "--max-length", 30, "--data", files / "data.jsonl", "--out", tmp_path / "m")
    for named, code, said in (
        (("--labels", "slow,mid,fast"), 0, ""),
        (("--labels", "fast,mid,slow"), 1, "another order"),
        ((), 2, "label 'slow' is none of the model's labels; these 3 are '0', '1', '2'"),
    ):
        result = run(*call, *named)
        assert (result.exit_code, said in result.stderr) == (code, True), result.output
    assert Manifest.read(tmp_path / "m" / "1").made["data_accuracy"] == 1.0
    assert [entry.name for entry in (tmp_path / "m").iterdir()] == ["1"]


@pytest.mark.long
def test_a_graph_that_names_its_labels_keeps_them_and_takes_no_others(tmp_path: Path) -> None:
    graph = publish(candidate(), tmp_path / "tiny").directory / "model.onnx"
    result = run(graph, "--labels", "b,a", "--max-length", 20, "--out", tmp_path / "n")
    assert (result.exit_code, "contradicts" in result.stderr) == (2, True)
    result = run(graph, "--max-length", 20, "--out", tmp_path / "n")
    assert result.exit_code == 0, result.output
    assert Manifest.read(tmp_path / "n" / "1").labels == ("a", "b")


def test_data_without_any_label_or_record_is_a_wrong_call(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('[input]\nfeatures = 1\n[output]\nlabels = ["a", "b"]')
    for text, said in (('{"steps": [1]}', "no record has a label"), ("", "there is no record in it")):
        (tmp_path / "d.jsonl").write_text(text)
        result = run(tmp_path / "s.toml", "--out", tmp_path / "m", "--data", tmp_path / "d.jsonl")
        assert (result.exit_code, said in result.stderr) == (2, True), result.output


OF_FOUR = Manifest(name="m", version=1, input=StepInput(features=3), labels=("a", "b", "c", "d"), max_length=60)
LENGTHS = range(1, 41)


def recordings() -> list[Record]:
    """Recordings with the label that the mean over their steps gives; the last one is the longest."""
    random = np.random.default_rng(0)
    found = []
    for length in LENGTHS:
        steps = random.normal(size=(length, 3)).astype(np.float32)
        label = OF_FOUR.labels[int((steps.mean(axis=0) @ WEIGHTS).argmax())]
        found.append(Record(id=str(length), steps=steps, label=label, source_line=f"data:{length}"))
    return found


def turned_when_padded(batch: PaddedBatch) -> np.ndarray:
    """The mean over the steps, with the classes turned by one where a row has padding."""
    right = over_the_steps(batch)
    return np.where((batch.lengths < batch.width)[:, None], np.roll(right, 1, axis=1), right)


def mended(compute: Callable[[PaddedBatch], np.ndarray]) -> mended_accuracy.MendAccuracy:
    session = Session(mended_mean().SerializeToString(), OF_FOUR)
    answer = mended_accuracy.measure(NumpySubject(compute), session, OF_FOUR, recordings())
    assert answer is not None
    return answer


def test_each_way_has_its_accuracy_and_the_labels_that_the_mend_moves() -> None:
    figures = mended(turned_when_padded)
    # Only the longest of all, or of a batch of 32, has no padding.
    assert (figures.fixed.accuracy, figures.fixed.moved) == (pytest.approx(1 / 40), 39)
    assert (figures.batches.accuracy, figures.batches.moved) == (pytest.approx(2 / 40), 38)
    assert (figures.alone.accuracy, figures.alone.moved, figures.mended) == (1.0, 0, 1.0)
    assert figures.as_json()["labels_moved"]["from_padded_to_a_fixed_length"] == 39
    assert "0.0250 padded to a fixed length (from there 39 of 40 labels move)" in str(figures)


def test_a_way_in_which_the_original_raises_is_said() -> None:
    figures = mended(raising_below(30, over_the_steps))
    assert (figures.alone.accuracy, figures.alone.moved) == (None, None)
    assert figures.fixed.accuracy == 1.0
    assert "the original raises alone" in str(figures)
    assert figures.as_json()["alone"] is None


def test_what_a_look_can_refuse_is_refused_before_the_target_is_read(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"steps": [[1.0]], "label": "no"}\n{"steps": [[1.0]], "label": "yse"}\n', "utf-8")
    options = ExportOptions(labels=("no", "yes"), data=data)
    with pytest.raises(ConfigurationError, match=r"data\.jsonl:2: label .yse. is none of --labels; these 2 are"):
        flow.export("absent.module:make", tmp_path / "models" / "a", options, lambda notice: None)
    with pytest.raises(PublishError, match="cannot be written: Not a directory"):
        flow.export("absent.module:make", data / "a" / "1", options, lambda notice: None)


def test_steps_without_a_label_are_no_answers() -> None:
    records = [record([0, 1, 2, 0], ("slow", None, "fast", "mid"), 1), record([0, 1], (None, None), 2)]
    sample = accuracy.measure(cast(Session, PerStep()), manifest("per-step"), records)
    assert sample is not None
    assert (sample.answers, sample.right, sample.counts.tolist()) == (3, 2, [1, 1, 1])
