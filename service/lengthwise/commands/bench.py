"""`lengthwise bench`: load on a service with realistic lengths, and its figures.

The flow: a service (at a URL, or started for a model) -> sequences -> requests, each sequence sent once by itself ->
one load, or a sweep of them -> figures -> a table or JSON, and a plot. The words are those of perf_analyzer:
*concurrency* is the number of requests in flight in a closed loop, *request rate* the number due per second in an open
one, *request distribution* their spacing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import click
import orjson
from rich.console import Console
from rich.table import Table

from lengthwise.bench import plots
from lengthwise.bench.figures import table
from lengthwise.bench.launch import served
from lengthwise.bench.trial import LoadSpec, RequestFormat, Workload
from lengthwise.bench.workload import Arrivals, Input
from lengthwise.commands.command import Command
from lengthwise.commands.progress import progress_bar, ticker
from lengthwise.errors import ConfigurationError


def rates_of(sweep: str) -> list[float]:
    """The rates of `START:END:STEP`, both ends included.

    Raises:
        ConfigurationError: It is not of that form.
    """
    try:
        start, end, step = (float(part) for part in sweep.split(":"))
    except ValueError as error:
        raise ConfigurationError(f"--sweep {sweep}: the form is START:END:STEP, in requests a second") from error
    if not (0 < start <= end < math.inf and 0 < step < math.inf):
        raise ConfigurationError(f"--sweep {sweep}: 0 < START <= END, and STEP above 0")
    return [start + number * step for number in range(int((end - start) / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Presentation:
    """How the figures are presented.

    Attributes:
        title: The name of the measurement.
        as_json: Whether as JSON on stdout instead of a table.
        plot: The file of a picture, or None.
        console: For progress and messages: stderr.
    """

    title: str
    as_json: bool
    plot: Path | None
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def print(self, figures: dict[str, Any], drawn: Callable[[], Table]) -> None:
        """Prints the figures as JSON or as a table."""
        if self.as_json:
            click.echo(orjson.dumps({"title": self.title, **figures}, option=orjson.OPT_INDENT_2))
        else:
            Console().print(drawn())


def _pairs(_context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, setting = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE", param=option)
        pairs[name] = setting
    return pairs


def _settings(context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Pairs whose names may be written as flags are."""
    return {name.replace("-", "_"): value for name, value in _pairs(context, option, values).items()}


@click.command(cls=Command)
@click.argument("where", required=False, metavar="[URL or MODEL]")
@click.option("--model", help="The model to send requests to, if the service has several.")
@click.option(
    "--serve",
    "serve_options",
    multiple=True,
    callback=_settings,
    metavar="OPTION=VALUE",
    help="An option of the service that bench starts, such as runners=2.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 4096),
    default=LoadSpec.concurrency,
    show_default=True,
    help="Requests in flight; with a rate, the most connections.",
)
@click.option(
    "--request-rate", "rate", type=click.FloatRange(0, 1e6, min_open=True), help="Open loop: requests due per second."
)
@click.option("--sweep", metavar="START:END:STEP", help="Open loop at each of these rates.")
@click.option(
    "--request-distribution",
    "arrivals",
    type=click.Choice(get_args(Arrivals)),
    default=LoadSpec.arrivals,
    show_default=True,
    help="How an open loop's requests are spaced.",
)
@click.option(
    "--duration-seconds",
    "seconds",
    type=click.FloatRange(0.1, 3600),
    default=LoadSpec.seconds,
    show_default=True,
    help="How long each load lasts.",
)
@click.option(
    "--warmup-seconds",
    type=click.FloatRange(0, 600),
    default=LoadSpec.warmup_seconds,
    show_default=True,
    help="How long each load runs before it is measured.",
)
@click.option("--request-count", "count", type=click.IntRange(1), help="Most requests in each load.")
@click.option(
    "--lengths",
    default=Workload.lengths,
    show_default=True,
    metavar="DISTRIBUTION",
    help="fixed:L, uniform:A,B, lognormal:MEDIAN,SIGMA, bimodal:USUAL,RARE,SHARE, zipf:EXPONENT,LONGEST, "
    "file:PATH, or histogram:PATH (a saved /metrics page).",
)
@click.option("--data", metavar="FILE", help="Send the sequences of this .jsonl, .ts or .parquet file instead.")
@click.option(
    "--replay",
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="Send a recorded load again: a folder of 'serve --record', or one of its files. Times are kept, answers are "
    "not compared.",
)
@click.option(
    "--sequences",
    "per_request",
    type=click.IntRange(1, 1024),
    default=Workload.per_request,
    show_default=True,
    help="Sequences in each request.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(RequestFormat)),
    default=Workload.form,
    show_default=True,
    help="Form of the requests; binary holds one sequence each.",
)
@click.option("--features", type=click.IntRange(1), help="Values of a step, if the service does not report it.")
@click.option("--vocabulary", type=click.IntRange(1), help="Number of token ids, if the service does not report it.")
@click.option("--max-length", type=click.IntRange(1), help="Longest sequence that is sent; default: the model's.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    callback=_pairs,
    metavar="NAME=VALUE",
    help="A header of each request, such as a key.",
)
@click.option("--check/--no-check", default=True, show_default=True, help="Compare each answer with the unbatched one.")
@click.option("--seed", type=click.IntRange(0), default=LoadSpec.seed, show_default=True, help="Same seed, same load.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw latency against load to this PNG.",
)
def bench(
    where: str | None,
    model: str | None,
    serve_options: dict[str, str],
    sweep: str | None,
    features: int | None,
    vocabulary: int | None,
    as_json: bool,
    plot: Path | None,
    **options: Any,
) -> None:
    """Puts load on a service and shows throughput, latency and padding.

    Without a URL, it starts a service for the model directory or repository at the path (or for the bundled one). The
    load is a closed loop, unless a rate is given. Exit code 1: an answer was wrong or missing.
    """
    if features is not None and vocabulary is not None:
        raise click.UsageError("--features and --vocabulary exclude each other")
    if plot is not None:
        plots.figure_type()  # a missing package is reported before the load
    if features is not None:
        options["step"] = Input("values", features)
    if vocabulary is not None:
        options["step"] = Input("tokens", vocabulary)
    load, workload = LoadSpec(**_fields_of(LoadSpec, options)), Workload(**_fields_of(Workload, options))
    workload = replace(workload, distinct=min(workload.distinct, load.count or workload.distinct))
    sent = workload.replay or workload.data or workload.lengths
    presentation = Presentation(f"{where or 'the bundled model'}, {sent}", as_json, plot)
    if workload.replay is not None and (sweep or load.rate is not None or workload.data is not None):
        raise click.UsageError("--replay has its own requests and times: it excludes rates and --data")
    if workload.replay is not None:
        show_replay(where, model, serve_options, load, workload, presentation)
    else:
        loads = [replace(load, rate=rate) for rate in rates_of(sweep)] if sweep else [load]
        show_loads(where, model, serve_options, loads, workload, presentation)


def show_loads(
    where: str | None,
    model: str | None,
    serve_options: dict[str, str],
    loads: Sequence[LoadSpec],
    workload: Workload,
    presentation: Presentation,
) -> None:
    """Runs one load after the other on one service."""
    with progress_bar(presentation.console) as progress, served(where, serve_options, model=model) as service:
        load_test = workload.load_test(service, tick=ticker(progress, "each by itself", requests=workload.distinct))
        rows = [load_test.run(load, tick=ticker(progress, load.name, seconds=load.seconds)) for load in loads]
    presentation.print({"loads": [row.to_json() for row in rows]}, lambda: table(rows, title=presentation.title))
    if presentation.plot is not None:
        plots.draw(rows, presentation.plot, title=presentation.title)
        presentation.console.print(f"drawn: {presentation.plot}")
    if not all(row.is_sound for row in rows):
        raise click.exceptions.Exit(1)


def show_replay(
    where: str | None,
    model: str | None,
    serve_options: dict[str, str],
    load: LoadSpec,
    workload: Workload,
    presentation: Presentation,
) -> None:
    """Sends a recorded load."""
    assert workload.replay is not None
    with progress_bar(presentation.console) as progress, served(where, serve_options, model=model) as service:
        recorded = workload.recorded(service, workload.replay)
        load = replace(load, moments=recorded.moments, seconds=max(recorded.moments[-1], 0.1))
        row = workload.replay_test(service, recorded).run(load, tick=ticker(progress, load.name, seconds=load.seconds))
    presentation.print({"loads": [row.to_json()]}, lambda: table([row], title=presentation.title))
    if presentation.plot is not None:
        plots.draw([row], presentation.plot, title=presentation.title)
        presentation.console.print(f"drawn: {presentation.plot}")
    if not row.is_sound:
        raise click.exceptions.Exit(1)


def _fields_of(kind: type[LoadSpec] | type[Workload], options: dict[str, Any]) -> dict[str, Any]:
    return {each.name: options[each.name] for each in fields(kind) if each.name in options}
