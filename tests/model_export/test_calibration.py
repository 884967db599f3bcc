"""Probabilities of trained layers fit the answers on the validation split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lengthwise_export
from lengthwise.datasets.dataset import Record
from lengthwise_export.architecture import trained
from lengthwise_export.exporting.candidate import from_spec
from lengthwise_export.training import train as training
from lengthwise_export.training.options import TrainingOptions
from tests.support.specs import separable, spec


def noisy(count: int) -> list[Record]:
    """Records of which every fifth has the other label, so that no model is right to be certain."""
    return [
        Record(each.id, each.steps, "ba"["ab".index(str(each.label))] if index % 5 == 0 else each.label, each.place)
        for index, each in enumerate(separable(count))
    ]


def run(tmp_path: Path, records: list[Record], task: str = "single-label", **more: object) -> training.TrainingResult:
    options = TrainingOptions(**{"epochs": 12, "learning_rate": 0.02, "validation": 0.4, "patience": 12} | more)  # type: ignore[arg-type]
    return training.train(spec(task=task), records, options, tmp_path)


def test_the_temperature_divides_the_head_and_changes_no_label(tmp_path: Path) -> None:
    calibrated, plain = run(tmp_path, noisy(80)), run(tmp_path, noisy(80), calibration=False)
    assert plain.temperature is None
    assert calibrated.temperature is not None
    assert torch.allclose(calibrated.model.head.weight * calibrated.temperature, plain.model.head.weight)
    assert calibrated.splits["validation"].loss < plain.splits["validation"].loss
    assert calibrated.splits["validation"].confusion == plain.splits["validation"].confusion


def test_checkpoint_and_manifest_state_the_temperature(tmp_path: Path) -> None:
    result = run(tmp_path, noisy(40))
    path = tmp_path / trained.WEIGHTS_FILE
    record = trained.read_record(path)
    assert record.temperature == result.temperature
    assert record.spec is not None
    source = from_spec(record.spec, path)
    assert source.manifest.made["temperature"] == result.temperature


def test_without_validation_nothing_is_calibrated(tmp_path: Path) -> None:
    result = run(tmp_path, noisy(40), validation=0.0)
    assert result.temperature is None
    path = tmp_path / trained.WEIGHTS_FILE
    record = trained.read_record(path)
    assert record.temperature is None
    assert record.spec is not None
    assert "temperature" not in from_spec(record.spec, path).manifest.made


def test_without_validation_the_known_temperature_divides_the_head(tmp_path: Path) -> None:
    options = TrainingOptions(epochs=2, validation=0.0)
    known = training.train(spec(), noisy(20), options, tmp_path, known_temperature=2.5)
    plain = training.train(spec(), noisy(20), options, tmp_path)
    assert (known.temperature, plain.temperature) == (2.5, None)
    assert torch.allclose(known.model.head.weight * 2.5, plain.model.head.weight)
    again = training.train(spec(), noisy(20), replace(options, calibration=False), tmp_path, known_temperature=2.5)
    assert again.temperature is None


@pytest.mark.parametrize("task", ["multi-label", "per-step"])
def test_every_task_is_calibrated(task: str, tmp_path: Path) -> None:
    records = [
        Record(each.id, each.steps, (str(each.label),) * (1 if task == "multi-label" else len(each.steps)), each.place)
        for each in noisy(60)
    ]
    calibrated, plain = run(tmp_path, records, task), run(tmp_path, records, task, calibration=False)
    assert calibrated.splits["validation"].loss < plain.splits["validation"].loss


@pytest.mark.parametrize("calibration", [True, False])
def test_the_option_turns_it_off(tmp_path: Path, calibration: bool) -> None:
    described = {"input": {"features": 3}, "model": {"hidden": 4}, "output": {"labels": ["a", "b"]}}
    records = separable(20)
    given = [each.steps for each in records], [str(each.label) for each in records]
    made = lengthwise_export.train(
        described, *given, out=tmp_path / "run", epochs=1, validation=0.2, calibration=calibration, progress=None
    )
    assert isinstance(made.report["temperature"], float) == calibration
