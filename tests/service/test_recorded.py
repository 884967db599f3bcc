"""Records are good for something: labels are joined."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from lengthwise.commands.cli import main
from lengthwise.datasets import dataset
from tests.support.numpy_models import manifest, model, serving


def write_rows(folder: Path, name: str, *rows: tuple[str, float, int], model: str = "m") -> None:
    """Writes a file of records, each an id, the value of its only step, and the moment when it arrived."""
    folder.mkdir(exist_ok=True)
    ids, values, moments = zip(*rows, strict=True)
    columns = {
        "id": ids,
        "steps": [[[value]] for value in values],
        "model": [model] * len(ids),
        "arrived": pa.array(moments, pa.timestamp("us", tz="UTC")),
    }
    pq.write_table(pa.table(columns), folder / f"record-{name}.parquet")


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

    def test_whole_numbers_are_texts_and_a_mark_of_utf_8_is_passed_over(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "records", "1", ("7", 1.0, 1000), ("b", 2.0, 1000))
        labels, out = tmp_path / "labels.jsonl", tmp_path / "out.parquet"
        labels.write_text('{"id": 7, "label": 1}\n{"id": "b", "label": "x"}\n', encoding="utf-8-sig")
        result = command("label", tmp_path / "records", labels, out)
        assert result.exit_code == 0, result.stderr
        assert [(one.id, one.label) for one in dataset.read(out)] == [("7", "1"), ("b", "x")]

    def test_of_one_id_the_record_that_arrived_last_is_taken(self, tmp_path: Path) -> None:
        # Two workers: the file of the second was opened later, and holds the earlier record
        write_rows(tmp_path / "records", "1-worker-1", ("b", 0.0, 1000), ("a", 2.0, 3000), ("a", 3.0, 2500))
        write_rows(tmp_path / "records", "2-worker-2", ("a", 1.0, 2000))
        (tmp_path / "labels.jsonl").write_text('{"id": "a", "label": "walk"}\n{"id": "b", "label": "run"}\n')
        result = command("label", tmp_path / "records", tmp_path / "labels.jsonl", tmp_path / "out.parquet")
        assert result.exit_code == 0, result.stderr
        read = {one.id: one.steps.tolist() for one in dataset.read(tmp_path / "out.parquet")}
        assert read == {"a": [[2.0]], "b": [[0.0]]}

    def test_records_of_two_models_are_not_joined(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "records", "1", ("a", 1.0, 1000), model="gait")
        write_rows(tmp_path / "records", "2", ("a", 2.0, 2000), model="vowels")
        write_rows(tmp_path / "records", "3", ("c", 2.0, 2000), model="vowels")
        labels, out = tmp_path / "labels.jsonl", tmp_path / "out.parquet"
        labels.write_text('{"id": "a", "label": "walk"}')
        result = command("label", tmp_path / "records", labels, out)
        assert result.exit_code == 2
        assert "records of gait, vowels" in result.stderr
        labels.write_text('{"id": "c", "label": "walk"}')  # of one model only
        assert command("label", tmp_path / "records", labels, out).exit_code == 0

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"id": "s1"}', "labels.jsonl:1: the form of a line"),
            ("walk", "labels.jsonl:1: the form of a line"),
            ('{"id": "s1", "label": "a"}\n{"id": "s1", "label": "b"}', "has another label before"),
            ('{"id": "s0", "label": null}', "labels.jsonl:1: the form of a line"),
            ('{"id": null, "label": "a"}', "labels.jsonl:1: the form of a line"),
            ('{"id": true, "label": "a"}', "labels.jsonl:1: the form of a line"),
            ('{"id": "s0", "label": {"a": 1}}', "labels.jsonl:1: a label is a string or a whole number"),
            ('{"id": "s0", "label": 1.5}', "labels.jsonl:1: a label is a string or a whole number"),
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


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], env={"COLUMNS": "200"})
