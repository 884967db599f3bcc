"""The commands `export` and `check`, which need torch or onnx, and the group of all commands of this package.

A command imports its libraries when it runs: importing torch takes seconds, and help or the check of an ONNX file does
not need it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import Field

from lengthwise.commands.command import Command, show_json
from lengthwise.commands.options import Flag, flags
from lengthwise_export.options import CheckOptions, ExportOptions

if TYPE_CHECKING:
    from lengthwise_export.exporting.flow import PublishedModel


class ExportCommandOptions(ExportOptions):
    """The flags of `lengthwise export`."""

    as_json: Annotated[bool, Flag("--json")] = Field(
        default=False, description="Print the result as JSON, with all cases of the verification."
    )


class CheckCommandOptions(CheckOptions):
    """The flags of `lengthwise check`."""

    strict: bool = Field(
        default=False, description="Exit 1 for a warning too (a leak that only NaN, Inf or 1e30 in the padding shows)."
    )
    as_json: Annotated[bool, Flag("--json")] = Field(default=False, description="Print the report as JSON.")
    html: Path | None = Field(default=None, description="Write the report as an HTML page.")
    sarif: Path | None = Field(
        default=None,
        description="Write the leaks as SARIF 2.1.0, for code scanning: each at the line of its first operator.",
    )


@click.command(cls=Command)
@click.argument("target", required=False)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="MODELS/NAME/VERSION, or MODELS/NAME for the next free version.",
)
@flags(ExportCommandOptions)
def export(target: str | None, out: Path, options: ExportCommandOptions) -> None:
    """Builds the graph of TARGET, verifies that padding changes no answer, and publishes a model directory.

    TARGET is what `train` wrote (its folder, or model.safetensors in it), a spec (.toml) of the built-in architecture,
    package.module:factory or file.py:factory of a torch module or a Keras model, a Keras file (.keras, .h5), or an ONNX
    file.

    A checkpoint contains the spec of its training. If you pass a spec too, it must be the same, including the order of
    the labels; only the policy for long sequences may differ.

    \b
    Exit code 0: published. 1: the verification failed, nothing was published. 2: it cannot be exported.

    \b
    Example:
      lengthwise export runs/vowels --out models/vowels --data test.jsonl
      lengthwise export vowels.toml --checkpoint runs/vowels/model.safetensors --out models/vowels
      lengthwise export mymodels.lstm:make --checkpoint weights.pt --labels no,yes --out models/mine
      lengthwise export mymodels.inception:make --checkpoint weights.pt --mend --data test.jsonl --out models/mine

    \f

    Raises:
        UsageError: There is neither TARGET nor --checkpoint.
    """  # noqa: D301 - click wants a real backspace
    from rich.console import Console

    from lengthwise.commands.progress import status
    from lengthwise_export.exporting import flow
    from lengthwise_export.targets import targets

    if target is None:
        if options.checkpoint is None:
            raise click.UsageError(f"Missing argument 'TARGET': {targets.FORMS}")
        target, options = str(options.checkpoint), options.model_copy(update={"checkpoint": None})
    with status(
        Console(stderr=True, quiet=options.as_json), "reading, checking, building, verifying and publishing"
    ) as now:
        published = flow.export(target, out, options.model_copy(update={"progress": now}), _say)
    if options.as_json:
        show_json(_as_json(published))
        return
    manifest = published.manifest
    (promise,) = manifest.promises
    agreement = "the same bits" if promise.bits else f"within {promise.tolerance:.3g}"
    facts = [f"{published.nodes} nodes", f"{len(published.cases)} cases hold", f"{agreement} batched and unbatched"]
    if manifest.from_fp32 is not None:
        alone = ", one sequence at a time," if manifest.max_batch_rows == 1 else ""
        facts.append(f"{manifest.precision}{alone} within {manifest.from_fp32:.3g} of the float32 graph")
        facts += [] if published.labels is None else [str(published.labels)]
    weights = manifest.made.get("weights")
    sentences = [f"published {published.directory}: {', '.join(facts)}"]
    sentences += [] if published.sample is None else [str(published.sample)]
    sentences += [] if weights is None else [f"the weights are {weights}, because no --checkpoint is given"]
    Console().print("; ".join(sentences), highlight=False, soft_wrap=True)
    if published.mend_accuracy is not None:
        Console().print(f"before and after the mend: {published.mend_accuracy}", highlight=False, soft_wrap=True)


def _as_json(published: PublishedModel) -> dict[str, Any]:
    mend, measured = published.mend, published.mend_accuracy
    accuracy = None if measured is None else measured.as_json()
    return {
        "directory": str(published.directory),
        "nodes": published.nodes,
        "precision": published.manifest.precision,
        "from_fp32": published.manifest.from_fp32,
        "labels": None if published.labels is None else asdict(published.labels),
        "sample": None if published.sample is None else published.sample.as_json(),
        "mend": None if mend is None else mend.as_json() | {"accuracy": accuracy},
        "promises": [promise.model_dump() for promise in published.manifest.promises],
        "cases": [case.as_json() for case in published.cases],
    }


@click.command(cls=Command)
@click.argument("target")
@flags(CheckCommandOptions)
def check(target: str, options: CheckCommandOptions) -> None:
    """Finds where padding or another row of the batch changes an answer of TARGET, with the cause and a fix.

    TARGET is a spec (.toml), what `train` wrote, package.module:factory or file.py:factory of a torch module or a Keras
    model, a Keras file (.keras, .h5), an ONNX file, or a model directory.

    \b
    Exit code 0: no leak. 1: a leak. 2: it cannot be checked.

    \b
    Examples:
      lengthwise check mymodels.lstm:make --checkpoint weights.pt
      lengthwise check classifier.onnx --html leak.html
      lengthwise check mymodels.lstm:make --sarif leaks.sarif
      lengthwise check model.keras
      lengthwise check mymodels.inception:make --features 3 --suggest
    """  # noqa: D301 - click wants a real backspace
    from rich.console import Console

    from lengthwise.commands.progress import status
    from lengthwise_export.checking.page import as_page
    from lengthwise_export.checking.report import on_terminal
    from lengthwise_export.checking.sarif import as_sarif
    from lengthwise_export.exporting import flow

    with status(Console(stderr=True, quiet=options.as_json), "reading the target") as say_what:
        report = flow.check(target, options.model_copy(update={"progress": say_what}))
    exit_code = report.exit_code(strict=options.strict)
    for notice in report.notices:
        _say(f"warning: {notice}")
    if options.html is not None:
        _write(options.html, as_page(report))
    if options.sarif is not None:
        _write(options.sarif, json.dumps(as_sarif(report, exit_code=exit_code), indent=2, allow_nan=False) + "\n")
    if options.as_json:
        show_json(report.to_dict())
    else:
        Console().print(on_terminal(report), crop=False)
    click.get_current_context().exit(exit_code)


def _write(path: Path, text: str) -> None:
    """Writes a file, and its folder where there is none."""
    if not path.parent.exists():  # a file in the place of a folder is told by the writing
        path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    _say(f"wrote {path}")


def _say(line: object) -> None:
    click.echo(line, err=True)
