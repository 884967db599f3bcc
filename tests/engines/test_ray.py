"""Ray Data, with the recipe of docs/engines.md: two actors answer a data set; one is killed half way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lengthwise.scoring.scorer import Scorer
from tests.support.engines import MortalScorer, Recordings, found_in

ray = pytest.importorskip("ray", reason="Ray is not installed: make engines installs it")
pytest.importorskip("ray.data", reason="Ray Data is not installed: make engines installs it")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine: CPUs for two actors, and for a task that reads."""
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def answered(recordings: Recordings, scorer: type[Scorer], rows: int, **options: Any) -> Any:
    """The answered rows, `rows` of them together."""
    return ray.data.read_parquet(str(recordings.folder), override_num_blocks=6).map_batches(
        scorer,
        fn_constructor_kwargs={"recurrent_kernels": True, **options},
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=rows,
        batch_format="pyarrow",
        num_cpus=1,
    )


def test_two_actors_answer_every_row_once_with_the_bits_of_predict(recordings: Recordings) -> None:
    rows = answered(recordings, Scorer, 64).take_all()
    assert found_in(rows) == recordings.answers
    assert {row["site"] for row in rows} == set(range(6))
    assert "steps" not in rows[0]


def test_when_a_worker_dies_no_row_is_lost_or_doubled(recordings: Recordings, tmp_path: Path) -> None:
    rows = answered(recordings, MortalScorer, 32, marker=str(tmp_path / "died"))
    assert found_in(rows.take_all()) == recordings.answers
    assert (tmp_path / "died").exists()
