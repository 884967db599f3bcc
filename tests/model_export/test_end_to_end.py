"""From records to answers over HTTP, for each kind of model: train, export, load as the service does, serve, ask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.datasets import dataset
from lengthwise.datasets.dataset import Record
from lengthwise.padding import Steps, pad
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE
from lengthwise_export.exporting.candidate import from_spec
from lengthwise_export.exporting.flow import publish
from lengthwise_export.training import train
from lengthwise_export.training.options import TrainingOptions
from tests.support.server_process import started
from tests.support.specs import spec


def served(made: Spec, records: Sequence[Record], options: TrainingOptions, folder: Path) -> tuple[Session, Manifest]:
    """Trains, exports, and loads the published directory."""
    train.train(made, records, options, folder)
    published = publish(from_spec(made, folder / WEIGHTS_FILE), folder / "models" / "m")
    manifest = Manifest.read(published.directory)
    return Session.load(published.directory, manifest), manifest


def logits(session: Session, sequences: Sequence[Steps]) -> np.ndarray:
    return session.run(pad(sequences)).logits


def over_http(folder: Path, sequences: Sequence[Steps]) -> list[dict[str, Any]]:
    """The predictions of a server of the published model, all in one request."""
    with started(str(folder / "models")) as server:
        answer = server.predict({"sequences": [steps.tolist() for steps in sequences]})
    assert answer.status_code == 200, answer.text
    predictions: list[dict[str, Any]] = answer.json()["predictions"]
    return predictions


def sentences(count: int, seed: int) -> list[Record]:
    """Token sequences whose label is whether the id 7 occurs."""
    random = np.random.default_rng(seed)
    records = []
    for index in range(count):
        tokens = random.integers(0, 7, size=int(random.integers(3, 12)))
        if index % 2:
            tokens[random.integers(len(tokens))] = 7
        records.append(Record(str(index), tokens, "ab"[index % 2], f"made:{index}"))
    return records


@pytest.mark.long
def test_a_token_model_from_records_to_answers(tmp_path: Path) -> None:
    made = spec('pooling = "max"\nlayers = 1', step="vocabulary = 8\npadding_id = 0")
    session, manifest = served(made, sentences(160, 0), TrainingOptions(epochs=12, learning_rate=0.02), tmp_path)
    fresh = sentences(60, 1)
    answers = logits(session, [record.steps for record in fresh]).argmax(axis=1)
    assert (
        np.mean([manifest.labels[answer] == record.label for answer, record in zip(answers, fresh, strict=True)]) > 0.9
    )
    asked = over_http(tmp_path, [record.steps for record in fresh])
    assert [prediction["label"] for prediction in asked] == [manifest.labels[answer] for answer in answers]


def tagged(count: int, seed: int) -> list[Record]:
    """Each step is labelled by the sign of the step before it."""
    random = np.random.default_rng(seed)
    records = []
    for index in range(count):
        steps = random.standard_normal((int(random.integers(2, 12)), 3)).astype(np.float32)
        before = np.concatenate([[-1.0], steps[:-1, 0]])
        records.append(Record(str(index), steps, tuple("ab"[int(value > 0)] for value in before), f"made:{index}"))
    return records


@pytest.mark.long
def test_a_per_step_model_from_records_to_answers(tmp_path: Path) -> None:
    session, manifest = served(
        spec(task="per-step"), tagged(120, 0), TrainingOptions(epochs=15, learning_rate=0.02), tmp_path
    )
    fresh = tagged(40, 1)
    right, told = [], []
    for record, row in zip(fresh, logits(session, [record.steps for record in fresh]), strict=True):
        answered = row[: len(record.steps)].argmax(axis=1)
        told.append([manifest.labels[answer] for answer in answered])
        right += [answer == label for answer, label in zip(told[-1], record.label, strict=True)]
    assert np.mean(right) > 0.9
    asked = over_http(tmp_path, [record.steps for record in fresh])
    assert [prediction["step_labels"] for prediction in asked] == told


def marked(count: int, seed: int) -> list[Record]:
    """Two labels, each given by the sign of a feature's mean: neither, one or both."""
    random = np.random.default_rng(seed)
    records = []
    for index in range(count):
        signs = random.integers(0, 2, size=2)
        steps = random.standard_normal((int(random.integers(2, 9)), 3)).astype(np.float32)
        steps[:, :2] += np.where(signs, 2.0, -2.0)
        label = tuple(name for name, sign in zip("ab", signs, strict=True) if sign)
        records.append(Record(str(index), steps, label, f"made:{index}"))
    return records


@pytest.mark.long
def test_a_multi_label_model_from_records_to_answers(tmp_path: Path) -> None:
    made = spec('rnn = "none"\npooling = "mean"', task="multi-label")
    session, manifest = served(made, marked(160, 0), TrainingOptions(epochs=8, learning_rate=0.02), tmp_path)
    fresh = marked(60, 1)
    assigned = logits(session, [record.steps for record in fresh]) > 0
    right = [
        tuple(label for label, is_assigned in zip(manifest.labels, row, strict=True) if is_assigned) == record.label
        for row, record in zip(assigned, fresh, strict=True)
    ]
    assert np.mean(right) > 0.9
    asked = over_http(tmp_path, [record.steps for record in fresh])
    assert [prediction["assigned"] for prediction in asked] == [
        [label for label, is_assigned in zip(manifest.labels, row, strict=True) if is_assigned] for row in assigned
    ]


@pytest.mark.long
def test_gestures_of_29_to_361_steps_from_records_to_answers(tmp_path: Path) -> None:
    made = Spec.read(Path("model_export/lengthwise_export/specs/pickup-gesture.toml"))
    records = list(dataset.read(dataset.locate("aeon:PickupGestureWiimoteZ_TRAIN")))
    options = TrainingOptions(epochs=3, batch_rows=5, validation=0.0)
    session, manifest = served(made, records, options, tmp_path)
    fresh = [record.steps for record in dataset.read(dataset.locate("aeon:PickupGestureWiimoteZ_TEST"))]
    together = logits(session, fresh)
    alone = np.concatenate([logits(session, [steps]) for steps in fresh])
    assert together.tobytes() == alone.tobytes()
    assert together.shape == (50, len(manifest.labels))
    asked = over_http(tmp_path, fresh)
    assert [prediction["label"] for prediction in asked] == [manifest.labels[best] for best in together.argmax(axis=1)]
    assert [prediction["length"] for prediction in asked] == [len(steps) for steps in fresh]
