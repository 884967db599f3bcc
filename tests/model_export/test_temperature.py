import numpy as np
import pytest

from lengthwise_export.architecture import temperature


def logits(answers: int, classes: int, scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `scale` times the right ones, and targets drawn from the right ones."""
    random = np.random.default_rng(seed)
    right = random.normal(size=(answers, classes)) * 2
    shares = np.exp(right) / np.exp(right).sum(axis=1, keepdims=True)
    targets = np.array([random.choice(classes, p=row) for row in shares])
    return right * scale, targets


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_the_temperature_is_found_from_targets_that_follow_the_probabilities(scale: float) -> None:
    values, targets = logits(5000, 4, scale)
    assert temperature.fit(values, targets, multi_label=False) == pytest.approx(scale, rel=0.06)


def test_several_labels_have_one_temperature() -> None:
    random = np.random.default_rng(0)
    right = random.normal(size=(5000, 3)) * 2
    targets = (random.random(right.shape) < 1 / (1 + np.exp(-right))).astype(np.float32)
    assert temperature.fit(right * 3, targets, multi_label=True) == pytest.approx(3, rel=0.06)


def test_few_answers_that_are_all_right_do_not_make_a_model_certain() -> None:
    values = np.eye(3)[np.arange(12) % 3] * 4
    divided = values / temperature.fit(values, np.arange(12) % 3, multi_label=False)
    shares = np.exp(divided) / np.exp(divided).sum(axis=1, keepdims=True)
    assert shares.max() == pytest.approx(1 - 1 / 14, abs=1e-3)


def test_answers_no_better_than_chance_become_equally_probable() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(4000, 2)) * 50
    assert temperature.fit(values, random.integers(0, 2, 4000), multi_label=False) > 500


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_logits_of_any_size_are_calibrated(size: float) -> None:
    values, targets = logits(500, 3, size)
    found = temperature.fit(values, targets, multi_label=False)
    assert np.isfinite(found)
    assert temperature.LOWEST * 0.99 <= found <= temperature.HIGHEST * 1.01
