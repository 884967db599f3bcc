"""Probabilities fit held-out answers: the temperature, and the layers that are divided by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lengthwise.datasets.dataset import Record
from lengthwise_export.architecture import temperature, trained
from lengthwise_export.training import train as training
from lengthwise_export.training.options import TrainingOptions
from tests.support.specs import from_spec, separable, spec


def noisy(count: int, task: str = "single-label") -> list[Record]:
    """Records of which every fifth has the other label, so that no model is right to be certain."""
    records = []
    for index, each in enumerate(separable(count)):
        label = "ba"["ab".index(str(each.label))] if index % 5 == 0 else str(each.label)
        several = (label,) * (1 if task == "multi-label" else len(each.steps))
        records.append(replace(each, label=label if task == "single-label" else several))
    return records


def run(tmp_path: Path, count: int, task: str = "single-label", **more: object) -> training.TrainingResult:
    options = TrainingOptions(**{"epochs": 12, "learning_rate": 0.02, "validation": 0.4, "patience": 12} | more)  # type: ignore[arg-type]
    return training.train(spec(task=task), noisy(count, task), options, tmp_path)


@pytest.mark.long
@pytest.mark.sampled(4)
@pytest.mark.parametrize("task", ["single-label", "multi-label", "per-step"])
def test_the_temperature_divides_the_head_and_changes_no_label(task: str, tmp_path: Path) -> None:
    calibrated, plain = run(tmp_path, 80, task), run(tmp_path, 80, task, calibration=False)
    assert plain.temperature is None
    assert calibrated.temperature is not None
    assert torch.allclose(calibrated.model.head.weight * calibrated.temperature, plain.model.head.weight)
    assert calibrated.splits["validation"].loss < plain.splits["validation"].loss
    assert calibrated.splits["validation"].confusion == plain.splits["validation"].confusion


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("validation", [0.4, 0.0])
def test_with_a_validation_split_manifest_and_checkpoint_name_temperature(validation: float, tmp_path: Path) -> None:
    result = run(tmp_path, 40, validation=validation)
    assert (result.temperature is None) == (validation == 0)
    path = tmp_path / trained.WEIGHTS_FILE
    record = trained.read_record(path)
    assert record.temperature == result.temperature
    assert record.spec is not None
    assert from_spec(record.spec, path).manifest.made.get("temperature") == result.temperature


def test_without_a_validation_split_the_head_stays_as_it_was_trained(tmp_path: Path) -> None:
    options = TrainingOptions(epochs=2, validation=0.0)
    plain, off = (
        training.train(spec(), noisy(20), options.model_copy(update={"calibration": wished}), tmp_path)
        for wished in (True, False)
    )
    assert (plain.temperature, off.temperature) == (None, None)
    assert torch.equal(plain.model.head.weight, off.model.head.weight)


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


def test_four_answers_give_no_temperature() -> None:
    values = np.eye(2)[[0, 1, 0, 1, 0]]
    assert temperature.fit(values[:4], np.array([1, 0, 1, 0]), multi_label=False) is None
    assert temperature.fit(values, np.array([1, 0, 1, 0, 1]), multi_label=False) is not None


def test_logits_of_any_size_and_answers_no_better_than_chance_are_calibrated() -> None:
    for size in (1e-6, 1e6):
        values, targets = logits(500, 3, size)
        found = temperature.fit(values, targets, multi_label=False)
        assert temperature.LOWEST * 0.99 <= found <= temperature.HIGHEST * 1.01
    random = np.random.default_rng(0)
    values = random.normal(size=(4000, 2)) * 50
    assert temperature.fit(values, random.integers(0, 2, 4000), multi_label=False) > 500  # equally probable
