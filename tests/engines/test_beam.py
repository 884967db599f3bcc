"""Apache Beam, with the recipe of docs/engines.md: its direct runner answers; a worker is killed half way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lengthwise.scoring.scorer import Scorer
from tests.support.engines import Answers, MortalScorer, Recordings, found_in

beam = pytest.importorskip("apache_beam", reason="Apache Beam is not installed: make engines installs it")

from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402

PROCESSES = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]


def lines_of(rows: Sequence[Any], scorer: Scorer) -> list[str]:
    predictions = scorer.predictions([row["steps"] for row in rows])
    return [
        json.dumps([row["id"], one["label"], one["probabilities"].tolist()])
        for row, one in zip(rows, predictions, strict=True)
    ]


def answer(recordings: Recordings, out: Path, scorer: Scorer, options: Sequence[str] = ()) -> None:
    """Answers the recordings into files whose names begin with `out`."""
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        rows = pipeline | beam.io.ReadFromParquet(f"{recordings.folder}/*.parquet") | beam.Reshuffle()
        blocks = rows | beam.BatchElements(min_batch_size=50, max_batch_size=50)
        _ = blocks | beam.FlatMap(lines_of, scorer) | beam.io.WriteToText(str(out))


def answers_in(out: Path) -> Answers:
    lines = [json.loads(line) for file in out.parent.glob(f"{out.name}-*") for line in file.open()]
    return found_in({"id": name, "label": label, "probabilities": values} for name, label, values in lines)


def test_beam_answers_every_row_once_with_the_bits_of_predict(recordings: Recordings, tmp_path: Path) -> None:
    answer(recordings, tmp_path / "answers", Scorer(recurrent_kernels=True))
    assert answers_in(tmp_path / "answers") == recordings.answers


def test_a_dead_worker_writes_nothing_and_the_next_run_answers_every_row(
    recordings: Recordings, tmp_path: Path
) -> None:
    # The direct runner does not try again: it fails, as other runners do after some tries.
    scorer = MortalScorer(recurrent_kernels=True, marker=str(tmp_path / "died"))
    with pytest.raises(RuntimeError):
        answer(recordings, tmp_path / "answers", scorer, PROCESSES)
    assert (tmp_path / "died").exists()
    assert answers_in(tmp_path / "answers") == {}
    answer(recordings, tmp_path / "answers", scorer, PROCESSES)
    assert answers_in(tmp_path / "answers") == recordings.answers
