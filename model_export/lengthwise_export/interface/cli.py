"""The commands `export` and `check`, which need torch or onnx, and the group of all commands of this package.

A command imports its libraries when it runs: importing torch takes seconds, and help or the check of an ONNX file does
not need it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
from pydantic import Field

from lengthwise.exporter_api.commands import Command, Flag, flags, show_json
from lengthwise.exporter_api.contract import files
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.interface.project import NOTHING_LISTED, ListedTarget, Project
from lengthwise_export.options import ExportOptions, ListedOptions
from lengthwise_export.tracing.imports import collect_rarely

if TYPE_CHECKING:
    from lengthwise_export.checking.report import Report
    from lengthwise_export.exporting.flow import PublishedModel


class ExportCommandOptions(ExportOptions):
    """The flags of `lengthwise export`."""

    as_json: Annotated[bool, Flag("--json")] = Field(
        default=False, description="Print the result as JSON, with all cases of the verification."
    )


class CheckCommandOptions(ListedOptions):
    """The flags of `lengthwise check`."""

    changed: bool = Field(
        default=False,
        description="The arguments are files that have changed: check those of the listed targets that depend on them.",
    )
    explain: str | None = Field(default=None, description="Print the page of a rule, such as LW201, and check nothing.")
    as_json: Annotated[bool, Flag("--json")] = Field(
        default=False, description="Print the report as JSON; of several targets, a list of them."
    )
    html: Path | None = Field(default=None, description="Write the report as an HTML page.")
    sarif: Path | None = Field(
        default=None,
        description="Write the leaks as SARIF 2.1.0, for code scanning: each at the line of its first operator.",
    )
    badge: Path | None = Field(default=None, description="Write the verdict as a badge, an SVG picture.")
    annotations: Literal["github"] | None = Field(
        default=None, description="Print the leaks as workflow commands, which show them in a pull request."
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

    from lengthwise_export.exporting import flow
    from lengthwise_export.targets import targets

    collect_rarely()
    if target is None:
        if options.checkpoint is None:
            raise click.UsageError(f"Missing argument 'TARGET': {targets.FORMS}")
        target, options = str(options.checkpoint), options.model_copy(update={"checkpoint": None})
    with _status(f"reading {target}", quiet=options.as_json) as show_status:
        published = flow.export(target, out, options.model_copy(update={"progress": show_status}), _say)
    if options.as_json:
        show_json(_as_json(published))
        return
    manifest = published.manifest
    (promise,) = manifest.promises
    agreement = "the same bits" if promise.bits else f"within {promise.tolerance:.3g}"
    facts = [
        f"{published.nodes} nodes",
        f"{len(published.cases)} cases hold",
        f"{agreement} batched and unbatched in the kernels that serve it",
    ]
    if manifest.from_fp32 is not None:
        one_at_a_time = ", one sequence at a time," if manifest.max_batch_rows == 1 else ""
        facts.append(f"{manifest.precision}{one_at_a_time} within {manifest.from_fp32:.3g} of the float32 graph")
        facts += [] if published.labels is None else [str(published.labels)]
    weights = manifest.made.get("weights")
    sentences = [f"published {published.directory}: {', '.join(facts)}"]
    sentences += [] if published.sample is None else [str(published.sample)]
    sentences += [] if weights is None else [f"the weights are {weights}, because no --checkpoint is given"]
    Console().print("; ".join(sentences), highlight=False, soft_wrap=True)
    if published.mend_accuracy is not None:
        Console().print(f"before and after the mend: {published.mend_accuracy}", highlight=False, soft_wrap=True)


def _as_json(published: PublishedModel) -> dict[str, Any]:
    """The object that `lengthwise export --json` prints."""
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
@click.argument("target", metavar="[TARGET]...", nargs=-1)
@flags(CheckCommandOptions)
def check(target: tuple[str, ...], options: CheckCommandOptions) -> None:
    """Finds where padding or another row of the batch changes an answer of TARGET, with the cause and a fix.

    TARGET is a spec (.toml), what `train` wrote, package.module:factory or file.py:factory of a torch module or a Keras
    model, a Keras file (.keras, .h5), an ONNX file, a folder that optimum wrote, or a model directory. Without one,
    those that [tool.lengthwise.check] of the nearest pyproject.toml lists.

    \b
    Exit code 0: no leak. 1: a leak. 2: it cannot be checked. Of several targets: 1 if any leaks, else 2 if any cannot
    be checked.

    \b
    Examples:
      lengthwise check mymodels.lstm:make --checkpoint weights.pt
      lengthwise check classifier.onnx --html leak.html
      lengthwise check mymodels.lstm:make --sarif leaks.sarif
      lengthwise check model.keras --ignore LW803
      lengthwise check mymodels.inception:make --features 3 --suggest
      lengthwise check --annotations github --badge padding.svg
      lengthwise check --changed models/net.py models/layers.py
      lengthwise check --explain LW201
    """  # noqa: D301 - click wants a real backspace
    from lengthwise.exporter_api.reports import show
    from lengthwise_export.checking import page, rule
    from lengthwise_export.checking.code_scanning import as_github
    from lengthwise_export.checking.report import on_terminal, summary, worst_of

    collect_rarely()
    if options.explain is not None:
        click.echo(page.as_markdown(rule.known_rule(options.explain)), nl=False)
        return
    for path in filter(None, (options.html, options.sarif, options.badge)):
        _require_writable(path)
    # The targets: those that pyproject.toml lists (with --changed, the arguments are files), or the arguments
    here = Path.cwd()
    project = Project.of(here)
    is_listed = options.changed or not target
    listed = _listed(target, options, project) if is_listed else project.named(target, here)
    # Check each, in the folder of pyproject.toml if it is listed there, and report
    reports, exit_codes = [], []
    with contextlib.chdir(project.folder if is_listed else here):
        for entry in listed:
            report, exit_code = _report_of(entry, options, is_only=len(listed) == 1)
            reports.append(report)
            exit_codes.append(exit_code)
            if not options.as_json and (len(listed) == 1 or exit_code):
                show(on_terminal(report))
        exit_code = worst_of(exit_codes)
        _write_files(reports, exit_code, options, here)
        annotations = [*as_github(reports)] if options.annotations == "github" else []
        objects = [report.to_dict() for report in reports]
    if options.as_json:
        show_json(objects[0] if len(objects) == 1 else objects)
    elif len(reports) > 1:
        show(summary(reports))
    for line in annotations:
        click.echo(line, err=options.as_json)
    click.get_current_context().exit(exit_code)


def _listed(files: Sequence[str], options: CheckCommandOptions, project: Project) -> tuple[ListedTarget, ...]:
    """The targets that the project lists; with `--changed`, those that depend on the changed `files`.

    If none of them does, the command ends here, with exit code 0.

    Raises:
        UsageError: No targets are listed.
    """
    from lengthwise_export.interface.changed_files import depending_targets

    if not project.targets:
        raise click.UsageError(f"Missing argument 'TARGET', and {NOTHING_LISTED}")
    listed = depending_targets(project, files, Path.cwd()) if options.changed else project.targets
    if not listed:
        _say("nothing to check: no target of pyproject.toml depends on these files")
        if options.as_json:
            show_json([])
        click.get_current_context().exit()
    return listed


def _report_of(listed: ListedTarget, options: CheckCommandOptions, *, is_only: bool) -> tuple[Report, int]:
    """Checks a target, and returns its report and its exit code. Options of the command line override listed ones.

    A target that cannot be read is an error if it `is_only`; one of several gets the verdict uncheckable.

    Raises:
        ConfigurationError: The only target cannot be read, or an option contradicts it.
    """
    from lengthwise_export.checking.report import Report
    from lengthwise_export.checking.selection import RefusedCommentError
    from lengthwise_export.exporting import flow

    options_given = {name: getattr(options, name) for name in options.model_fields_set & {*ListedOptions.model_fields}}
    with _status(f"reading {listed.target}", quiet=options.as_json) as show_status:
        target_options = listed.options.model_copy(update={**options_given, "progress": show_status})
        try:
            report = flow.check(listed.target, target_options)
        except ConfigurationError as error:
            if is_only:
                raise
            report = Report("uncheckable", str(error), target=listed.target)
            # The check itself ran: its report has the leaks as if there were no comments that ignore rules
            if isinstance(error, RefusedCommentError):
                _say(f"error: {error}")
                report = error.report
    for notice in report.notices:
        _say(f"warning: {notice}")
    return report, report.exit_code(strict=target_options.strict)


def _status(step: str, *, quiet: bool) -> AbstractContextManager[Callable[[str], None]]:
    """Shows on standard error what is done, while the block runs: see `progress.status`."""
    from rich.console import Console

    from lengthwise.commands.progress import status

    return status(Console(stderr=True, quiet=quiet), step)


def _write_files(reports: Sequence[Report], exit_code: int, options: CheckCommandOptions, folder: Path) -> None:
    """Writes the files of the options `html`, `badge` and `sarif`; their paths are relative to a folder."""
    from lengthwise_export.checking.code_scanning import as_sarif
    from lengthwise_export.checking.page import as_badge, as_page

    if options.html is not None:
        _write(folder, options.html, as_page(*reports))
    if options.badge is not None:
        _write(folder, options.badge, as_badge(reports))
    if options.sarif is not None:
        log = as_sarif(reports, exit_code=exit_code)
        _write(folder, options.sarif, json.dumps(log, indent=2, allow_nan=False) + "\n")


def _require_writable(path: Path) -> None:
    """Makes sure, before the work of a check, that a file can be written.

    Raises:
        OSError: Its folder cannot be written.
        IsADirectoryError: It is a folder.
    """
    try:
        files.try_to_write(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def _write(folder: Path, path: Path, text: str) -> None:
    """Writes a text file, and creates its folder if there is none."""
    file = folder / path
    if not file.parent.exists():  # if a file has the folder's name, `write_text` raises
        file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    _say(f"wrote {path}")


def _say(line: object) -> None:
    """Prints a line to stderr."""
    click.echo(line, err=True)
