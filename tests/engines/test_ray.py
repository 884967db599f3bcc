"""Ray Data: two actors answer a data set; one is killed half way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lengthwise.scoring.scorer import Scorer
from tests.support.engines import MortalScorer, Recordings, found_in

ray = pytest.importorskip("ray", reason="Ray is not installed: make engines installs it")
pytest.importorskip("ray.data", reason="Ray Data is not installed: make engines installs it")

from lengthwise.engines import ray as scoring  # noqa: E402

SCORER = Scorer(recurrent_kernels=True)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine: CPUs for two actors, and for a task that reads."""
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def dataset(recordings: Recordings) -> Any:
    return ray.data.read_parquet(str(recordings.folder), override_num_blocks=6)


def test_two_actors_answer_every_row_once_with_the_bits_of_predict(recordings: Recordings) -> None:
    answered = scoring.score(dataset(recordings), SCORER, workers=2, block_rows=64)
    rows = answered.take_all()
    assert found_in(rows) == recordings.answers
    assert {row["site"] for row in rows} == set(range(6))
    assert "steps" not in rows[0]


def test_the_class_itself_is_what_map_batches_takes(recordings: Recordings) -> None:
    answered = dataset(recordings).map_batches(
        Scorer,
        fn_constructor_kwargs={"recurrent_kernels": True},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    assert found_in(answered.take_all()) == recordings.answers


def test_when_a_worker_dies_no_row_is_lost_or_doubled(recordings: Recordings, tmp_path: Path) -> None:
    scorer = MortalScorer(recurrent_kernels=True, marker=str(tmp_path / "died"))
    answered = scoring.score(dataset(recordings), scorer, workers=2, block_rows=32)
    assert found_in(answered.take_all()) == recordings.answers
    assert (tmp_path / "died").exists()


def test_an_error_names_the_row_or_is_a_column() -> None:
    rows = ray.data.from_items([{"id": "good", "steps": [[0.5] * 12] * 3}, {"id": "bad", "steps": [[0.5] * 11]}])
    with pytest.raises(Exception, match="id 'bad': the model takes 12 features a step, this one has 11"):
        scoring.score(rows, SCORER, workers=1).take_all()
    told = scoring.score(rows, Scorer(on_error="column"), workers=1).take_all()
    assert {row["id"]: row["error"] for row in told} == {
        "good": None,
        "bad": "the model takes 12 features a step, this one has 11",
    }
