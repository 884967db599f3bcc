"""`lengthwise score`: a file of sequences in, a file of predictions out, each line as `POST /predict` answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import click
import orjson
from pydantic import Field
from rich.console import Console
from rich.progress import Progress, TaskID

from lengthwise.commands.command import Command
from lengthwise.commands.data_options import DataOptions
from lengthwise.commands.options import Flag, flags
from lengthwise.commands.progress import progress_bar
from lengthwise.datasets import dataset
from lengthwise.datasets.tails import doubts
from lengthwise.errors import ConfigurationError, LengthwiseError, RecordError
from lengthwise.files import available_cores
from lengthwise.padding import steps_of
from lengthwise.scoring.opened import ModelOptions, OpenModel, check_attention
from lengthwise.scoring.prediction_file import PredictionFile
from lengthwise.scoring.records import Chunk, InputRecord, Summary, ValidRecord, chunked, prediction_of, validated
from lengthwise.settings import Settings, bundled_models

if TYPE_CHECKING:  # they bring onnxruntime along, which help does without
    from lengthwise.scoring.offline import ScoredBatch, ScoringResult

T = TypeVar("T")

_LINE: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_REDRAWN_SECONDS: Final = 0.1  # between two updates of the progress
_MOST_LISTED: Final = 5  # models in a message


class ScoreOptions(DataOptions):
    """The flags of `lengthwise score`."""

    model: str | None = Field(
        default=None,
        description="The model directory: MODELS/NAME/VERSION, or MODELS/NAME for its highest version; or an address.  "
        "[required]",
    )
    attention: bool = Field(default=False, description="Write the attention weights too.")
    on_error: Literal["stop", "skip"] = Field(
        default="stop",
        description='At a record without an answer: stop, or write the error as {"id": ..., "error": ...} and '
        "continue.",
    )
    resume: bool = Field(default=False, description="Continue where an interrupted run stopped.")
    as_json: Annotated[bool, Flag("--json")] = Field(default=False, description="Print the summary as JSON.")


@click.command(
    cls=Command,
    epilog="IN is .jsonl, .jsonl.gz, .ts, .parquet or .csv, or aeon:NAME_TEST. The exit code is 0 where every record "
    "got its line, 1 for a model that fails its verification, 2 for everything else, 130 for an interruption.",
)
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT", type=click.Path(dir_okay=False, path_type=Path))
@flags(ScoreOptions)
def score(source: str, out: Path, options: ScoreOptions) -> None:
    """Scores a file of sequences: a line of JSON in OUT for each record of IN, in its order.

    \b
    Example:
      lengthwise score recordings.jsonl predictions.jsonl --model models/japanese-vowels/1
      head -1 predictions.jsonl

    \f

    Raises:
        UsageError: There is no --model.
        ConfigurationError: --attention, and the model has none.
        KeyboardInterrupt: The user ended the run; the predictions so far are kept, and named.
        LengthwiseError: The run failed; the predictions so far are kept, and named.
    """  # noqa: D301, DOC502 - click wants a real backspace; what it calls raises one
    if options.model is None:
        raise click.UsageError(f"Missing option '--model': {_known_models()}")
    path = dataset.locate(source)
    _check_out(out, path)
    model = ModelOptions(
        options.model, "cpu", available_cores(), recurrent_kernels=Settings.load().recurrent_kernels
    ).open()
    check_attention(model.loaded.manifest, options.attention, option="--attention")
    promise = model.loaded.promise
    console = Console(stderr=True)
    with PredictionFile(out, resume=options.resume, exact=promise is not None and promise.bits) as scored:
        run = ScoringRun(model, options.attention, stop=options.on_error == "stop")
        try:
            summary = run.score(path, scored, console, resume=options.resume, reading=options.reading)
        except (KeyboardInterrupt, LengthwiseError):
            if scored.is_written and out.stat().st_size:  # a signal may come between writing lines and counting them
                console.print(
                    f"the predictions so far are in {out}; --resume continues after them",
                    style="dim",
                    soft_wrap=True,
                )
            raise
    if options.as_json:
        click.echo(orjson.dumps(summary.to_json(), option=orjson.OPT_INDENT_2))
    else:
        click.echo("\n".join(summary.lines()))


def _check_out(out: Path, source: Path) -> None:
    """Refuses an output file that is compressed, or is the input.

    Raises:
        ConfigurationError: The output file is compressed, or is the input.
    """
    if out.suffix == ".gz":
        raise ConfigurationError(
            f"{out}: predictions are not compressed, so that a run can be resumed; compress the file afterwards"
        )
    if out.exists() and out.samefile(source):
        raise ConfigurationError(f"{out} is the input; name another file for the predictions")


def _known_models() -> str:
    """The end of an error: the form of `--model`, and the models that `lengthwise serve` would serve by default.

    The models are left out if there are none, or if their folder cannot be read.
    """
    from lengthwise.repository import folder

    repository = Settings.load().folder
    names: list[str] = []
    with suppress(ConfigurationError):
        names = sorted({str(repository / key.name) for key in folder.read(repository).directories})
    origin = "that comes with Lengthwise" if repository == bundled_models() else "of LENGTHWISE_MODELS"
    known = f"; the model {origin}: {', '.join(names[:_MOST_LISTED])}" if names else ""
    return f"MODELS/NAME/VERSION, or MODELS/NAME for the highest version{known}"


@dataclass(frozen=True, slots=True)
class ScoringRun:
    """The model and the options of one run of `lengthwise score`."""

    model: OpenModel
    attention: bool  # whether attention weights are written
    stop: bool  # whether a record without an answer ends the run

    def score(
        self,
        source: Path,
        scored: PredictionFile,
        console: Console,
        *,
        resume: bool,
        reading: dataset.Reading | None = None,
    ) -> Summary:
        """Reads the records of a file, runs the model on them, and writes a line for each; shows the progress.

        Args:
            source: The file of records.
            scored: The file of predictions that the lines are written to.
            console: Where the progress and the warnings are shown.
            resume: Whether `scored` has lines of an earlier run, after which this run continues.
            reading: How the source is read; None: as its columns' names say.

        Returns:
            The figures of the run, those of the earlier run included.

        Raises:
            RecordError: A record has no answer, and `stop` is set; the lines before it are written.
            ConfigurationError: The source cannot be read, or has no record, or `scored` is not of an earlier run of the
                same kind.
        """  # noqa: DOC502 - what it calls raises them
        manifest = self.model.loaded.manifest
        summary = Summary(manifest.key)
        with progress_bar(console) as progress:
            shown = _ShownProgress(summary, progress, progress.add_task("scoring", total=1.0, note=""))
            # Records, read when the batches need them
            source_reading = reading or dataset.Reading()
            static = source_reading.columns.static or manifest.input.static_names
            columns = replace(source_reading.columns, inputs=manifest.input.names or (), static=static)
            source_reading = replace(source_reading, per_step=manifest.task == "per-step", columns=columns)
            entries = validated(dataset.entries(source, manifest.input.kind, shown.advance, source_reading), manifest)
            if resume:
                self._pass_over(entries, scored, summary)
                console.print(
                    f"{scored.lines:,} records were scored before; continuing after them", style="dim", soft_wrap=True
                )
            # Batches, with figures and progress
            shown.start()
            for chunk, results in self._answered(entries, shown):
                if summary.records == summary.resumed:  # the first chunk
                    for doubt in doubts([steps_of(item.steps) for item in chunk.items]):
                        console.print(f"warning: {source}: {doubt}", markup=False, highlight=False, soft_wrap=True)
                writing_started = time.thread_time()
                self._write(chunk, results, scored, summary, entries)
                summary.cpu_seconds["writing"] += time.thread_time() - writing_started
                progress.update(shown.task, completed=chunk.read)
            scored.finish()
        if not summary.records:
            raise ConfigurationError(f"{source}: there is no record in it")
        summary.seconds = time.monotonic() - shown.started
        return summary

    def _answered(
        self, entries: Iterator[InputRecord], shown: _ShownProgress
    ) -> Iterator[tuple[Chunk, list[ScoringResult]]]:
        """Runs the model on the records; yields them in chunks with their results, and shows the progress."""
        from lengthwise.scoring import offline

        chunks = chunked(entries, lambda: shown.read_share, stop_at_bad=self.stop)
        return offline.answer_all(
            self.model.loaded,
            ((chunk, chunk.items) for chunk in _timed(chunks, partial(shown.count_seconds, "reading"))),
            limits=self.model.limits,
            threads=self.model.threads,
            attention=self.attention,
            on_batch=shown.draw,
            on_plan=partial(shown.count_seconds, "planning"),
        )

    def _pass_over(self, entries: Iterator[InputRecord], scored: PredictionFile, summary: Summary) -> None:
        """Skips the records that an earlier run scored, counts its predictions, and compares the ids of both.

        Raises:
            ConfigurationError: A prediction in the file is of another record, or of another kind of model.
        """
        manifest = self.model.loaded.manifest
        for prediction in scored.earlier_predictions():
            entry = next(entries, None)
            if entry is None or entry.id != prediction["id"]:
                raise ConfigurationError(scored.mismatch(f"is of the record {prediction['id']!r}"))
            try:
                summary.count(_label(entry), prediction, manifest.labels, manifest.task)
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigurationError(scored.mismatch("is of another kind of model")) from error
        summary.resumed = scored.lines

    def _write(
        self,
        chunk: Chunk,
        results: list[ScoringResult],
        scored: PredictionFile,
        summary: Summary,
        later_entries: Iterator[InputRecord],
    ) -> None:
        """Writes a line for each record of a chunk, and counts it in `summary`.

        Args:
            chunk: The records.
            results: The answers or errors of its valid records.
            scored: The file of predictions.
            summary: The figures of the run.
            later_entries: The records after the chunk. If a bad record ends the run, they are read to their end, since
                the error names later bad records, too.

        Raises:
            RecordError: A record has no answer, and `stop` is set; the lines before it are written.
        """
        manifest = self.model.loaded.manifest
        lines: list[bytes] = []
        answers = iter(results)
        for entry in chunk.entries:
            result = next(answers) if isinstance(entry, ValidRecord) else None
            line = prediction_of(entry, result, manifest, attention=self.attention)
            if isinstance(line, RecordError):
                if self.stop:
                    scored.write(lines)
                    # A bad record is the last one that was read (`chunked`), so later bad ones can be named. A valid
                    # record without an answer may be far before the last one.
                    raise RecordError(
                        dataset.with_later_errors(line, later_entries if isinstance(entry, dataset.BadRecord) else ())
                    )
                # A name of a file that is not UTF-8 has surrogates, which JSON does not have.
                line = {"id": entry.id, "error": str(line).encode(errors="backslashreplace").decode()}
            lines.append(orjson.dumps(line, option=_LINE))
            summary.count(_label(entry), line, manifest.labels, manifest.task)
        scored.write(lines)


@dataclass(slots=True)
class _ShownProgress:
    """The bar of a run: the share of the source that was read, and the figures so far, drawn now and then."""

    summary: Summary
    progress: Progress
    task: TaskID
    read_share: float = 0.0
    started: float = 0.0  # seconds of `time.monotonic`
    last_drawn: float = 0.0

    def start(self) -> None:
        """Begins to count the seconds of the run."""
        self.started = self.last_drawn = time.monotonic()

    def advance(self, share: float) -> None:
        """Keeps the share of the source that was read so far."""
        self.read_share = share

    def draw(self, batch: ScoredBatch) -> None:
        """Counts a batch, and shows the progress unless it was shown a moment ago."""
        now = time.monotonic()
        self.summary.count_batch(batch)
        self.summary.seconds = now - self.started
        if now - self.last_drawn > _REDRAWN_SECONDS:
            self.last_drawn = now
            self.progress.update(self.task, note=self.summary.note(), refresh=True)

    def count_seconds(self, part: str, seconds: float) -> None:
        """Adds processor time to a part of the run, one of `PARTS`."""
        self.summary.cpu_seconds[part] += seconds


def _timed(items: Iterator[T], count_seconds: Callable[[float], object]) -> Iterator[T]:
    """Yields the items of an iterator, and calls `count_seconds` with the processor time that getting each took."""
    while True:
        started = time.thread_time()
        item = next(items, None)
        count_seconds(time.thread_time() - started)
        if item is None:
            return
        yield item


def _label(entry: InputRecord) -> dataset.Label:
    """The label of a valid record; None if it has none, or the record is bad."""
    return entry.label if isinstance(entry, ValidRecord) else None
