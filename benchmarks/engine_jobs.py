"""The jobs of `benchmarks.engines`, in the environment of the engines: `python -m benchmarks.engine_jobs ENGINE ...`.

One engine with two workers answers a folder of Parquet files in turns: with `lengthwise.Scorer`, and as one writes it
by hand: batches in the order of arrival, padded to their longest sequence, one run of the graph for each. Each job
writes what it answered as id, label and probability, and is measured from its start to its end; the engine itself is
started before. The last line of the output is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import lengthwise

WORKERS = 2
Answers = list[tuple[str, str, float]]
"""Id, label and probability of each row."""
Job = Callable[[], Answers]


@dataclass
class ByHand:
    """Pads sequences in the order in which they come, and runs the graph; opens its session when it is first called.

    Attributes:
        model: The model directory.
        rows: Sequences in one batch.
    """

    model: str
    rows: int

    def __getstate__(self) -> dict[str, Any]:
        """Without the session."""
        return {"model": self.model, "rows": self.rows}

    def answer(self, sequences: list[np.ndarray]) -> tuple[list[str], list[float]]:
        """The label of each sequence, and its probability."""
        import onnxruntime

        if "session" not in vars(self):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(f"{self.model}/model.onnx", options)
            self.labels = json.loads(Path(self.model, "manifest.json").read_text())["labels"]
        labels, scores = [], []
        for start in range(0, len(sequences), self.rows):
            part = sequences[start : start + self.rows]
            lengths = np.array([len(steps) for steps in part], dtype=np.int32)
            values = np.zeros((len(part), lengths.max(), part[0].shape[1]), dtype=np.float32)
            for row, steps in enumerate(part):
                values[row, : len(steps)] = steps
            (logits,) = self.session.run(["logits"], {"values": values, "lengths": lengths})
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities = powers / powers.sum(axis=1, keepdims=True)
            labels += [self.labels[best] for best in probabilities.argmax(axis=1)]
            scores += probabilities.max(axis=1).tolist()
        return labels, scores

    def __call__(self, batch: Any) -> Any:
        """Answers a pandas DataFrame."""
        labels, scores = self.answer([np.stack(steps) for steps in batch["steps"]])
        return batch[["id"]].assign(label=labels, score=np.array(scores, dtype=np.float32))

    def batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Answers pandas DataFrames."""
        for batch in batches:
            yield self(batch)


def table_of(rows: Iterable[dict[str, Any]]) -> Answers:
    """The answers of rows."""
    return [(row["id"], row["label"], float(row["score"])) for row in rows]


@contextmanager
def ray_jobs(data: Path, scorers: dict[str, Any]) -> Iterator[dict[str, Job]]:
    """Jobs of Ray Data."""
    import ray

    from lengthwise.engines import ray as scoring

    ray.init(num_cpus=2 * WORKERS, include_dashboard=False, log_to_driver=False, logging_level="error")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False

    def answers(name: str) -> Answers:
        scorer = scorers[name]
        rows = ray.data.read_parquet(str(data), override_num_blocks=16)  # else all of it may be one
        if isinstance(scorer, ByHand):
            answered = rows.map_batches(
                ByHand,
                fn_constructor_args=(scorer.model, scorer.rows),
                batch_size=scorer.rows,
                batch_format="pandas",
                compute=ray.data.ActorPoolStrategy(size=WORKERS),
                num_cpus=1,
            )
        else:
            answered = scoring.score(rows, scorer, workers=WORKERS)
        return table_of(answered.select_columns(["id", "label", "score"]).take_all())

    try:
        yield {name: partial(answers, name) for name in scorers}
    finally:
        ray.shutdown()


@contextmanager
def spark_jobs(data: Path, scorers: dict[str, Any]) -> Iterator[dict[str, Job]]:
    """Jobs of Spark."""
    from pyspark.sql import SparkSession

    from lengthwise.engines import spark as scoring

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(f"local[{WORKERS}]").config("spark.ui.enabled", "false")
    session = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "2048").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")

    def answers(name: str) -> Answers:
        scorer = scorers[name]
        rows = session.read.parquet(str(data))
        if isinstance(scorer, ByHand):
            answered = rows.mapInPandas(scorer.batches, "id string, label string, score float")
        else:
            answered = scoring.score(rows, scorer)
        return table_of(row.asDict() for row in answered.select("id", "label", "score").collect())

    try:
        yield {name: partial(answers, name) for name in scorers}
    finally:
        session.stop()


@contextmanager
def beam_jobs(data: Path, scorers: dict[str, Any]) -> Iterator[dict[str, Job]]:
    """Jobs of Beam: its direct runner, with a process for each worker."""
    import apache_beam as beam
    from apache_beam.ml.inference.base import RunInference
    from apache_beam.options.pipeline_options import PipelineOptions

    from lengthwise.engines.beam import LengthwiseModelHandler

    words = [f"--direct_num_workers={WORKERS}", "--direct_running_mode=multi_processing"]

    def answers(name: str) -> Answers:
        scorer = scorers[name]
        handler = by_hand_handler(scorer) if isinstance(scorer, ByHand) else LengthwiseModelHandler(scorer)
        with tempfile.TemporaryDirectory() as folder:
            with beam.Pipeline(options=PipelineOptions(["--runner=DirectRunner", *words])) as pipeline:
                rows = pipeline | beam.io.ReadFromParquet(f"{data}/*.parquet") | beam.Reshuffle()
                lines = rows | RunInference(handler) | beam.Map(line_of)
                _ = lines | beam.io.WriteToText(f"{folder}/answers")
            return table_of(json.loads(line) for file in Path(folder).iterdir() for line in file.open())

    yield {name: partial(answers, name) for name in scorers}


def line_of(result: Any) -> str:
    """A line for the result of an inference."""
    label, score = result.inference["label"], float(result.inference["score"])
    return json.dumps({"id": result.example["id"], "label": label, "score": score})


def by_hand_handler(scorer: ByHand) -> Any:
    """A handler for `RunInference` as one writes it."""
    from apache_beam.ml.inference.base import ModelHandler, PredictionResult

    class Handler(ModelHandler):  # type: ignore[misc]  # Beam has no types
        """Answers rows in the order in which they come."""

        def load_model(self) -> ByHand:
            return ByHand(scorer.model, scorer.rows)

        def run_inference(self, batch: Any, model: ByHand, inference_args: Any = None) -> Any:
            labels, scores = model.answer([np.array(row["steps"], dtype=np.float32) for row in batch])
            answers = [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]
            return [PredictionResult(*pair) for pair in zip(batch, answers, strict=True)]

        def batch_elements_kwargs(self) -> dict[str, int]:
            return {"min_batch_size": scorer.rows, "max_batch_size": scorer.rows}

    return Handler()


ENGINES: dict[str, Callable[[Path, dict[str, Any]], AbstractContextManager[dict[str, Job]]]] = {
    "ray": ray_jobs,
    "spark": spark_jobs,
    "beam": beam_jobs,
}


@click.command()
@click.argument("engine", type=click.Choice(list(ENGINES)))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of Parquet files.")
@click.option("--model", type=click.Path(exists=True), required=True, help="Model directory.")
@click.option("--rounds", type=int, default=3)
@click.option("--rows", type=int, multiple=True, default=(64, 8), help="Batches by hand.")
def main(engine: str, data: Path, model: str, rounds: int, rows: tuple[int, ...]) -> None:
    """Runs the jobs of one engine in turns."""
    scorers: dict[str, Any] = {
        "lengthwise": lengthwise.Scorer(model, provider="cpu"),
        "lengthwise, onnxruntime's kernels": lengthwise.Scorer(model, provider="cpu", recurrent_kernels=False),
    }
    scorers |= {f"by hand, {count} rows": ByHand(model, count) for count in rows}
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    found: dict[str, Answers] = {}
    with ENGINES[engine](data, scorers) as jobs:
        for turn in range(rounds):
            for name in list(jobs) if turn % 2 == 0 else list(jobs)[::-1]:
                started = time.monotonic()
                answers = jobs[name]()
                seconds[name].append(time.monotonic() - started)
                found.setdefault(name, sorted(answers))
    click.echo(json.dumps({"seconds": seconds, "answers": found}))


if __name__ == "__main__":
    main()
