"""PySpark, with the recipe of docs/engines.md: `local[2]` answers a DataFrame; a Python worker is killed half way."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lengthwise.scoring.scorer import Scorer
from tests.support.engines import MortalScorer, Recordings, found_in

sql = pytest.importorskip("pyspark.sql", reason="PySpark is not installed: make engines installs it")
if shutil.which("java") is None:
    pytest.skip("Spark needs a Java (Debian: apt-get install default-jre-headless)", allow_module_level=True)

SCORER = Scorer(recurrent_kernels=True)
COLUMNS = "id string, site bigint, label string, score float, probabilities array<float>, length int"


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    """Spark on this machine: two tasks at once, each tried four times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        builder = sql.SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false")
        # Small enough that a worker has answered rows of its task when it dies.
        made = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "40").getOrCreate()
        made.sparkContext.setLogLevel("OFF")
        yield made
        made.stop()


@pytest.mark.parametrize("way", ["mapInArrow", "mapInPandas"])
def test_spark_answers_every_row_once_with_the_bits_of_predict(session: Any, recordings: Recordings, way: str) -> None:
    frame = session.read.parquet(str(recordings.folder))
    rows = getattr(frame, way)(SCORER.batches, COLUMNS).collect()
    assert found_in(rows) == recordings.answers
    assert {row["site"] for row in rows} == set(range(6))


def test_when_a_worker_dies_no_row_is_lost_or_doubled(session: Any, recordings: Recordings, tmp_path: Path) -> None:
    scorer = MortalScorer(recurrent_kernels=True, marker=str(tmp_path / "died"))
    frame = session.read.parquet(str(recordings.folder))
    frame.mapInArrow(scorer.batches, COLUMNS).write.parquet(str(tmp_path / "answered"))
    assert (tmp_path / "died").exists()
    assert found_in(session.read.parquet(str(tmp_path / "answered")).collect()) == recordings.answers


def test_a_row_without_an_answer_has_its_error_in_a_column(session: Any) -> None:
    rows = session.createDataFrame(
        [("good", [[0.5] * 12]), ("bad", [[0.5] * 11]), ("none", None)], "id string, steps array<array<float>>"
    )
    columns = COLUMNS.replace(" site bigint,", "") + ", error string"
    answered = rows.mapInArrow(Scorer(on_error="column").batches, columns).collect()
    assert {row["id"]: row["error"] for row in answered} == {
        "good": None,
        "bad": "the model takes 12 features a step, this one has 11",
        "none": "its steps are missing",
    }
