"""`train --streaming`: what is chosen streams, and the report says how good early answers are."""

import json
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE, read_record
from lengthwise_export.training import session
from lengthwise_export.training.arrays import LabelledSequences
from lengthwise_export.training.options import TrainOptions
from lengthwise_export.training.recipe import plan
from lengthwise_export.training.streamable import SHARES, with_streaming_choices
from tests.support.specs import separable

TABLES = {"input": {"features": 3}, "output": {"labels": ["a", "b"]}}


def spec(**model: object) -> Spec:
    return Spec.from_table(TABLES | ({"model": model} if model else {}))


@pytest.mark.parametrize("task", ["kernels", "layers"])
def test_what_is_chosen_streams(task: str) -> None:
    given = {"streaming": True} | ({"epochs": 2} if task == "layers" else {})
    chosen = plan(spec(), separable(24, seed=0), TrainOptions(**given)).spec
    assert chosen.input.normalize == "training"
    assert with_streaming_choices(chosen) == chosen
    assert (chosen.model.kind == "rocket") == (task == "kernels")


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ({"hidden": 8}, "bidirectional"),
        ({"hidden": 8, "bidirectional": False, "self_attention_heads": 2}, "self_attention_heads"),
        ({"kind": "rocket"}, "grid"),
        ({"kind": "rocket", "grid": "training", "sequence_features": ["scale"]}, "'scale' is by the whole"),
        ({"preset": "conv"}, "kernel of 39"),
    ],
)
def test_a_key_that_needs_the_whole_sequence_is_refused(model: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--streaming: .*{key}"):
        with_streaming_choices(spec(**model))


def test_the_report_has_the_accuracy_by_the_share_that_was_seen(tmp_path: Path) -> None:
    data = LabelledSequences(spec(), separable(24, seed=0))
    report = session.run_training(data, TrainOptions(streaming=True), tmp_path / "run", test=separable(12, seed=1))
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["earliness"]
    assert found["split"] == "test"
    assert [share for share, _ in found["points"]] == list(SHARES)
    assert found["points"][-1][1] == report["test"]["accuracy"]
    assert all(0 <= accuracy <= 1 for _, accuracy in found["points"])
    assert "share of a sequence that was seen" in (tmp_path / "run" / "report.html").read_text()
    assert np.isfinite(found["points"]).all()


ROCKET = {"kind": "rocket", "grid": "training"}


class TestStopAt:
    """Where a sequence that goes on is decided, learned on the validation split."""

    @pytest.fixture(scope="class")
    @staticmethod
    def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("stop") / "run"
        data = LabelledSequences(spec(**ROCKET), separable(24, seed=0))
        session.run_training(data, TrainOptions(streaming=True), out, validation=separable(24, seed=1))
        return out

    def test_the_accuracy_is_that_of_whole_sequences_with_fewer_steps(self, run: Path) -> None:
        report = json.loads((run / "metrics.json").read_text())
        learned = report["stop_at"]
        assert learned["accuracy"] >= report["validation"]["accuracy"]
        assert learned["share"] < 1

    def test_the_spec_of_the_run_has_it(self, run: Path) -> None:
        learned = json.loads((run / "metrics.json").read_text())["stop_at"]
        stop_at = Spec.read(run / "spec.toml").output.stop_at
        assert stop_at is not None
        assert stop_at.model_dump() == {name: learned[name] for name in ("probability", "steps")}
        assert Spec.read(run / "spec.toml").manifest(name="m", version=1).stop_at == stop_at
        recorded = read_record(run / WEIGHTS_FILE).spec
        assert recorded is not None
        assert recorded.output.stop_at == stop_at

    def test_a_users_own_stays(self, tmp_path: Path) -> None:
        own = spec(**ROCKET).with_keys(output={"stop_probability": 0.75})
        data = LabelledSequences(own, separable(24, seed=0))
        report = session.run_training(data, TrainOptions(streaming=True), tmp_path / "run", validation=data.records)
        assert "stop_at" not in report
        assert "stop_probability = 0.75" in (tmp_path / "run" / "spec.toml").read_text()

    def test_it_is_for_one_label_of_a_sequence(self) -> None:
        with pytest.raises(ConfigurationError, match="'stop_probability' is for one label"):
            Spec.from_table(TABLES | {"output": {"labels": ["a", "b"], "task": "per-step", "stop_probability": 1}})
