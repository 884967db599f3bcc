from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, multilabel_confusion_matrix
from torch.nn import functional

from lengthwise.datasets.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import Task
from lengthwise_export.architecture import trained
from lengthwise_export.errors import CheckpointError
from lengthwise_export.training import scores, train
from lengthwise_export.training.batches import NO_TARGET, Example, make_examples
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.train import Epoch, TrainingProgress, TrainingRun
from tests.support.specs import separable, spec

QUICK = TrainingOptions(epochs=4, batch_rows=8, learning_rate=0.02)


class Interrupted(Exception):
    pass


def stop_after(number: int):
    def on_epoch(epoch: Epoch) -> None:
        if epoch.number == number:
            raise Interrupted

    return on_epoch


def weights(directory: Path) -> bytes:
    return (directory / trained.WEIGHTS_FILE).read_bytes()


def test_training_learns_what_there_is_to_learn(tmp_path: Path) -> None:
    result = train.train(spec(), separable(80), QUICK, tmp_path)
    fresh = make_examples(separable(60, seed=1), spec())
    assert scores.evaluate(result.model, fresh, spec()).accuracy > 0.9
    assert result.progress is not None
    assert result.progress.epochs[-1].training_loss < result.progress.epochs[0].training_loss


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("task", ["multi-label", "per-step"])
def test_the_other_heads_learn_too(tmp_path: Path, task: str) -> None:
    def relabelled(records: list[Record]) -> list[Record]:
        if task == "multi-label":
            return [replace(record, label=(record.label, "a") if record.label == "b" else ()) for record in records]
        signs = [tuple("ab"[int(value > 0)] for value in record.steps[:, 1]) for record in records]
        return [replace(record, label=labels) for record, labels in zip(records, signs, strict=True)]

    made = spec(task=task)
    result = train.train(made, relabelled(separable(80)), QUICK.model_copy(update={"epochs": 10}), tmp_path)
    fresh = make_examples(relabelled(separable(60, seed=1)), made)
    assert scores.evaluate(result.model, fresh, made).accuracy > 0.85


@pytest.mark.long
def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    for name in ("one", "two", "other"):
        (tmp_path / name).mkdir()
        options = QUICK.model_copy(update={"epochs": 2, "seed": 1 if name == "other" else 0})
        train.train(spec(), separable(30), options, tmp_path / name)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert weights(tmp_path / "one") != weights(tmp_path / "other")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("last", [0, 2])
def test_a_resumed_run_ends_in_the_weights_of_an_uninterrupted_one(tmp_path: Path, last: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    records = separable(40)
    expected = train.train(spec(), records, QUICK, whole)
    with pytest.raises(Interrupted):
        train.train(spec(), records, QUICK, parts, on_epoch=stop_after(last))
    seen: list[int] = []
    resumed = train.train(spec(), records, QUICK, parts, resume=True, on_epoch=lambda epoch: seen.append(epoch.number))
    assert weights(parts) == weights(whole)
    assert resumed.progress == expected.progress
    assert seen == [0, 1, 2, 3]


def test_a_resume_keeps_the_best_epoch_that_lies_before_it(tmp_path: Path) -> None:
    # Labels that nothing tells: the more is learnt, the worse is validation
    records = [replace(record, label="ab"[int(record.id) * 7 // 3 % 2]) for record in separable(40)]
    plain = QUICK.model_copy(update={"calibration": False})
    expected = train.train(spec(), records, plain, tmp_path)
    progress = expected.progress
    assert progress is not None
    assert progress.best == 0
    assert expected.splits["validation"].loss == pytest.approx(progress.epochs[0].validation_loss)
    before = weights(tmp_path)
    train.train(spec(), records, plain, tmp_path, resume=True)
    assert weights(tmp_path) == before


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"options": QUICK.model_copy(update={"epochs": 1, "seed": 9})}, r"--seed: it was started with 0, now it is 9"),
        ({"spec": spec('pooling = "last"')}, r'model\.pooling: it was started with "attention", now it is "last"'),
        ({"spec": spec(step="features = 3\nmax_length = 99")}, r"input\.max_length: it was started with 1024"),
        ({"records": separable(21)}, "the records differ"),
    ],
)
def test_a_state_of_another_run_is_not_resumed_and_what_differs_is_named(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    begun: dict[str, Any] = {
        "spec": spec(),
        "records": separable(20),
        "options": QUICK.model_copy(update={"epochs": 1}),
    }
    train.train(**begun, directory=tmp_path)
    with pytest.raises(CheckpointError, match=said):
        train.train(**begun | changed, directory=tmp_path, resume=True)


def test_too_few_records_or_no_state_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        train.train(spec(), separable(20), QUICK, tmp_path, resume=True)
    with pytest.raises(ConfigurationError, match="--validation 0"):
        train.train(spec(), separable(2), QUICK, tmp_path)
    with pytest.raises(ConfigurationError):
        train.train(spec(), [], QUICK.model_copy(update={"validation": 0.0}), tmp_path)


def test_without_a_validation_split_all_is_trained_on_and_the_last_epoch_taken(tmp_path: Path) -> None:
    result = train.train(spec(), separable(20), QUICK.model_copy(update={"validation": 0.0}), tmp_path)
    assert result.splits["training"].answers == 20
    assert [*result.splits] == ["training"]
    assert result.progress is not None
    assert result.progress.best == QUICK.epochs - 1


def test_the_epoch_of_the_lowest_validation_loss_is_kept_until_patience_is_over() -> None:
    progress, options = TrainingProgress(), TrainingOptions(epochs=50, patience=2)
    added = []
    for number, loss in enumerate([3.0, 1.0, 2.0, 2.0]):
        assert not progress.stops(options)
        added.append(progress.add(Epoch(number, 1.0, loss, 0.5)))
    assert (added, progress.best, progress.stops(options)) == ([True, True, False, False], 1, True)


@pytest.mark.parametrize("wished", [True, False])
def test_class_weights_are_taken_on_wish(wished: bool) -> None:
    run = TrainingRun(
        spec(), make_examples(separable(60), spec()), [], QUICK.model_copy(update={"class_weights": wished})
    )
    assert (run.weights is not None) == wished


def test_a_padded_step_counts_in_no_loss() -> None:
    logits = torch.randn(2, 3, 4)
    targets = torch.tensor([[1, 2, 3], [0, NO_TARGET, NO_TARGET]])
    expected = functional.cross_entropy(torch.cat([logits[0], logits[1, :1]]), torch.tensor([1, 2, 3, 0]))
    torch.testing.assert_close(scores.loss(logits, targets, "per-step"), expected)


def test_each_label_of_a_multi_label_model_is_its_own_question() -> None:
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    expected = functional.softplus(-logits).mean()
    torch.testing.assert_close(scores.loss(logits, targets, "multi-label"), expected)


@pytest.mark.parametrize(
    ("targets", "classes", "task", "expected"),
    [
        ([0, 0, 0, 1], 3, "single-label", [4 / 9, 4 / 3, 1.0]),
        ([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], 2, "multi-label", [2.0, 1.0]),  # they weigh positives
        ([[0, 0, 0, 1]], 2, "per-step", [2 / 3, 2.0]),
    ],
)
def test_class_weights_make_a_rare_label_count_as_much(
    targets: list[object], classes: int, task: Task, expected: list[float]
) -> None:
    examples = [Example(torch.zeros(4, 1), torch.tensor(target)) for target in targets]
    torch.testing.assert_close(scores.class_weights(examples, classes, task), torch.tensor(expected))


def scored(answers: list[tuple[torch.Tensor, torch.Tensor]], classes: int, task: Task) -> scores.EvaluationScores:
    steps, described = torch.zeros(1, 1), spec(labels=str([*"abc"[:classes]]), task=task)
    return scores.scores([scores.ScoredAnswer(logits, Example(steps, target)) for logits, target in answers], described)


def one_hot(label: int, classes: int = 3) -> torch.Tensor:
    return 9.0 * functional.one_hot(torch.tensor(label), classes).float()


def test_scores_of_single_labels() -> None:
    found = scored([(one_hot(0), torch.tensor(0)), (one_hot(2), torch.tensor(1))], 3, "single-label")
    assert found.confusion == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert found.accuracy == 0.5
    assert found.macro_f1 == pytest.approx(1 / 3)
    # a label neither seen nor answered is left out of the mean
    assert scored([(one_hot(0), torch.tensor(0))], 3, "single-label").macro_f1 == 1.0


def test_scores_of_steps_count_valid_steps() -> None:
    logits = torch.stack([one_hot(1), one_hot(2)])
    found = scored([(logits, torch.tensor([1, 1])), (logits[:1], torch.tensor([1]))], 3, "per-step")
    assert found.answers == 3
    assert found.accuracy == pytest.approx(2 / 3)


def test_scores_of_several_labels() -> None:
    answers = [
        (torch.tensor([3.0, -3.0]), torch.tensor([1.0, 1.0])),
        (torch.tensor([3.0, -3.0]), torch.tensor([0.0, 0.0])),
    ]
    found = scored(answers, 2, "multi-label")
    assert found.confusion == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert found.accuracy == 0.5
    assert found.macro_f1 == pytest.approx(1 / 3)


def test_scores_of_one_label_that_may_be_assigned() -> None:
    pairs = [(3.0, 1.0), (3.0, 0.0), (-3.0, 1.0), (-3.0, 0.0), (-3.0, 0.0)]
    found = scored([(torch.tensor([logit]), torch.tensor([target])) for logit, target in pairs], 1, "multi-label")
    assert found.confusion == [[1, 1, 1, 2]]
    assert found.accuracy == 0.6
    assert found.macro_f1 == pytest.approx(1 / 2)


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_confusion_and_macro_f1_are_those_of_scikit_learn(task: Task) -> None:
    random = np.random.default_rng(0)
    shape = (30,) if task == "single-label" else (30, 3)
    for truth in (random.integers(0, 3, shape), random.integers(0, 2, shape), np.zeros(shape, dtype=np.int64)):
        targets = truth if task == "single-label" else np.minimum(truth, 1).astype(np.float32)
        logits = torch.from_numpy(random.normal(size=(30, 3)).astype(np.float32))
        found = scored(list(zip(logits, torch.from_numpy(targets), strict=True)), 3, task)
        answered = logits.argmax(1).numpy() if task == "single-label" else (logits > 0).numpy()
        assert found.macro_f1 == f1_score(targets, answered, average="macro", zero_division=np.nan)
        if task == "single-label":
            assert found.confusion == confusion_matrix(targets, answered, labels=range(3)).tolist()
        else:
            counts = multilabel_confusion_matrix(targets, answered)
            assert found.confusion == counts[:, [1, 0, 1, 0], [1, 1, 0, 0]].tolist()


def rated(shares: list[float], right: list[bool], steps: torch.Tensor) -> list[scores.ScoredAnswer]:
    """Answers of two classes with these probabilities, right or wrong."""
    logits = torch.log(torch.tensor([[share, 1 - share] for share in shares]))
    return [
        scores.ScoredAnswer(row, Example(steps, torch.tensor(int(not good))))
        for row, good in zip(logits, right, strict=True)
    ]


def test_calibration_error_is_the_distance_of_confidence_and_accuracy() -> None:
    found = scores.quality(rated([0.95] * 4, [True, True, True, False], torch.zeros(3, 1)))
    assert found["ece"] == pytest.approx(0.2, abs=1e-6)
    assert "by_missing" not in found
    assert [(group["from"], group["to"], group["sequences"]) for group in found["by_length"]] == [(3, 3, 4)]


def test_accuracy_is_grouped_by_the_share_of_missing_values() -> None:
    gaps = [torch.tensor([[float("nan")]] * count + [[0.0]] * (10 - count)) for count in (0, 1, 9)]
    found = scores.quality([one for steps in gaps for one in rated([0.95], [True], steps)])
    assert [group["sequences"] for group in found["by_missing"]] == [1, 1, 1]
