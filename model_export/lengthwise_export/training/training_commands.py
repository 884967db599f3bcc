"""The commands about training: `train` and `compare`.

A command imports its libraries when it runs, because importing torch takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lengthwise.commands.command import Command
from lengthwise.commands.data_options import data_options
from lengthwise_export.interface.command import options_of, show_json
from lengthwise_export.training.options import RecipeOptions, TrainingOptions

if TYPE_CHECKING:
    from lengthwise.decoding.dataset import Reading
    from lengthwise_export.training.run import Epoch

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=Command)
@click.argument("spec_file", metavar="SPEC", type=_FILE)
@click.argument("data")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.")
@click.option("--test", help="A test file. It is scored once, at the end.")
@options_of(TrainingOptions)
@options_of(RecipeOptions)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads that torch uses.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run in --out; the result is the same.")
@click.option("--overwrite", is_flag=True, help="Start a new run even if --out holds one, which is then deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
@data_options
def train(
    spec_file: Path,
    data: str,
    out: Path,
    test: str | None,
    threads: int,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    reading: Reading,
    **chosen: Any,
) -> None:
    """Trains the built-in architecture of SPEC (a .toml file) on DATA.

    docs/spec.md lists the keys of a SPEC; `output.task` selects several labels for a sequence, or one for each step.
    What a SPEC leaves open (normalisation, layers) and the options below that are not given are chosen from the data,
    and the reasons are printed. Do not normalise values: the graph normalises.

    DATA is a .jsonl file (one {"id", "steps", "label"} in each line; .gz too), a .ts file of the UEA/UCR archive, a
    .csv or .parquet file with a row for each step (columns id, t, label, values; or name them with --column), a
    .parquet file of lists, or aeon:NAME_TRAIN for a data set of the aeon package.

    \b
    Files in --out afterwards:
      model.safetensors      weights of the best epoch, for `export --checkpoint`
      spec.toml              the spec with everything that was chosen
      metrics.json           loss, accuracy, macro F1, calibration, confusion; for the test file too
      report.html            the same as a page
      learning_curve.png, confusion_matrix.png
      state.safetensors      everything --resume needs

    \b
    Example:
      lengthwise train vowels.toml aeon:JapaneseVowels_TRAIN --test aeon:JapaneseVowels_TEST --out runs/vowels
      lengthwise train vowels.toml aeon:JapaneseVowels_TRAIN --ensemble --seeds 3 --out runs/three
    """  # noqa: D301 - click wants a real backspace
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    import torch
    from rich.console import Console

    from lengthwise.commands.progress import status
    from lengthwise.decoding.dataset import read_all
    from lengthwise_export.architecture import trained
    from lengthwise_export.architecture.spec import Spec
    from lengthwise_export.training import recipe, session
    from lengthwise_export.training.batches import check

    if not resume and not overwrite:
        session.refuse_to_overwrite(out, "use another --out, continue with --resume, or delete it with --overwrite")
    torch.set_num_threads(threads)
    spec = Spec.read(spec_file)
    about_all = RecipeOptions(**{field.name: chosen.pop(field.name) for field in fields(RecipeOptions)})
    given = _given(chosen)
    if spec.model.kind == "rocket":
        _require_applicable(given, about_all, resume=resume)
    fits = partial(check, spec=session.lenient(spec))
    reading = replace(reading, per_step=spec.output.task == "per-step")
    records = read_all(data, spec.input.kind, fits, reading)
    tested = read_all(test, spec.input.kind, fits, reading) if test else []
    if resume and about_all.budget_minutes and "epochs" not in given:
        planned = session.planned_epochs(out)
        given |= {} if planned is None else {"epochs": planned}
    with status(Console(stderr=True, quiet=as_json), "choosing what is left open"):
        plan = recipe.plan(spec, records, given, about_all)
    for line in plan.reasons:
        _say(f"chosen: {line}")
    for line in plan.warnings:
        _say(f"warning: {line}")
    if plan.spec.model.kind == "rocket":
        finished = _fitted(plan, records, tested, out, quiet=as_json)
    else:
        with (
            session.made_folder(out),
            _kept_when_interrupted(out, overwrite=overwrite) as done,
            _bar(plan.options.epochs * plan.runs * plan.spec.model.members, quiet=as_json) as show,
        ):

            def on_epoch(epoch: Epoch) -> None:
                done.append(epoch)
                show(epoch)

            finished = session.train_layers(plan, records, tested, out, resume=resume, on_epoch=on_epoch)
    for line in finished.warnings[len(plan.warnings) :]:
        _say(f"warning: {line}")
    if as_json:
        show_json(finished.content)
        return
    console = Console()
    console.print(finished.report.table(f"{out}/{trained.WEIGHTS_FILE}"))
    for name, figures in finished.content.get("spread", {}).items():
        runs = len(finished.content["runs"])
        console.print(f"{name}: {figures['mean']:.4f} ± {figures['deviation']:.4f} over {runs} seeds", highlight=False)


@click.command(cls=Command)
@click.argument("first", type=click.Path(exists=True, path_type=Path))
@click.argument("second", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Compares two runs of `train`: their figures on the same split, and whether the difference may be chance.

    FIRST and SECOND are folders that `train --out` wrote. The split is the test file if both have one, otherwise
    validation.

    \b
    Example:
      lengthwise compare runs/small runs/large
    """  # noqa: D301 - click wants a real backspace
    from rich.console import Console

    from lengthwise_export.training import comparison

    found = comparison.compare(first, second)
    if as_json:
        show_json(found.as_json())
    else:
        Console().print(found.table())


def _given(chosen: dict[str, Any]) -> dict[str, Any]:
    """The training options that the user gives."""
    from click.core import ParameterSource

    source = click.get_current_context().get_parameter_source
    return {name: value for name, value in chosen.items() if source(name) is not ParameterSource.DEFAULT}


def _require_applicable(given: dict[str, Any], about_all: RecipeOptions, *, resume: bool) -> None:
    """Refuses options that a spec with `kind = "rocket"` cannot have.

    Raises:
        UsageError: There is such an option.
    """
    from lengthwise_export.training import recipe

    wrong = {"resume": "it takes seconds, and keeps no state"} if resume else {}
    other = recipe.inapplicable(given, about_all)
    wrong |= {} if other is None else {other: "it is for gradient descent"}
    for name, why in wrong.items():
        raise click.UsageError(f"--{name.replace('_', '-')} has no meaning with kind = 'rocket': {why}")


def _fitted(plan: Any, records: Any, tested: Any, out: Path, *, quiet: bool) -> Any:
    """Trains a model with `kind = "rocket"`, which has no epochs."""
    from rich.console import Console

    from lengthwise.commands.progress import status
    from lengthwise_export.training import session

    with session.made_folder(out), status(Console(stderr=True, quiet=quiet), "fitting the kernels") as now:
        return session.train_rocket(
            plan,
            records,
            tested,
            out,
            on_examples=lambda done, all_: now(f"computing features: {done} of {all_} sequences"),
        )


@contextmanager
def _kept_when_interrupted(out: Path, *, overwrite: bool) -> Iterator[list[Epoch]]:
    """Yields a list for the finished epochs; after an interruption, prints what is kept and how to continue."""
    done: list[Epoch] = []
    try:
        yield done
    except KeyboardInterrupt:
        how = "--resume instead of --overwrite" if overwrite else "--resume"
        epochs = "1 epoch" if len(done) == 1 else f"{len(done)} epochs"
        kept = f"{out} keeps {epochs}: the same command with {how} continues, and ends in the same weights"
        click.echo(kept if done else f"no epoch was finished, so {out} keeps nothing of this run", err=True)
        raise


@contextmanager
def _bar(epochs: int, *, quiet: bool) -> Iterator[Callable[[Epoch], None]]:
    """Yields a function that shows an epoch: in a progress bar, or without a terminal as a line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from lengthwise.commands.progress import say

    console = Console(stderr=True)
    if not console.is_terminal:
        done = count(1)
        yield lambda epoch: say(console, f"epoch {next(done)} of {epochs}: {_figures(epoch)}")
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True, quiet=quiet)) as progress:
        task = progress.add_task("", total=epochs, figures="")
        yield lambda epoch: progress.update(task, advance=1, figures=_figures(epoch))


def _figures(epoch: Epoch) -> str:
    """The loss of an epoch, and its accuracy if there is a validation split."""
    accuracy = epoch.validation_accuracy
    return f"loss {epoch.training_loss:.4f}" + ("" if accuracy is None else f", validation accuracy {accuracy:.4f}")


def _say(line: str) -> None:
    click.echo(line, err=True)
