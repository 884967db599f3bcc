"""From records to answers over HTTP, for each kind of model: train, export, load as the service does, serve, ask."""

from collections.abc import Callable, Sequence
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
from lengthwise_export.exporting.flow import publish
from lengthwise_export.training import train
from lengthwise_export.training.options import TrainingOptions
from tests.support.server_process import started
from tests.support.specs import from_spec, spec

pytestmark = pytest.mark.process


def served(made: Spec, records: Sequence[Record], options: TrainingOptions, folder: Path) -> Path:
    """Trains and exports, and returns the published directory."""
    train.train(made, records, options, folder)
    return publish(from_spec(made, folder / WEIGHTS_FILE), folder / "models" / "m").directory


def over_http(folder: Path, sequences: Sequence[Steps]) -> list[dict[str, Any]]:
    """The predictions of a server of the published model, all in one request."""
    with started(str(folder / "models")) as server:
        answer = server.predict({"sequences": [steps.tolist() for steps in sequences]})
    assert answer.status_code == 200, answer.text
    predictions: list[dict[str, Any]] = answer.json()["predictions"]
    return predictions


def has_seven(random: np.random.Generator) -> tuple[Steps, Any]:
    """Tokens whose label is whether the id 7 occurs."""
    tokens, label = random.integers(0, 7, size=int(random.integers(3, 12))), int(random.integers(2))
    if label:
        tokens[random.integers(len(tokens))] = 7
    return tokens, "ab"[label]


def sign_before(random: np.random.Generator) -> tuple[Steps, Any]:
    """Each step is labelled by the sign of the step before it."""
    steps = random.standard_normal((int(random.integers(2, 12)), 3)).astype(np.float32)
    return steps, tuple("ab"[int(value > 0)] for value in np.concatenate([[-1.0], steps[:-1, 0]]))


def signs_of_means(random: np.random.Generator) -> tuple[Steps, Any]:
    """Two labels, each given by the sign of a feature's mean: neither, one or both."""
    signs = random.integers(0, 2, size=2)
    steps = random.standard_normal((int(random.integers(2, 9)), 3)).astype(np.float32)
    steps[:, :2] += np.where(signs, 2.0, -2.0)
    return steps, tuple(name for name, sign in zip("ab", signs, strict=True) if sign)


@pytest.mark.long
@pytest.mark.parametrize(
    ("made", "draw", "epochs", "key"),
    [
        (spec('pooling = "max"\nlayers = 1', step="vocabulary = 8\npadding_id = 0"), has_seven, 12, "label"),
        (spec(task="per-step"), sign_before, 15, "step_labels"),
        (spec('rnn = "none"\npooling = "mean"', task="multi-label"), signs_of_means, 20, "assigned"),
    ],
    ids=["tokens", "per-step", "multi-label"],
)
def test_a_model_from_records_to_answers(
    made: Spec, draw: Callable[[np.random.Generator], tuple[Steps, Any]], epochs: int, key: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    records, fresh = (
        [Record(str(index), *draw(random), f"made:{index}") for index in range(count)] for count in (160, 60)
    )
    served(made, records, TrainingOptions(epochs=epochs, learning_rate=0.02), tmp_path)
    told = [prediction[key] for prediction in over_http(tmp_path, [record.steps for record in fresh])]
    pairs: list[tuple[Any, Any]] = [(said, record.label) for said, record in zip(told, fresh, strict=True)]
    if key == "step_labels":
        pairs = [pair for said, labels in pairs for pair in zip(said, labels, strict=True)]
    right = [(tuple(said) if isinstance(said, list) else said) == label for said, label in pairs]
    assert np.mean(right) > 0.9


@pytest.mark.long
def test_gestures_of_29_to_361_steps_from_records_to_answers(tmp_path: Path) -> None:
    made = Spec.read(Path("model_export/lengthwise_export/specs/pickup-gesture.toml"))
    records = list(dataset.read(dataset.locate("aeon:PickupGestureWiimoteZ_TRAIN")))
    options = TrainingOptions(epochs=3, batch_rows=5, validation=0.0)
    published = served(made, records, options, tmp_path)
    manifest = Manifest.read(published)
    session = Session.load(published, manifest)
    fresh = [record.steps for record in dataset.read(dataset.locate("aeon:PickupGestureWiimoteZ_TEST"))]
    together = session.run(pad(fresh)).logits
    alone = np.concatenate([session.run(pad([steps])).logits for steps in fresh])
    assert together.tobytes() == alone.tobytes()
    assert together.shape == (50, len(manifest.labels))
    asked = over_http(tmp_path, fresh)
    assert [prediction["label"] for prediction in asked] == [manifest.labels[best] for best in together.argmax(axis=1)]
    assert [prediction["length"] for prediction in asked] == [len(steps) for steps in fresh]
