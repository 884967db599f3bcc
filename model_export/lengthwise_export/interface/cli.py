"""The commands `export` and `check`, which need torch or onnx, and the group of all commands of this package.

A command imports its libraries when it runs: importing torch takes seconds, and help or the check of an ONNX file does
not need it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from lengthwise.commands.command import Command
from lengthwise.runtime.manifest import Precision
from lengthwise_export.interface.command import show_json
from lengthwise_export.options import HIGHEST_OPSET, OPSET, TargetOptions, target_options
from lengthwise_export.training.training_commands import compare, train

if TYPE_CHECKING:
    from lengthwise_export.exporting.pipeline import PublishedModel

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Trains, exports and checks classifiers of sequences of different lengths."""


main.add_command(train)
main.add_command(compare)


@main.command(cls=Command)
@click.argument("target", required=False)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="MODELS/NAME/VERSION, or MODELS/NAME for the next free version.",
)
@target_options
@click.option(
    "--multi-label",
    is_flag=True,
    help="For your own model: assign each class separately, so a sequence may have any number of classes.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Probability from which a multi-label model's class is assigned.  [default: 0.5]",
)
@click.option(
    "--scores",
    type=click.Choice(["logits", "probabilities"]),
    help="What the output is; inferred by default. Probabilities are not normalised again.",
)
@click.option(
    "--max-length",
    type=click.IntRange(1),
    help="Longest accepted sequence. Default: that of the spec, or else 1024 or what the model accepts.",
)
@click.option(
    "--opset",
    default=OPSET,
    show_default=True,
    type=click.IntRange(OPSET, HIGHEST_OPSET),
    help="Opset of the graph. Above this range, onnxruntime's CUDA provider runs recurrent layers on the CPU.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(get_args(Precision)),
    help="Precision of weights and products: fp16 for GPUs; int8 for the CPU.",
)
@click.option(
    "--data",
    help="Labelled sequences in the formats of train: reports the accuracy, and for fp16 and int8 how many labels "
    "change.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    help="Allowed difference of batched and unbatched answers, beyond rounding (1e-5); default: the same bits.",
)
@click.option(
    "--rewrite",
    is_flag=True,
    help="Rewrite operators of your model whose bits depend on the batch, if answers then have the same bits.",
)
@click.option(
    "--mend",
    is_flag=True,
    help="If padding reaches an answer of your model, or it takes no lengths, rewrite its graph so that each sequence "
    "gets the answer that the model gives it alone. Published only if that is proved.",
)
@click.option(
    "--must-keep-accuracy",
    type=click.FloatRange(0, 1),
    help="Publish nothing if the accuracy on --data is below this share of right answers, such as 0.95.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the sequences of the verification.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, with all cases of the verification.")
def export(
    target: str | None,
    out: Path,
    options: TargetOptions,
    as_json: bool,
    **chosen: Any,
) -> None:
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
    """  # noqa: D301 - click wants a real backspace
    from rich.console import Console

    from lengthwise.commands.progress import status
    from lengthwise_export.exporting import flow
    from lengthwise_export.targets import targets

    if target is None:
        if options.checkpoint is None:
            raise click.UsageError(f"Missing argument 'TARGET': {targets.FORMS}")
        target, options = str(options.checkpoint), replace(options, checkpoint=None)
    with status(Console(stderr=True, quiet=as_json), "reading, checking, building, verifying and publishing") as now:
        published = flow.export(target, out, options, flow.ExportOptions(**chosen), _say, now)
    weights = published.manifest.made.get("weights")
    if as_json:
        show_json(
            {
                "directory": str(published.directory),
                "nodes": published.nodes,
                "precision": published.manifest.precision,
                "from_fp32": published.manifest.from_fp32,
                "labels": None if published.labels is None else asdict(published.labels),
                "sample": None if published.sample is None else published.sample.as_json(),
                "mend": _mend_as_json(published),
                "promises": [promise.model_dump() for promise in published.manifest.promises],
                "cases": [case.as_json() for case in published.cases],
            }
        )
        return
    (promise,) = published.manifest.promises
    kept = (
        "the same bits batched and unbatched"
        if promise.bits
        else f"within {promise.tolerance:.3g} batched and unbatched"
    )
    unlearnt = "" if weights is None else f"; the weights are {weights}, because no --checkpoint is given"
    held = f"{published.nodes} nodes, {len(published.cases)} cases hold, {kept}"
    if published.manifest.from_fp32 is not None:
        alone = ", one sequence at a time," if published.manifest.max_batch_rows == 1 else ""
        rounded = (
            f"{published.manifest.precision}{alone} within {published.manifest.from_fp32:.3g} of the float32 graph"
        )
        held = ", ".join([held, rounded, *([] if published.labels is None else [str(published.labels)])])
    if published.sample is not None:
        held = f"{held}; {published.sample}"
    Console().print(
        f"published {published.directory}: {held}{unlearnt}",
        highlight=False,
        soft_wrap=True,
    )
    if published.mend_accuracy is not None:
        Console().print(f"before and after the mend: {published.mend_accuracy}", highlight=False, soft_wrap=True)


@main.command(cls=Command)
@click.argument("target")
@target_options
@click.option("--max-length", default=1024, show_default=True, type=click.IntRange(1), help="Longest sequence tried.")
@click.option(
    "--tolerance", default=0.0, show_default=True, type=click.FloatRange(0), help="Allowed difference beyond rounding."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the random sequences.")
@click.option(
    "--strict", is_flag=True, help="Exit 1 for a warning too (a leak that only NaN, Inf or 1e30 in the padding shows)."
)
@click.option(
    "--fix",
    is_flag=True,
    help="If padding reaches an answer, or the model takes no lengths, show what `export --mend` would change in its "
    "graph, and the proof. The exit code is still about TARGET as it is.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--verbose", is_flag=True, help="Show a row for every trial, instead of one for each kind.")
@click.option(
    "--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as an HTML page."
)
@click.option(
    "--sarif",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the leaks as SARIF 2.1.0, for code scanning: each at the line of its first operator.",
)
def check(
    target: str,
    options: TargetOptions,
    max_length: int,
    tolerance: float,
    seed: int,
    strict: bool,
    fix: bool,
    as_json: bool,
    verbose: bool,
    page: Path | None,
    sarif: Path | None,
) -> None:
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
      lengthwise check mymodels.inception:make --features 3 --fix
    """  # noqa: D301 - click wants a real backspace
    from rich.console import Console

    from lengthwise.commands.progress import status
    from lengthwise_export.checking import report as reports
    from lengthwise_export.exporting import flow
    from lengthwise_export.mending import fix_page, fix_report

    with status(Console(stderr=True, quiet=as_json), "reading the target") as say_what:
        checked = flow.check(
            target, options, max_length=max_length, tolerance=tolerance, seed=seed, progress=say_what, fix=fix
        )
    report, read = checked.report, checked.target
    for notice in () if read is None else read.notices:
        _say(f"warning: {notice}")
    if page is not None:
        from lengthwise_export.checking.page import as_page

        section = "" if checked.fix is None else fix_page.as_section(checked.fix)
        _write(page, as_page(report, target, fix=section))
    if sarif is not None:
        from lengthwise_export import __version__
        from lengthwise_export.checking.sarif import as_sarif

        log = as_sarif(report, target, version=__version__, exit_code=report.exit_code(strict=strict))
        _write(sarif, json.dumps(log, indent=2, allow_nan=False) + "\n")
    if as_json:
        told = reports.as_json(report) | {"notices": [] if read is None else list(read.notices)}
        show_json(told | ({} if checked.fix is None else {"fix": checked.fix.as_json()}))
    else:
        served = None if read is None or read.manifest is None else reports.promise_text(read.manifest)
        Console().print(reports.on_terminal(report, target, served=served, verbose=verbose), crop=False)
        if checked.fix is not None:
            Console().print(fix_report.on_terminal(checked.fix), crop=False)
    click.get_current_context().exit(report.exit_code(strict=strict))


def _mend_as_json(published: PublishedModel) -> dict[str, Any] | None:
    if published.mend is None:
        return None
    measured = published.mend_accuracy
    return published.mend.as_json() | {"accuracy": None if measured is None else measured.as_json()}


def _write(path: Path, text: str) -> None:
    """Writes a file, and its folder where there is none."""
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    _say(f"wrote {path}")


def _say(line: str) -> None:
    click.echo(line, err=True)
