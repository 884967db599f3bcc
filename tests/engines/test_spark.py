"""PySpark: `local[2]` answers a DataFrame; a Python worker is killed half way."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lengthwise.errors import ConfigurationError
from lengthwise.scoring.scorer import Scorer
from tests.support.engines import MortalScorer, Recordings, found_in

sql = pytest.importorskip("pyspark.sql", reason="PySpark is not installed: make engines installs it")
if shutil.which("java") is None:
    pytest.skip("Spark needs a Java (Debian: apt-get install default-jre-headless)", allow_module_level=True)

from lengthwise.engines import spark as scoring  # noqa: E402

SCORER = Scorer(recurrent_kernels=True)


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


def frame(session: Any, recordings: Recordings) -> Any:
    return session.read.parquet(str(recordings.folder))


def test_spark_answers_every_row_once_with_the_bits_of_predict(session: Any, recordings: Recordings) -> None:
    answered = scoring.score(frame(session, recordings), SCORER)
    assert answered.columns == ["id", "site", "label", "score", "probabilities", "length"]
    rows = answered.collect()
    assert found_in(rows) == recordings.answers
    assert {row["site"] for row in rows} == set(range(6))


def test_map_in_pandas_gives_the_same(session: Any, recordings: Recordings) -> None:
    rows = frame(session, recordings)
    answered = rows.mapInPandas(SCORER.batches, scoring.schema(rows, SCORER))
    assert found_in(answered.collect()) == recordings.answers


def test_when_a_worker_dies_no_row_is_lost_or_doubled(session: Any, recordings: Recordings, tmp_path: Path) -> None:
    scorer = MortalScorer(recurrent_kernels=True, marker=str(tmp_path / "died"))
    scoring.score(frame(session, recordings), scorer).write.parquet(str(tmp_path / "answered"))
    assert (tmp_path / "died").exists()
    assert found_in(session.read.parquet(str(tmp_path / "answered")).collect()) == recordings.answers


def test_an_error_names_the_row_or_is_a_column(session: Any) -> None:
    rows = session.createDataFrame(
        [("good", [[0.5] * 12]), ("bad", [[0.5] * 11]), ("none", None)], "id string, steps array<array<float>>"
    )
    with pytest.raises(Exception, match=r"id '(bad|none)': "):
        scoring.score(rows, SCORER).collect()
    told = scoring.score(rows, Scorer(on_error="column")).collect()
    assert {row["id"]: row["error"] for row in told} == {
        "good": None,
        "bad": "the model takes 12 features a step, this one has 11",
        "none": "its steps are missing",
    }


def test_a_frame_that_does_not_fit_is_refused_before_it_runs(session: Any, recordings: Recordings) -> None:
    rows = frame(session, recordings)
    labelled, without = rows.withColumn("label", rows["site"]), rows.drop("steps")
    for wrong, said in ((labelled, "has a column 'label'"), (without, "has no column 'steps'")):
        with pytest.raises(ConfigurationError, match=said):
            scoring.score(wrong, SCORER)
