import pytest
import torch
from torch.nn import functional

from lengthwise_export.training import objective
from lengthwise_export.training.batches import NO_TARGET, Example


def test_a_padded_step_counts_in_no_loss() -> None:
    logits = torch.randn(2, 3, 4)
    targets = torch.tensor([[1, 2, 3], [0, NO_TARGET, NO_TARGET]])
    expected = functional.cross_entropy(torch.cat([logits[0], logits[1, :1]]), torch.tensor([1, 2, 3, 0]))
    torch.testing.assert_close(objective.loss(logits, targets, "per-step"), expected)


def test_each_label_of_a_multi_label_model_is_its_own_question() -> None:
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    expected = functional.softplus(-logits).mean()
    torch.testing.assert_close(objective.loss(logits, targets, "multi-label"), expected)


def test_class_weights_make_a_rare_label_count_as_much() -> None:
    examples = [Example(torch.zeros(1, 1), torch.tensor(label)) for label in [0, 0, 0, 1]]
    weights = objective.class_weights(examples, 3, "single-label")
    torch.testing.assert_close(weights, torch.tensor([4 / 9, 4 / 3, 1.0]))


def test_class_weights_of_a_multi_label_model_weigh_positives() -> None:
    examples = [Example(torch.zeros(1, 1), torch.tensor(labels)) for labels in [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]
    assert objective.class_weights(examples, 2, "multi-label").tolist() == [2.0, 1.0]


def test_class_weights_of_a_per_step_model_count_steps() -> None:
    examples = [Example(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]))]
    torch.testing.assert_close(objective.class_weights(examples, 2, "per-step"), torch.tensor([2 / 3, 2.0]))


def one_hot(label: int, classes: int = 3) -> torch.Tensor:
    return 9.0 * functional.one_hot(torch.tensor(label), classes).float()


def test_scores_of_single_labels() -> None:
    scores = objective.scores([(one_hot(0), torch.tensor(0)), (one_hot(2), torch.tensor(1))], 3, "single-label")
    assert scores.confusion == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert scores.accuracy == 0.5
    assert scores.macro_f1 == pytest.approx(1 / 3)


def test_a_label_neither_seen_nor_answered_is_left_out_of_the_mean() -> None:
    assert objective.scores([(one_hot(0), torch.tensor(0))], 3, "single-label").macro_f1 == 1.0


def test_scores_of_steps_count_valid_steps() -> None:
    logits = torch.stack([one_hot(1), one_hot(2)])
    scores = objective.scores([(logits, torch.tensor([1, 1])), (logits[:1], torch.tensor([1]))], 3, "per-step")
    assert scores.answers == 3
    assert scores.accuracy == pytest.approx(2 / 3)


def test_scores_of_several_labels() -> None:
    answers = [
        (torch.tensor([3.0, -3.0]), torch.tensor([1.0, 1.0])),
        (torch.tensor([3.0, -3.0]), torch.tensor([0.0, 0.0])),
    ]
    scores = objective.scores(answers, 2, "multi-label")
    assert scores.confusion == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert scores.accuracy == 0.5
    assert scores.macro_f1 == pytest.approx(1 / 3)
