"""Apache Beam: its direct runner answers with `RunInference`; a worker is killed half way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lengthwise.scoring.scorer import Scorer
from lengthwise.settings import bundled_models
from tests.support.engines import Answers, MortalScorer, Recordings, found_in

beam = pytest.importorskip("apache_beam", reason="Apache Beam is not installed: make engines installs it")

from apache_beam.ml.inference.base import KeyedModelHandler, RunInference  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402
from apache_beam.testing.util import assert_that, equal_to  # noqa: E402

from lengthwise.engines.beam import LengthwiseModelHandler  # noqa: E402

SCORER = Scorer(recurrent_kernels=True)
PROCESSES = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]


def line_of(result: Any) -> str:
    row, answer = result.example, result.inference
    return json.dumps([row["id"], answer["label"], answer["probabilities"].tolist()])


def answer(recordings: Recordings, out: Path, scorer: Scorer, options: Sequence[str] = ()) -> None:
    """Answers the recordings into files whose names begin with `out`."""
    handler = LengthwiseModelHandler(scorer, block_rows=50)
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        rows = pipeline | beam.io.ReadFromParquet(f"{recordings.folder}/*.parquet") | beam.Reshuffle()
        _ = rows | RunInference(handler) | beam.Map(line_of) | beam.io.WriteToText(str(out))


def answers_in(out: Path) -> Answers:
    lines = [json.loads(line) for file in out.parent.glob(f"{out.name}-*") for line in file.open()]
    return found_in({"id": name, "label": label, "probabilities": values} for name, label, values in lines)


def test_beam_answers_every_row_once_with_the_bits_of_predict(recordings: Recordings, tmp_path: Path) -> None:
    answer(recordings, tmp_path / "answers", SCORER)
    assert answers_in(tmp_path / "answers") == recordings.answers


def test_when_a_worker_dies_nothing_is_written_and_the_next_run_answers_every_row_once(
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


def test_elements_may_have_keys_and_errors(recordings: Recordings) -> None:
    handler = KeyedModelHandler(LengthwiseModelHandler(Scorer(on_error="column", recurrent_kernels=True)))
    with beam.Pipeline() as pipeline:
        elements = pipeline | beam.Create([("good", [[0.5] * 12] * 3), ("bad", [[0.5] * 11])])
        told = elements | RunInference(handler) | beam.MapTuple(lambda key, one: (key, one.inference.get("error")))
        assert_that(told, equal_to([("good", None), ("bad", "the model takes 12 features a step, this one has 11")]))


def test_an_error_names_the_element(recordings: Recordings) -> None:
    def run(element: Any) -> None:
        with beam.Pipeline() as pipeline:
            _ = pipeline | beam.Create([element]) | RunInference(LengthwiseModelHandler(SCORER))

    for wrong, said in (
        ([[0.5] * 11], "sequence 0: the model takes 12 features a step, this one has 11"),
        ({"id": "a", "values": [[0.5] * 12]}, "an element has no 'steps'; it has 'id', 'values'"),
    ):
        with pytest.raises(Exception, match=said):
            run(wrong)


def test_a_handler_moves_to_another_model(tmp_path: Path) -> None:
    shutil.copytree(bundled_models() / "japanese-vowels" / "1", tmp_path / "japanese-vowels" / "1")
    handler = LengthwiseModelHandler(SCORER)
    before = handler.load_model()
    handler.update_model_path(str(tmp_path / "japanese-vowels"))
    assert handler.load_model() is not before
    handler.update_model_path(None)
    (result,) = handler.run_inference([[[0.5] * 12]], handler.load_model())
    assert result.model_id == "japanese-vowels/1"
    assert handler.get_num_bytes([[[0.5] * 12], {"steps": [[0.5] * 12] * 2}]) == 3 * 12 * 4
