"""Records are good for something: labels are joined, drift is shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lengthwise.commands.cli import main
from lengthwise.datasets import dataset
from lengthwise.monitoring import record_file, recorded
from lengthwise.runtime.data_profile import DataProfile
from lengthwise.runtime.manifest import Manifest
from tests.support.numpy_models import manifest, model, serving


async def record(folder: Path, *, calls: int = 4) -> None:
    """Records calls of one and of two sequences by turns, with ids s0, s1, ..."""
    random = np.random.default_rng(0)
    async with serving(model(manifest()), record=folder, record_share=1) as service:
        number = 0
        for call in range(calls):
            sequences = []
            for _ in range(1 + call % 2):
                steps = random.normal(size=(random.integers(1, 9), 2)).round(3).tolist()
                sequences.append({"id": f"s{number}", "steps": steps})
                number += 1
            assert (await service.predict({"sequences": sequences})).status_code == 200


class TestLabels:
    async def test_labels_are_joined_by_id(self, tmp_path: Path) -> None:
        await record(tmp_path / "records")
        labels = tmp_path / "labels.jsonl"
        labels.write_text(
            '{"id": "s1", "label": "walk"}\n\n{"id": "s4", "label": ["a", "b"]}\n{"id": "x", "label": "run"}\n'
        )
        out = tmp_path / "out.parquet"
        result = command("label", tmp_path / "records", labels, out)
        assert result.exit_code == 2  # one label and a list do not go into one column
        labels.write_text(
            '{"id": "s1", "label": "walk"}\n\n{"id": "s4", "label": "run"}\n{"id": "x", "label": "run"}\n'
        )
        result = command("label", tmp_path / "records", labels, out)
        assert result.exit_code == 0, result.stderr
        assert "2 sequences with a label, of 6 records" in result.stdout
        assert [(one.id, one.label) for one in dataset.read(out)] == [("s1", "walk"), ("s4", "run")]
        assert command("label", tmp_path / "records", labels, out).exit_code == 2  # it exists

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"id": "s1"}', "labels.jsonl:1: the form of a line"),
            ("walk", "labels.jsonl:1: the form of a line"),
            ('{"id": "s1", "label": "a"}\n{"id": "s1", "label": "b"}', "has another label before"),
            ('{"id": "nobody", "label": "a"}', "none of the 1 labels belongs"),
        ],
    )
    async def test_wrong_labels_are_said(self, text: str, message: str, tmp_path: Path) -> None:
        await record(tmp_path / "records", calls=1)
        (tmp_path / "labels.jsonl").write_text(text)
        result = command("label", tmp_path / "records", tmp_path / "labels.jsonl", tmp_path / "out.parquet")
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
        assert not (tmp_path / "out.parquet").exists()


class TestDriftCommand:
    def model(self, folder: Path, **fields: Any) -> Path:
        random = np.random.default_rng(1)
        trained = [random.normal(size=(random.integers(1, 9), 2)).astype(np.float32) for _ in range(200)]
        profile = DataProfile.of(trained, None, labels=3)
        directory = folder / "sums" / "1"
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text(manifest(**({"training": profile} | fields)).to_json())
        return directory

    async def test_it_shows_what_has_drifted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recorded, "WINDOW_SEQUENCES", 100)
        monkeypatch.setattr(record_file, "AT_ONCE", 50)
        await record(tmp_path / "records", calls=200)
        its = self.model(tmp_path)
        result = command("drift", tmp_path / "records", its, "--json")
        document = json.loads(result.stdout)
        assert document["sequences"] == 300
        assert {entry["what"] for entry in document["drift"]} == {
            "length",
            "missing",
            "class",
            "feature 0",
            "feature 1",
        }
        assert len(document["over_time"]) == 3
        assert result.exit_code == (1 if document["drifted"] else 0)

    async def test_a_name_means_its_champion_and_the_versions_with_records_are_said(self, tmp_path: Path) -> None:
        await record(tmp_path / "records")
        folder = self.model(tmp_path).parent
        other = Manifest.read(folder / "1").model_copy(update={"version": 2})
        (folder / "2").mkdir()
        (folder / "2" / "manifest.json").write_text(other.to_json())
        result = command("drift", tmp_path / "records", folder)
        assert result.exit_code == 2
        assert "there are no records of sums/2, but of sums/1;" in result.stderr
        assert command("alias", folder, "champion", 1).exit_code == 0
        assert json.loads(command("drift", tmp_path / "records", folder, "--json").stdout)["model"] == "sums/1"

    async def test_what_it_needs_is_said(self, tmp_path: Path) -> None:
        await record(tmp_path / "records")
        bare = self.model(tmp_path / "bare", training=None)
        result = command("drift", tmp_path / "records", bare)
        assert (result.exit_code, "has no profile of its training data" in result.stderr) == (2, True)


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], env={"COLUMNS": "200"})
