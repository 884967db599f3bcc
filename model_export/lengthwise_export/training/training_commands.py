"""The command `train`.

It imports its libraries when it runs, because importing torch takes seconds.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lengthwise.exporter_api.commands import Command, DataOptions, flags, show_json
from lengthwise_export.tracing.imports import collect_rarely
from lengthwise_export.training.options import TrainOptions, options_of_layers

if TYPE_CHECKING:
    from lengthwise_export.training.session import ProgressTarget


@click.command(cls=Command)
@click.argument("words", metavar="[SPEC] DATA...", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.")
@click.option("--test", help="A test file. It is scored once, at the end.")
@flags(TrainOptions)
@click.option("--resume", is_flag=True, help="Continue an interrupted run in --out; the result is the same.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
@flags(DataOptions, "data_options")
def train(
    words: tuple[str, ...],
    out: Path,
    test: str | None,
    options: TrainOptions,
    resume: bool,
    as_json: bool,
    data_options: DataOptions,
) -> None:
    """Trains the built-in architecture on DATA.

    SPEC is a .toml file, or a preset: auto (the default), rocket, summaries, rnn, conv, conv-rnn, transformer.
    docs/spec.md lists its keys. What it leaves open is read off the data (features, labels, task) or chosen by it
    (normalisation, layers), and is printed. Do not normalise values: the graph normalises.

    DATA is a .jsonl file (one {"id", "steps", "label"} in each line; .gz too), a .ts file of the UEA/UCR archive, a
    .csv or .parquet file with a row for each step (columns id, t, label, values; or name them with --column), a
    .parquet file of lists, or aeon:NAME_TRAIN for a data set of the aeon package. Several files are read as one.

    \b
    Files in --out afterwards:
      model.safetensors      weights of the best epoch, for `export --checkpoint`
      spec.toml              the spec with everything that was chosen
      metrics.json           loss, accuracy, macro F1, calibration, confusion; for the test file too
      report.html            the same as a page, with the learning curves
      state.safetensors      everything --resume needs (of a neural network)

    \b
    Example:
      lengthwise train recordings.csv --out runs/first
      lengthwise train vowels.toml aeon:JapaneseVowels_TRAIN --test aeon:JapaneseVowels_TEST --out runs/vowels

    \f

    Raises:
        KeyboardInterrupt: The user ended the training; the finished epochs are kept, and named.
    """  # noqa: D301 - click wants a real backspace
    import safetensors  # noqa: F401 - a missing extra is told before the data is read, and torch takes seconds

    from lengthwise_export.architecture.spec import as_toml
    from lengthwise_export.architecture.trained import WEIGHTS_FILE, refuse_to_overwrite
    from lengthwise_export.training import arrays

    collect_rarely()
    spec, files = arrays.spec_and_files(words)
    if not resume:
        refuse_to_overwrite(out, "use another --out, continue with --resume, or delete the folder first")
    data = arrays.from_files(spec, files, data_options.reading)
    options_of_layers(options, data.spec.model.kind, resume=resume)
    tested = arrays.from_files(data.spec, [test], data_options.reading).records if test else ()
    tell = partial(click.echo, err=True)
    if data.is_inferred:
        tell(f"the spec, which {out} will keep with what is chosen:\n\n{as_toml(data.spec)}")

    from rich.console import Console  # what follows imports torch

    from lengthwise.commands.progress import say
    from lengthwise_export.training import session

    errors = Console(stderr=True)
    progress: ProgressTarget = "auto" if errors.is_terminal else partial(say, errors)  # each line at once
    shown = None if as_json else progress
    try:
        report = session.run_training(data, options, out, test=tested, resume=resume, progress=shown, tell=tell)
    except KeyboardInterrupt:
        click.echo(_how_to_resume(out, session.finished_epochs(out)), err=True)
        raise
    if as_json:
        show_json(report)
        return
    Console().print(report.table(f"{out}/{WEIGHTS_FILE}"))


def _how_to_resume(out: Path, epochs: int) -> str:
    """How many epochs of an interrupted run are kept, and how to continue it."""
    if not epochs:
        return f"no epoch was finished, so {out} keeps nothing of this run"
    count = f"{epochs} epoch{'s' if epochs > 1 else ''}"
    return f"{out} keeps {count}: the same command with --resume continues, and ends in the same weights"
