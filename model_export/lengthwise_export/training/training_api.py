"""Trains from Python: `train` for sequences in memory, and `compare` for two runs.

    sequences, labels -> records (`training.arrays`) -> plan -> `training.session` -> a `TrainedModel`

It does what the command `train` does, with the same files in the folder of the run.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from lengthwise.commands.progress import progress_bar, status
from lengthwise.decoding.dataset import Record
from lengthwise.decoding.given import GivenSequences, Layout
from lengthwise.decoding.tables import columns_of
from lengthwise.errors import ConfigurationError, InvalidSequences
from lengthwise.reports import notebook
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE
from lengthwise_export.interface.rich_text import as_text
from lengthwise_export.tracing.torch_state import torch_as_before
from lengthwise_export.training import arrays, comparison, recipe, report_page, session
from lengthwise_export.training.options import RecipeOptions, TrainingOptions, plain, require_in_bounds
from lengthwise_export.training.run import Epoch

if TYPE_CHECKING:
    from lengthwise_export.exporting.flow import PublishedModel

log = logging.getLogger("lengthwise.train")


Labels = Iterable[Any]
Labelled = tuple[Any, Labels | None]
"""Sequences and their labels; None for those that the sequences have."""
Show = Callable[[int, int, str], None]
"""Shows that so many parts of so many are done, with a note."""

_RECIPE: Final = frozenset(field.name for field in fields(RecipeOptions))


class RunReport(dict[str, Any]):
    """What `metrics.json` of a run holds, which a notebook shows as the page `report.html`."""

    def _repr_html_(self) -> str:
        """The page, in a frame."""
        return notebook.in_frame(report_page.page(self, "training"))


class TrainedModel:
    """A trained model. `str()` gives the table of the command line; a notebook shows the report as a page.

    Attributes:
        directory: The folder of the run: weights, spec, report, pictures. Without `out=`, a temporary folder without
            pictures, which is removed with this object.
        spec: The spec with everything that was chosen, as a dictionary.
        labels: The classes, in the order of the outputs.
        report: What `metrics.json` holds: the scores of each split, calibration, epochs. A dictionary that a notebook
            shows as a page.
        reasons: Why each thing that was open was chosen as it is.
        warnings: What you should know about the data and the training.
    """

    def __init__(
        self, directory: Path, finished: session.FinishedTraining, reasons: Sequence[str], warnings: Sequence[str]
    ) -> None:
        self._finished = finished
        self.directory = directory
        self.report = RunReport(finished.content)
        self.spec: dict[str, Any] = finished.content["spec"]
        self.labels = tuple(finished.content["labels"])
        self.reasons = tuple(reasons)
        self.warnings = tuple(warnings)

    @property
    def weights(self) -> Path:
        """The file of the weights, with the spec in it: a target of `check` and `export`."""
        return self.directory / WEIGHTS_FILE

    def export(self, out: str | os.PathLike[str], **options: Any) -> PublishedModel:
        """Publishes the model as a model directory, after its verification.

        Args:
            out: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.
            options: As for `lengthwise_export.export`, such as `precision="int8"`.

        Returns:
            The published model.

        Raises:
            LengthwiseError: As `lengthwise_export.export` raises them.
        """
        from lengthwise_export.interface import api

        return api.export(self.weights, out, **options)

    def __repr__(self) -> str:
        """`<lengthwise_export.TrainedModel of 9 labels: accuracy 0.9812 (test)>`."""
        name, scores = list(report_page.splits_of(self.report).items())[-1]
        said = f"accuracy {scores['accuracy']:.4f} ({name.replace('_', ' ')})"
        return f"<lengthwise_export.TrainedModel of {len(self.labels)} labels: {said}>"

    def __str__(self) -> str:
        """The scores of each split, as `lengthwise train` prints them."""
        return as_text(self._finished.report.table("training"))

    def _repr_html_(self) -> str:
        """The page `report.html` of the run."""
        return self.report._repr_html_()


def train(
    spec: arrays.GivenSpec,
    sequences: Any,
    labels: Labels | None = None,
    *,
    layout: Layout = "steps-first",
    validation: float | Any = None,
    test: Any = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    epochs: int | None = None,
    batch_rows: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    clip: float | None = None,
    patience: int | None = None,
    class_weights: bool | None = None,
    seed: int | None = None,
    warm_up: float | None = None,
    label_smoothing: float | None = None,
    average: float | None = None,
    calibration: bool | None = None,
    min_steps: int | None = None,
    budget_minutes: float | None = None,
    seeds: int | None = None,
    ensemble: bool | None = None,
    threads: int = 1,
    progress: Callable[[str], None] | Literal["auto"] | None = "auto",
) -> TrainedModel:
    """Trains the built-in architecture on sequences of different lengths.

    What the spec and the options leave open is chosen from the data, and `reasons` of the result says why. Do not
    normalise the values: the graph does it. Warnings are logged (logger `lengthwise.train`).

    Args:
        spec: A preset (`"auto"`, `"rocket"`, `"rnn"`, `"conv"`, `"conv-rnn"`, `"transformer"`), the path of a TOML
            file, or its tables as a dictionary, such as `{"input": {"missing": "mean"}, "model": {"preset": "rnn"}}`.
            The number of features, the labels and the longest sequence are read off the data where the tables leave
            them out. Token ids need `{"input": {"vocabulary": N}}`.
        sequences: Each `[length, features]` of any real type, with NaN for a missing value; `[length]` for one feature
            or for token ids. Or any other form that `lengthwise.Model.predict` takes, such as a pandas table with a row
            for each step; `reasons` of the result says which columns were taken as what.
        labels: One text or whole number for each sequence. Multi-label and per-step models
            (`{"output": {"task": ...}}`): a list of them for each sequence. Default: the labels that a table has.
        layout: `channels-first` for arrays `[features, length]`, such as those of aeon and sktime.
        validation: The share of the sequences to choose the epoch by, or other sequences: with their labels as a pair,
            or a table that has them.
        test: Sequences that are scored once, at the end: as a pair with their labels, or a table that has them.
        out: The folder of the run; default: a temporary one.
        overwrite: Whether a run that is in `out` may be deleted.
        epochs: Most epochs.
        batch_rows: Sequences in a batch.
        learning_rate: Highest learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        clip: Maximum norm of all gradients together.
        patience: Stop after this many epochs without a better validation loss.
        class_weights: Whether rare labels get the same influence as frequent ones.
        seed: Seed of initial weights, split, order and dropout.
        warm_up: Share of the training during which the learning rate rises.
        label_smoothing: Share of each target that is spread over all labels.
        average: Decay of the running average of the weights.
        calibration: Whether the probabilities are fitted to the answers on the validation split.
        min_steps: Least number of optimiser steps, if `epochs` is not given.
        budget_minutes: Fewer epochs, so that training takes about this long here.
        seeds: Train so many times; the best run is the result.
        ensemble: Whether one graph averages the networks of all seeds.
        threads: Threads that torch uses.
        progress: Called with a line after each epoch, of fixed kernels after each batch of sequences; `"auto"` shows a
            bar in a notebook or a terminal; None for nothing.

    Returns:
        The trained model with its report; its `export(out)` publishes a model directory.

    Raises:
        InvalidSequences: Some sequences or labels cannot be used; names each by its index. It is a ValueError.
        ConfigurationError: The spec or an option is wrong, or `out` holds a run.

    Example:
        >>> random = np.random.default_rng(0)
        >>> loud = [random.normal(scale=5.0, size=(n, 2)) for n in (9, 14, 11, 8)]
        >>> quiet = [random.normal(scale=0.1, size=(n, 2)) for n in (12, 7, 10, 9)]
        >>> run = lengthwise_export.train("rocket", loud + quiet, ["loud"] * 4 + ["quiet"] * 4, progress=None)
        >>> run.labels, run.spec["input"]["features"]
        (('loud', 'quiet'), 2)
    """
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_rows": batch_rows,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "clip": clip,
        "patience": patience,
        "validation": plain(validation),
        "class_weights": class_weights,
        "seed": seed,
        "warm_up": warm_up,
        "label_smoothing": label_smoothing,
        "average": average,
        "calibration": calibration,
        "min_steps": min_steps,
        "budget_minutes": budget_minutes,
        "seeds": seeds,
        "ensemble": ensemble,
    }
    if not isinstance(given["validation"], int | float):  # none, or sequences
        del given["validation"]
    given = {name: plain(value) for name, value in given.items() if value is not None}
    require_in_bounds(TrainingOptions, given)
    require_in_bounds(RecipeOptions, given)
    about_all = RecipeOptions(**{name: given.pop(name) for name in _RECIPE & given.keys()})
    threads = plain(threads)
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ConfigurationError(f"threads must be an integer >= 1, got {threads!r}")
    if not (progress is None or progress == "auto" or callable(progress)):
        raise ConfigurationError(f"progress must be a function, 'auto' or None, got {progress!r}")
    held = None if validation is None or "validation" in given else _pair(validation, "validation")
    tested = None if test is None else _pair(test, "test")
    folder = None if out is None else Path(out)
    if folder is not None and not overwrite:
        session.refuse_to_overwrite(folder, "use another out=, or delete it with overwrite=True")
    with torch_as_before(), _torch_threads(threads):
        found = arrays.labelled(spec, sequences, labels, layout)
        if found.spec.model.kind == "rocket":
            _require_applicable(given, about_all)
        if held is not None:
            given["validation"] = 0.0
        open_spec = session.lenient(found.spec)  # what is wrong is found before the choice, which may take minutes
        held_records = _read("validation", held, open_spec, layout)
        tested_records = _read("test", tested, open_spec, layout)
        with _choosing(progress):
            plan = recipe.plan(found.spec, found.records, given, about_all)
        plan = replace(plan, reasons=(*found.reasons, *plan.reasons), warnings=(*found.warnings, *plan.warnings))
        for name, others in (("validation", held_records), ("test", tested_records)):
            with _about(name):
                arrays.require_fit(others, plan.spec)
        for line in plan.warnings:
            log.warning("%s", line)
        temporary = folder is None
        folder = Path(tempfile.mkdtemp(prefix="lengthwise-run-")) if folder is None else folder
        try:
            finished = _run(plan, found.records, tested_records, held_records, folder, progress, pictures=not temporary)
        except BaseException:
            if temporary:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    for line in finished.warnings[len(plan.warnings) :]:
        log.warning("%s", line)
    made = TrainedModel(folder, finished, plan.reasons, finished.warnings)
    if temporary:
        weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)
    return made


def compare(
    first: str | os.PathLike[str] | TrainedModel, second: str | os.PathLike[str] | TrainedModel
) -> comparison.Comparison:
    """Compares two runs of `train`: their figures on the same split, and whether the difference may be chance.

    Args:
        first: A run, or its folder.
        second: The other one.

    Returns:
        The comparison: its `verdict`, `split` and `scores`; `str()` gives a table, and a notebook shows it.

    Raises:
        ConfigurationError: A folder holds no finished run, or the runs cannot be compared.

    Example:
        >>> print(lengthwise_export.compare("runs/small", "runs/large").verdict)  # doctest: +SKIP
        no clear difference: 0.0040 in accuracy, and 0.0196 may be chance with 370 answers
    """
    return comparison.compare(
        *(run.directory if isinstance(run, TrainedModel) else Path(run) for run in (first, second))
    )


def _run(
    plan: recipe.Plan,
    records: Sequence[Record],
    tested: Sequence[Record],
    validation: Sequence[Record],
    folder: Path,
    progress: Callable[[str], None] | Literal["auto"] | None,
    *,
    pictures: bool,
) -> session.FinishedTraining:
    """Trains what a plan says, and shows how far it is."""
    if plan.spec.model.kind == "rocket":
        with session.made_folder(folder), _shown(progress, "sequences", len(records)) as show:
            return session.train_rocket(
                plan,
                records,
                tested,
                folder,
                on_examples=lambda done, every: show(done, every, "computing features"),
                validation=validation,
                pictures=pictures,
            )
    epochs = plan.options.epochs * plan.runs * plan.spec.model.members
    done = 0
    with session.made_folder(folder), _shown(progress, "epochs", epochs) as show:

        def on_epoch(epoch: Epoch) -> None:
            nonlocal done
            done += 1
            accuracy = epoch.validation_accuracy
            measured = "" if accuracy is None else f", validation accuracy {accuracy:.4f}"
            show(done, epochs, f"loss {epoch.training_loss:.4f}{measured}")

        return session.train_layers(
            plan,
            records,
            tested,
            folder,
            resume=False,
            on_epoch=on_epoch,
            validation=validation,
            pictures=pictures,
        )


@contextmanager
def _shown(progress: Callable[[str], None] | Literal["auto"] | None, parts: str, total: int) -> Iterator[Show]:
    """Yields what shows progress: in a notebook, on a terminal, in the caller's function, or nowhere."""
    if callable(progress):
        tell = progress
        yield lambda done, every, note: tell(f"{done} of {every} {parts}: {note}")
    elif progress is None:
        yield lambda _done, _every, _note: None
    elif notebook.in_notebook():
        with notebook.notebook_bar("training", total) as bar:
            yield lambda done, _every, note: bar(done, note)
    else:
        from rich.console import Console

        with progress_bar(Console(stderr=True)) as shown:
            task = shown.add_task("training", total=total, note="")
            yield lambda done, every, note: shown.update(task, completed=done, total=every, note=note, refresh=True)


def _require_applicable(given: Mapping[str, Any], about_all: RecipeOptions) -> None:
    """Refuses options that a spec with `kind = "rocket"` cannot have.

    Raises:
        ConfigurationError: There is such an option.
    """
    other = recipe.inapplicable(given, about_all)
    if other is not None:
        raise ConfigurationError(f"{other} has no meaning with kind = 'rocket': it is for gradient descent")


def _pair(given: object, name: str) -> Labelled:
    """Sequences and labels that were given together.

    Raises:
        ConfigurationError: They are not two, and the sequences have no labels.
    """
    if isinstance(given, tuple | list) and len(given) == 2 and not isinstance(given, GivenSequences):
        return given[0], given[1]
    if isinstance(given, GivenSequences) or columns_of(given) is not None or hasattr(type(given), "groups"):
        return given, None
    share = ", or a share of the sequences" if name == "validation" else ""
    raise ConfigurationError(f"{name} must be a pair (sequences, labels) or a table with labels{share}")


def _read(name: str, given: Labelled | None, spec: Spec, layout: Layout) -> list[Record]:
    """The records of the argument `validation` or `test`; none without it."""
    if given is None:
        return []
    with _about(name):
        return arrays.more(spec, *given, layout)


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Adds to an error of the block which argument its sequences and labels are from."""
    try:
        yield
    except InvalidSequences as error:
        problems = [replace(problem, detail=f"in {name}: {problem.detail}") for problem in error.problems]
        raise InvalidSequences(problems) from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from error


def _choosing(progress: Callable[[str], None] | Literal["auto"] | None) -> AbstractContextManager[Any]:
    """Shows that something is chosen, which may take minutes."""
    if progress != "auto":
        return nullcontext()
    from rich.console import Console

    return status(Console(stderr=True), "choosing what is left open")


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Makes torch compute in so many threads during the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
