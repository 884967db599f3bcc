"""`lengthwise bench`: load on a service with realistic lengths, and its figures, in the words of perf_analyzer."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import click
import numpy as np
import orjson
from pydantic import Field
from rich.console import Console
from rich.progress import Progress

from lengthwise.bench import plots, remote, streams
from lengthwise.bench.figures import table
from lengthwise.bench.launch import ServiceUnderLoad, served
from lengthwise.bench.load import Tick
from lengthwise.bench.trial import LoadSpec, LoadTest, prepare
from lengthwise.bench.workload import Sent, draw_lengths, make_sequences, sent
from lengthwise.commands.command import Command
from lengthwise.commands.data_options import (
    ABOUT_COLUMNS,
    ABOUT_PADDING,
    ABOUT_STATIC,
    Columns,
    PaddingCut,
    StaticColumns,
    reading_of,
)
from lengthwise.commands.options import Flag, Options, flags, pairs
from lengthwise.commands.progress import progress_bar, ticker
from lengthwise.datasets import dataset
from lengthwise.datasets.tails import doubts
from lengthwise.errors import ConfigurationError

_DISTINCT: Final = 500  # different random sequences
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LONGEST: Final = 2**53  # steps, of a length that is drawn
_CHUNKS: Final = 10  # of a random sequence that is sent in chunks, about


def rates_of(text: str) -> tuple[float, ...]:
    """The rates of `RATE`, or of `START:END:STEP` with both ends included, in requests a second.

    Raises:
        ValueError: The text has another form, or a rate is out of bounds.
    """
    start, end, step = (float(part) for part in (text.split(":") if ":" in text else (text, text, "1")))
    if not (0 < start <= end <= 1e6 and 0 < step < math.inf):
        raise ValueError(f"must be 0 < START <= END <= 1e6 with STEP above 0, got {text}")
    # 1e-9: END is included in spite of rounding.
    return tuple(start + number * step for number in range(int((end - start) / step + 1e-9) + 1))


def headers_of(texts: Sequence[str]) -> dict[str, str]:
    """The headers in texts `NAME=VALUE`, by their names.

    Raises:
        ValueError: A text has another form, or HTTP has no such header.
    """
    headers = pairs(texts)
    for name, value in headers.items():
        if not (_HEADER_NAME.fullmatch(name) and value.isascii() and value.isprintable()):
            raise ValueError(f"{name!r} cannot be a header: its name or its value has a character that HTTP forbids")
    return headers


class BenchOptions(Options):
    """The flags of `lengthwise bench`."""

    model: str | None = Field(default=None, description="The model to send requests to, if the service has several.")
    concurrency: int = Field(
        default=LoadSpec.concurrency,
        ge=1,
        le=4096,
        description="Requests in flight; with a rate, the most connections.",
    )
    request_rate: Annotated[tuple[float, ...] | None, Flag(metavar="RATE|START:END:STEP", read=rates_of)] = Field(
        default=None, description="Open loop: requests due per second, as a Poisson process; or at each of many rates."
    )
    duration_seconds: float = Field(
        default=LoadSpec.seconds,
        ge=0.1,
        le=3600,
        description="How long each load lasts, after a tenth of that, which is not measured.",
    )
    request_count: int | None = Field(
        default=None, ge=1, description="Most requests in each load, which then has no time that is not measured."
    )
    lengths: Annotated[str, Flag(metavar="DISTRIBUTION")] = Field(
        default="lognormal:50,0.7",
        description="fixed:L, uniform:A,B, lognormal:MEDIAN,SIGMA, or file:PATH.",
    )
    stream: Annotated[int | None, Flag(metavar="KEYS")] = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Send so many sequences at once in chunks, each with its state; --lengths are those of the chunks.",
    )
    data: Annotated[str | None, Flag(metavar="FILE")] = Field(
        default=None, description="Send the sequences of this .jsonl, .ts, .csv or .parquet file instead."
    )
    columns: Columns = Field(default={}, description=ABOUT_COLUMNS)
    static: StaticColumns = Field(default=(), description=ABOUT_STATIC)
    padding: PaddingCut = Field(default=None, description=ABOUT_PADDING)
    sequences: int = Field(default=1, ge=1, le=1024, description="Sequences in each request.")
    headers: Annotated[dict[str, str], Flag("--header", "NAME=VALUE", headers_of, several=True)] = Field(
        default={}, description="A header of each request, such as a key."
    )
    check: bool = Field(default=True, description="Do not compare each answer with the unbatched one.")
    as_json: Annotated[bool, Flag("--json")] = Field(default=False, description="Print the figures as JSON.")
    plot: Path | None = Field(default=None, description="Draw latency against load to this PNG.")

    def loads(self) -> list[LoadSpec]:
        """The loads, to be run one after the other: one for each request rate, or a single closed loop."""
        load = LoadSpec(
            concurrency=self.concurrency,
            seconds=self.duration_seconds,
            warmup_seconds=self.duration_seconds / 10 if self.request_count is None else 0.0,
            count=self.request_count,
        )
        return [replace(load, rate=rate) for rate in self.request_rate or (None,)]

    def sequences_for(self, model: remote.RemoteModel) -> tuple[list[Sent], str]:
        """The sequences to send to a model, and a name for them: those of the data file, or random ones.

        Random ones have the chosen lengths, or as near as the model takes. Prints a warning about sequences of the file
        that look padded.
        """
        if self.data is not None:
            static = self.static or model.static_names
            reading = reading_of(self.columns, padding=self.padding, inputs=model.names or (), static=static)
            records = dataset.read_all(self.data, model.step.kind, reading)
            for doubt in doubts([record.steps for record in records]):
                click.echo(f"warning: {self.data}: {doubt}", err=True)
            return [sent(record.steps, record.static, record.inputs) for record in records], self.data
        random = np.random.default_rng(LoadSpec.seed)
        count = min(_DISTINCT, self.request_count or _DISTINCT)
        drawn = draw_lengths(self.lengths, count, _LONGEST, random) * (_CHUNKS if self.stream else 1)
        lengths = np.clip(drawn, model.min_length, model.max_length)
        is_cut = (lengths != drawn).any()
        name = f"{self.lengths} cut to {model.min_length}-{model.max_length} steps" if is_cut else self.lengths
        steps = make_sequences(lengths, model.step, random)
        return [model.sequence(one, random) for one in steps] if model.has_more else [*steps], name

    def load_test(self, service: ServiceUnderLoad, progress: Progress) -> tuple[LoadTest, str]:
        """Prepares the requests for a service's model; returns the load test, and a name for its sequences.

        Unless answers are not checked, sends each sequence by itself first: these are the expected answers.
        """
        sequences, name = self.sequences_for(remote.model(service.target, service.name, self.headers))
        if self.stream is not None:
            return self._streams(service, sequences, ticker(progress, "each whole so far", requests=len(sequences)))
        test = prepare(
            service.target,
            sequences,
            per_request=self.sequences,
            fields=service.fields,
            headers=self.headers,
            check=self.check,
            tick=ticker(progress, "each by itself", requests=len(sequences)),
        )
        return test, name

    def _streams(self, service: ServiceUnderLoad, sequences: Sequence[Sent], tick: Tick) -> tuple[LoadTest, str]:
        """Prepares streams of these sequences; returns the load test, and a name for them.

        Raises:
            ConfigurationError: A request is to have several, answers are not to be compared, or a model takes more than
                steps.
        """
        steps = [sequence for sequence in sequences if not isinstance(sequence, dict)]
        if self.sequences > 1 or not self.check or len(steps) < len(sequences):
            raise ConfigurationError(
                "--stream compares each answer, to one sequence a request, of a model of steps alone"
            )
        lengths = draw_lengths(self.lengths, _DISTINCT, _LONGEST, np.random.default_rng(LoadSpec.seed))
        place: Any = {"fields": service.fields, "headers": self.headers}
        test = streams.prepare(service.target, steps, lengths, self.stream or 1, **place, tick=tick)
        return test, f"{self.stream} keys, chunks of {self.lengths}"


@click.command(cls=Command)
@click.argument("where", required=False, metavar="[URL or MODEL]")
@flags(BenchOptions)
def bench(where: str | None, options: BenchOptions) -> None:
    """Puts load on a service and shows throughput, latency and padding.

    Without a URL, it starts a service for the model directory or repository at the path (or for the bundled one), with
    the options of `serve` that the environment sets, such as LENGTHWISE_RUNNERS=2. The load is a closed loop, unless a
    rate is given. Exit code 1: an answer was wrong or missing.

    \f

    Raises:
        Exit: An answer was wrong or missing.
        ConfigurationError: The plot has another format than those that can be drawn.
    """  # noqa: D301 - click wants a real form feed
    if options.plot is not None:
        figure = importlib.import_module("matplotlib.figure").Figure()  # a missing package is told before the load
        formats = figure.canvas.get_supported_filetypes()
        if options.plot.suffix and options.plot.suffix[1:].lower() not in formats:
            raise ConfigurationError(f"--plot {options.plot}: the name must end in one of .{', .'.join(formats)}")
    console = Console(stderr=True)
    with progress_bar(console) as progress, served(where, model=options.model) as service:
        test, name = options.load_test(service, progress)
        rows = [test.run(load, tick=ticker(progress, load.name, seconds=load.seconds)) for load in options.loads()]
    title = f"{where or 'the bundled model'}, {name}"
    if options.as_json:
        click.echo(orjson.dumps({"title": title, "loads": [row.to_json() for row in rows]}, option=orjson.OPT_INDENT_2))
    else:
        Console().print(table(rows, title=title))
    if options.plot is not None:
        plots.draw(rows, options.plot, title=title)
        console.print(f"drawn: {options.plot}")
    if not all(row.is_sound for row in rows):
        raise click.exceptions.Exit(1)
