"""MLflow with a local store: a model is logged, loaded, asked in Python, and served by `mlflow models serve`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest

import lengthwise
from lengthwise.bench.launch import free_port
from tests.support.waiting import wait_until

mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: make engines installs it")

import lengthwise.mlflow  # noqa: E402

BUNDLED = Path(lengthwise.__file__).parent / "models" / "japanese-vowels"
RECORDINGS = [np.random.default_rng(0).normal(size=(length, 12)).astype(np.float32) for length in (19, 10, 24)]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bundled model, logged into a store of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/store.db")
    experiment = mlflow.create_experiment("vowels", artifact_location=f"file://{folder}/files")
    with mlflow.start_run(experiment_id=experiment):
        logged = lengthwise.mlflow.log_model(BUNDLED, name="vowels", registered_model_name="vowels")
    yield logged.model_uri
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def expected() -> list[lengthwise.Prediction]:
    return lengthwise.load(BUNDLED, recurrent_kernels=True).predict(RECORDINGS)


def test_a_logged_model_answers_arrays_of_different_lengths_as_the_model_itself(
    uri: str, expected: list[lengthwise.Prediction]
) -> None:
    answers = mlflow.pyfunc.load_model(uri).predict(RECORDINGS)
    assert [one["label"] for one in answers] == [one.label for one in expected]
    for answer, prediction in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer["probabilities"], prediction.probabilities, atol=1e-5)


def test_a_table_gets_the_columns_of_the_answers(uri: str, expected: list[lengthwise.Prediction]) -> None:
    import pandas

    table = pandas.DataFrame({"id": ["a", "b", "c"], "steps": [steps.tolist() for steps in RECORDINGS]})
    answered = mlflow.pyfunc.load_model(uri).predict(table)
    assert answered["id"].tolist() == ["a", "b", "c"]
    assert answered["label"].tolist() == [one.label for one in expected]


def test_a_version_that_is_saved_keeps_its_name_and_version(tmp_path: Path) -> None:
    lengthwise.mlflow.save_model(BUNDLED / "1", tmp_path / "saved")
    assert [*(tmp_path / "saved").glob("data/japanese-vowels/1/manifest.json")]
    assert f"lengthwise[cpu]=={lengthwise.__version__}" in (tmp_path / "saved" / "requirements.txt").read_text()


def test_a_sequence_that_the_model_refuses_is_named(uri: str) -> None:
    with pytest.raises(lengthwise.errors.InvalidSequences, match="sequence 1: the model takes 12 features"):
        mlflow.pyfunc.load_model(uri).predict([RECORDINGS[0], np.zeros((4, 3))])


@pytest.mark.process
def test_mlflow_serves_sequences_of_different_lengths(
    uri: str, expected: list[lengthwise.Prediction], tmp_path: Path
) -> None:
    port = free_port()
    saved = tmp_path / "saved"
    lengthwise.mlflow.save_model(BUNDLED, saved)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(saved), "-p", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local"],
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            **{"stdout": log, "stderr": log, "cwd": tmp_path, "start_new_session": True},
        )
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert server.poll() is None, (tmp_path / "log").read_text()
        try:
            return httpx2.get(f"{url}/ping").status_code == 200
        except httpx2.TransportError:
            return False

    try:
        wait_until(is_ready, "mlflow answers")
        records = [{"id": str(row), "steps": steps.tolist()} for row, steps in enumerate(RECORDINGS)]
        answer = httpx2.post(f"{url}/invocations", json={"dataframe_records": records}, timeout=60)
        predictions = answer.raise_for_status().json()["predictions"]
        assert [one["label"] for one in predictions] == [one.label for one in expected]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
