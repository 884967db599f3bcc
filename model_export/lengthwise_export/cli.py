"""The commands `train`, `export` and `check`, which need torch or onnx.

A command imports its libraries when it runs: importing torch takes seconds, and help or the check of an ONNX file does
not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from lengthwise.runtime.manifest import Precision
from lengthwise_export.command import ExporterCommand, options_of, show_json
from lengthwise_export.options import HIGHEST_OPSET, OPSET, TargetOptions, target_options
from lengthwise_export.training.options import TrainingOptions as TrainingOptions

if TYPE_CHECKING:
    from lengthwise_export.architecture.spec import Spec
    from lengthwise_export.pipeline import PublishedModel
    from lengthwise_export.training import train as training

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Trains, exports and checks classifiers of sequences of different lengths."""


@main.command(cls=ExporterCommand)
@click.argument("spec_file", metavar="SPEC", type=_FILE)
@click.argument("data")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.")
@click.option("--test", help="A test file. It is scored once, at the end.")
@options_of(TrainingOptions)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads that torch uses.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run in --out; the result is the same.")
@click.option("--overwrite", is_flag=True, help="Start a new run even if --out holds one, which is then deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
def train(
    spec_file: Path,
    data: str,
    out: Path,
    test: str | None,
    threads: int,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Trains the built-in architecture of SPEC (a .toml file) on DATA.

    docs/spec.md lists the keys of a SPEC; `output.task` selects several labels for a sequence, or one for each step.
    Do not normalise values: the graph normalises, with the mean and deviation of the training split.

    DATA is a .jsonl file (one {"id", "steps", "label"} in each line; .gz too), a .ts file of the UEA/UCR archive, a
    .parquet file, or aeon:NAME_TRAIN for a data set of the aeon package.

    \b
    Files in --out afterwards:
      model.safetensors      weights of the best epoch, for `export --checkpoint`
      metrics.json           loss, accuracy, macro F1, confusion; for the test file too
      learning_curve.png, confusion_matrix.png
      state.safetensors      everything --resume needs

    \b
    Example:
      lengthwise train vowels.toml aeon:JapaneseVowels_TRAIN --test aeon:JapaneseVowels_TEST --out runs/vowels
    """  # noqa: D301 - click wants a real backspace
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    import torch
    from rich.console import Console

    from lengthwise_export.architecture import trained
    from lengthwise_export.architecture.spec import Spec
    from lengthwise_export.flow import records_of
    from lengthwise_export.training import metrics
    from lengthwise_export.training import train as training
    from lengthwise_export.training.batches import check, examples

    if not resume and not overwrite:
        _refuse_to_overwrite(out)
    torch.set_num_threads(threads)
    spec = Spec.read(spec_file)
    options = TrainingOptions(**chosen)
    if spec.model.kind == "rocket":
        _train_rocket(spec, data, out, test, options, resume=resume, as_json=as_json)
        return
    fits = partial(check, spec=spec)
    records = records_of(data, spec.input.kind, fits)
    held_out = examples(records_of(test, spec.input.kind, fits), spec) if test else None
    with (
        _folder(out),
        _kept_when_interrupted(out, overwrite=overwrite) as done,
        _bar(options, quiet=as_json) as show,
    ):

        def on_epoch(epoch: training.Epoch) -> None:
            done.append(epoch)
            show(epoch)

        result = training.train(spec, records, options, out, resume=resume, on_epoch=on_epoch)
    report = metrics.TrainingReport(
        spec=spec,
        options=options,
        result=result,
        test=training.evaluate(result.model, held_out, spec) if held_out else None,
    )
    report.write(out)
    if as_json:
        show_json(report.as_json())
    else:
        Console().print(report.table(f"{out}/{trained.WEIGHTS_FILE}"))


def _train_rocket(
    spec: Spec, data: str, out: Path, test: str | None, options: TrainingOptions, *, resume: bool, as_json: bool
) -> None:
    """Trains a model with `kind = "rocket"`, which has no epochs."""
    from rich.console import Console

    from lengthwise.progress import status
    from lengthwise_export.architecture import trained
    from lengthwise_export.flow import records_of
    from lengthwise_export.training import rocket
    from lengthwise_export.training.batches import check, examples
    from lengthwise_export.training.rocket_report import RocketReport

    kept = {"resume": "it takes seconds, and keeps no state"} if resume else {}
    source = click.get_current_context().get_parameter_source
    kept |= {
        name: "it is for gradient descent"
        for name in options.__slots__
        if name not in rocket.APPLICABLE and source(name) is not ParameterSource.DEFAULT
    }
    for name, why in kept.items():
        raise click.UsageError(f"--{name.replace('_', '-')} has no meaning with kind = 'rocket': {why}")
    fits = partial(check, spec=spec)
    records = records_of(data, spec.input.kind, fits)
    held_out = examples(records_of(test, spec.input.kind, fits), spec) if test else []
    with _folder(out), status(Console(stderr=True, quiet=as_json), "fitting the kernels") as now:
        result = rocket.train(
            spec,
            records,
            options,
            out,
            test=held_out,
            on_examples=lambda done, all_: now(f"computing features: {done} of {all_} sequences"),
        )
    report = RocketReport(spec, options, result)
    report.write(out)
    if as_json:
        show_json(report.as_json())
    else:
        Console().print(report.table(f"{out}/{trained.WEIGHTS_FILE}"))


@main.command(cls=ExporterCommand)
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
    help="Precision of weights and products: fp16 for GPUs; int8 for the CPU, one sequence at a time.",
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
    package.module:factory or file.py:factory of a torch module, or an ONNX file.

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

    from lengthwise.progress import status
    from lengthwise_export import flow
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


@main.command(cls=ExporterCommand)
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
) -> None:
    """Finds where padding or another row of the batch changes an answer of TARGET, with the cause and a fix.

    TARGET is a spec (.toml), what `train` wrote, package.module:factory or file.py:factory of a torch module, an ONNX
    file, or a model directory.

    \b
    Exit code 0: no leak. 1: a leak. 2: it cannot be checked.

    \b
    Examples:
      lengthwise check mymodels.lstm:make --checkpoint weights.pt
      lengthwise check classifier.onnx --html leak.html
      lengthwise check mymodels.inception:make --features 3 --fix
    """  # noqa: D301 - click wants a real backspace
    from rich.console import Console

    from lengthwise.progress import status
    from lengthwise_export import flow
    from lengthwise_export.checking import report as reports
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

        if not page.parent.exists():
            page.parent.mkdir(parents=True, exist_ok=True)
        section = "" if checked.fix is None else fix_page.as_section(checked.fix)
        page.write_text(as_page(report, target, fix=section), encoding="utf-8")
    if as_json:
        show_json(reports.as_json(report) | ({} if checked.fix is None else {"fix": checked.fix.as_json()}))
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


def _say(line: str) -> None:
    click.echo(line, err=True)


def _refuse_to_overwrite(out: Path) -> None:
    from lengthwise.errors import ConfigurationError
    from lengthwise_export.architecture import trained

    for name in (trained.WEIGHTS_FILE, trained.STATE_FILE):
        if (out / name).exists():
            raise ConfigurationError(
                f"{out} holds a run ({name}): use another --out, continue with --resume, or delete it with --overwrite"
            )


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Creates a folder for the block. If the block raises, new folders that are still empty are removed.

    Raises:
        ConfigurationError: It cannot be created.
    """
    from lengthwise.errors import ConfigurationError

    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"--out {out} cannot be written: {error.strerror}") from error
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # not empty, or never created
                folder.rmdir()
        raise


@contextmanager
def _kept_when_interrupted(out: Path, *, overwrite: bool) -> Iterator[list[training.Epoch]]:
    """Yields a list for the finished epochs; after an interruption, prints what is kept and how to continue."""
    done: list[training.Epoch] = []
    try:
        yield done
    except KeyboardInterrupt:
        how = "--resume instead of --overwrite" if overwrite else "--resume"
        epochs = "1 epoch" if len(done) == 1 else f"{len(done)} epochs"
        kept = f"{out} keeps {epochs}: the same command with {how} continues, and ends in the same weights"
        click.echo(kept if done else f"no epoch was finished, so {out} keeps nothing of this run", err=True)
        raise


@contextmanager
def _bar(options: TrainingOptions, *, quiet: bool) -> Iterator[Callable[[training.Epoch], None]]:
    """Yields a function that shows an epoch: in a progress bar, or without a terminal as a line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from lengthwise.progress import say

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda epoch: say(console, f"epoch {epoch.number + 1} of {options.epochs}: {_figures(epoch)}")
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True, quiet=quiet)) as progress:
        task = progress.add_task("", total=options.epochs, figures="")
        yield lambda epoch: progress.update(task, completed=epoch.number + 1, figures=_figures(epoch))


def _figures(epoch: training.Epoch) -> str:
    """The loss of an epoch, and its accuracy if there is a validation split."""
    accuracy = epoch.validation_accuracy
    return f"loss {epoch.training_loss:.4f}" + ("" if accuracy is None else f", validation accuracy {accuracy:.4f}")
