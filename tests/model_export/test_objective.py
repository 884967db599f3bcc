import pytest
import torch
from torch.nn import functional

from lengthwise.runtime.manifest import Task
from lengthwise_export.training import scores as objective
from lengthwise_export.training.batches import NO_TARGET, Example
from lengthwise_export.training.scores import EvaluationScores, ScoredAnswer, quality, scores
from tests.support.specs import spec


def test_a_padded_step_counts_in_no_loss() -> None:
    logits = torch.randn(2, 3, 4)
    targets = torch.tensor([[1, 2, 3], [0, NO_TARGET, NO_TARGET]])
    expected = functional.cross_entropy(torch.cat([logits[0], logits[1, :1]]), torch.tensor([1, 2, 3, 0]))
    torch.testing.assert_close(objective.loss(logits, targets, "per-step"), expected)


def test_each_label_of_a_multi_label_model_is_its_own_question() -> None:
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    expected = functional.softplus(-logits).mean()
    torch.testing.assert_close(objective.loss(logits, targets, "multi-label"), expected)


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
    torch.testing.assert_close(objective.class_weights(examples, classes, task), torch.tensor(expected))


def scored(answers: list[tuple[torch.Tensor, torch.Tensor]], classes: int, task: Task) -> EvaluationScores:
    steps, described = torch.zeros(1, 1), spec(labels=str([*"abc"[:classes]]), task=task)
    return scores([ScoredAnswer(logits, Example(steps, target)) for logits, target in answers], described)


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


def rated(shares: list[float], right: list[bool], steps: torch.Tensor) -> list[ScoredAnswer]:
    """Answers of two classes with these probabilities, right or wrong."""
    logits = torch.log(torch.tensor([[share, 1 - share] for share in shares]))
    return [
        ScoredAnswer(row, Example(steps, torch.tensor(int(not good)))) for row, good in zip(logits, right, strict=True)
    ]


def test_calibration_error_is_the_distance_of_confidence_and_accuracy() -> None:
    found = quality(rated([0.95] * 4, [True, True, True, False], torch.zeros(3, 1)))
    assert found["ece"] == pytest.approx(0.2, abs=1e-6)
    assert "by_missing" not in found
    assert [(group["from"], group["to"], group["sequences"]) for group in found["by_length"]] == [(3, 3, 4)]


def test_accuracy_is_grouped_by_the_share_of_missing_values() -> None:
    gaps = [torch.tensor([[float("nan")]] * count + [[0.0]] * (10 - count)) for count in (0, 1, 9)]
    found = quality([one for steps in gaps for one in rated([0.95], [True], steps)])
    assert [group["sequences"] for group in found["by_missing"]] == [1, 1, 1]
