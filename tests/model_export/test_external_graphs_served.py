"""ONNX made elsewhere, from a file to answers: published as it came, and served with its own bits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lengthwise.commands.cli import main
from lengthwise.padding import pad
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.provider import PLAIN_CPU
from lengthwise.runtime.session import Session
from tests.gallery.index import ONNX_SOUND, Exhibit
from tests.gallery.trials import onnx_model
from tests.support.server_process import started

# int64 lengths; a float mask; time first; channels first; a mask that is true at padding; raw samples; lengths and a
# mask; answers a step with the classes before the steps; Hugging Face's names
NAMES = (
    "lstm_int64_lengths",
    "float_mask_attention",
    "gru_time_first",
    "channels_first_fcn",
    "padding_mask_max",
    "raw_samples",
    "lengths_and_mask",
    "channels_first_tagger",
    "token_mean",
)
EXHIBITS = [exhibit for exhibit in ONNX_SOUND if exhibit.name in NAMES]
FULL = 12  # a multiple of 4: the service pads it with nothing


def published(exhibit: Exhibit, folder: Path, repository: Path) -> Path:
    """The model directory that the command makes of a graph's file."""
    name = exhibit.name.replace("_", "-")
    words = ["export", exhibit.save(folder), *exhibit.options, "--out", repository / name, "--max-length", 64]
    done = CliRunner().invoke(main, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return repository / name / "1"


def steps_of(exhibit: Exhibit, length: int) -> np.ndarray:
    random = np.random.default_rng(length)
    if exhibit.vocabulary is not None:
        return random.integers(exhibit.vocabulary, size=length)
    return random.normal(size=(length, exhibit.features)).astype(np.float32)


def alone(exhibit: Exhibit, steps: np.ndarray) -> np.ndarray:
    """What the user's own call of onnxruntime gives, without any of the service's code."""
    return onnx_model(exhibit)(steps[None], np.array([len(steps)]))[0]


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda one: one.name)
def test_an_adopted_graph_keeps_its_bytes_and_the_bits_of_a_full_row(exhibit: Exhibit, tmp_path: Path) -> None:
    directory = published(exhibit, tmp_path, tmp_path / "models")
    assert (directory / GRAPH_FILE).read_bytes() == (tmp_path / f"{exhibit.name}.onnx").read_bytes()
    # In onnxruntime's own kernels, as its user runs it.
    session = Session.load(directory, Manifest.read(directory), devices=(PLAIN_CPU,))
    steps = steps_of(exhibit, FULL)
    assert session.run(pad([steps])).logits[0].tobytes() == alone(exhibit, steps).tobytes()


def probabilities(logits: np.ndarray) -> Sequence[float]:
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return list((raised / raised.sum(axis=-1, keepdims=True)).ravel())


@pytest.mark.long
def test_adopted_graphs_answer_ragged_requests_as_their_users_get_them(tmp_path: Path) -> None:
    for exhibit in EXHIBITS:
        published(exhibit, tmp_path, tmp_path / "models")
    with started(str(tmp_path / "models")) as server:
        for exhibit in EXHIBITS:
            sequences = [steps_of(exhibit, length) for length in (FULL, 1, 7)]
            body = {"model": exhibit.name.replace("_", "-"), "sequences": [steps.tolist() for steps in sequences]}
            predictions = server.predict(body).json()["predictions"]
            for prediction, steps in zip(predictions, sequences, strict=True):
                expected = probabilities(alone(exhibit, steps))
                found = np.ravel(prediction["probabilities"]).tolist()
                assert found == pytest.approx(expected, abs=1e-6), exhibit.name
