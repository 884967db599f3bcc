"""Trains from Python: `train` for sequences in memory.

sequences, labels -> records (`arrays`) -> `session`, as the command `train` -> a `TrainedModel`
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, cast, overload

from lengthwise.exporter_api.data import InputSequences, Layout, Record, columns_of
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE, refuse_to_overwrite
from lengthwise_export.errors import ConfigurationError, InvalidSequences
from lengthwise_export.options import Notice, keywords
from lengthwise_export.tracing.process_wide import torch_as_before
from lengthwise_export.training import arrays, session
from lengthwise_export.training.options import TrainCallOptions
from lengthwise_export.training.record_checks import allow_open_missing
from lengthwise_export.training.report import RunReport, as_text, splits_of
from lengthwise_export.training.session import ProgressTarget

if TYPE_CHECKING:
    from lengthwise_export.exporting.flow import PublishedModel

log = logging.getLogger("lengthwise.train")

P = ParamSpec("P")
Labels = Iterable[Any]


class TrainedModel:
    """A trained model. `str()` gives the table of the command line; a notebook shows the report as a page.

    Attributes:
        directory: The folder of the run: weights, spec, report. Without `out=`, a temporary folder, which is removed
            with this object.
        spec: The spec with everything that was chosen, as a dictionary.
        labels: The classes, in the order of the outputs.
        report: What `metrics.json` holds: scores of each split, calibration, epochs. A notebook shows it as a page.
        reasons: Why each thing that was open was chosen as it is.
        warnings: What you should know about the data and the training.
    """

    def __init__(self, directory: Path, report: RunReport) -> None:
        self.directory = directory
        self.report = report
        self.spec: dict[str, Any] = report["spec"]
        self.labels = tuple(report["labels"])
        self.reasons = tuple(report["chosen"])
        self.warnings = tuple(report["warnings"])

    @property
    def weights(self) -> Path:
        """The file of the weights, with the spec in it: a target of `check` and `export`."""
        return self.directory / WEIGHTS_FILE

    def export(self, out: str | os.PathLike[str], **options: Any) -> PublishedModel:
        """Publishes the model as a model directory, after its verification; raises as `lengthwise_export.export`.

        Args:
            out: `MODELS/NAME/VERSION`, or `MODELS/NAME` for the next free version.
            options: As for `lengthwise_export.export`, such as `precision="int8"`.
        """
        from lengthwise_export.interface import api

        return api.export(self.weights, out, **options)

    def __repr__(self) -> str:
        """`<lengthwise_export.TrainedModel of 9 labels: accuracy 0.9812 (test)>`."""
        name, scores = list(splits_of(self.report).items())[-1]
        accuracy = f"accuracy {scores['accuracy']:.4f} ({name.replace('_', ' ')})"
        return f"<lengthwise_export.TrainedModel of {len(self.labels)} labels: {accuracy}>"

    def __str__(self) -> str:
        """The scores of each split, as `lengthwise train` prints them."""
        return as_text(self.report.table("training"))

    def _repr_html_(self) -> str:
        """The page `report.html` of the run."""
        return self.report._repr_html_()


class Training(Protocol[P]):
    """`train`: a spec, sequences and labels, and the keywords of `TrainCallOptions`; or these as one value.

    Both forms are written out, because `Concatenate` would lose the names of the parameters before the options.
    """

    @overload  # each option as a keyword
    def __call__(
        self,
        spec: arrays.SpecSource,
        sequences: Any,
        labels: Labels | None = None,
        progress: ProgressTarget = "auto",
        *args: P.args,
        **options: P.kwargs,
    ) -> TrainedModel: ...
    @overload  # all options as one value
    def __call__(
        self,
        spec: arrays.SpecSource,
        sequences: Any,
        labels: Labels | None = None,
        progress: ProgressTarget = "auto",
        *,
        options: TrainCallOptions,
    ) -> TrainedModel: ...


def _keywords(options: Callable[P, TrainCallOptions]) -> Callable[[Callable[..., TrainedModel]], Training[P]]:
    """`keywords` with types: the decorated function takes the fields of `options` as keywords."""
    return cast(
        "Callable[[Callable[..., TrainedModel]], Training[P]]", keywords(cast("type[TrainCallOptions]", options))
    )


@_keywords(TrainCallOptions)
def train(  # noqa: D417 - the decorator adds the options
    spec: arrays.SpecSource,
    sequences: Any,
    labels: Labels | None = None,
    progress: ProgressTarget = "auto",
    *,
    options: TrainCallOptions,
) -> TrainedModel:
    """Trains the built-in architecture on sequences of different lengths.

    What the spec and the options leave open is chosen from the data, and `reasons` of the result says why. Do not
    normalise the values: the graph does it. Warnings are logged (logger `lengthwise.train`).

    Args:
        spec: A preset (`"auto"`, `"rocket"`, `"summaries"`, `"rnn"`, `"conv"`, `"conv-rnn"`, `"transformer"`), the
            path of a TOML file, or its tables as a dictionary, such as `{"input": {"missing": "mean"}, "model":
            {"preset": "rnn"}}`. The number of features, the labels and the longest sequence are read off the data where
            the tables leave them out. Token ids need `{"input": {"vocabulary": N}}`.
        sequences: Each `[length, features]` of any real type, with NaN for a missing value; `[length]` for one feature
            or for token ids. Or any other form that `lengthwise.Model.predict` takes, such as a pandas table with a row
            for each step; `reasons` of the result says which columns were taken as what.
        labels: One text or whole number for each sequence, as a list in their order, or with their ids: a dict, a
            pandas Series with the ids as its index, or a table of ids and labels. Multi-label and per-step models
            (`{"output": {"task": ...}}`): a list of them for each sequence, with None at a step without a label.
            Default: the labels that a table has.
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
    """  # noqa: DOC502 - what it calls raises them
    if not (progress is None or progress == "auto" or callable(progress)):
        raise ConfigurationError(f"progress must be a function, 'auto' or None, got {progress!r}")
    folder = None if options.out is None else Path(options.out)
    if folder is not None and not options.overwrite:
        refuse_to_overwrite(folder, "use another out=, or delete it with overwrite=True")
    validation = None if isinstance(options.validation, int | float) else options.validation
    data = arrays.from_sequences(spec, sequences, labels, options.layout, options.padding)
    open_spec = allow_open_missing(data.spec)  # what is wrong is found before the choice, which may take minutes
    splits = {
        name: _read_split(name, split, open_spec, options.layout)
        for name, split in (("test", options.test), ("validation", validation))
    }
    with ExitStack() as stack:
        directory = folder
        if directory is None:
            temporary = TemporaryDirectory(prefix="lengthwise-run-", ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(temporary))
        with torch_as_before():
            report = session.run_training(
                data,
                options if validation is None else options.model_copy(update={"validation": None}),
                directory,
                test=splits["test"],
                validation=splits["validation"],
                overwrite=options.overwrite,
                recheck=arrays.require_fit,
                progress=progress,
                tell=_log,
            )
        model = TrainedModel(directory, report)
        weakref.finalize(model, stack.pop_all().close)  # a temporary folder goes with the model
    return model


def _log(notice: Notice) -> None:
    """Logs a notice of a training if it is a warning; the reasons of choices are in the result already."""
    if notice.kind == "warning":
        log.warning("%s", notice.text)


def _read_split(name: str, split: Any, spec: Spec, layout: Layout) -> Sequence[Record]:
    """Converts the argument `validation` or `test` of `train` to records.

    Args:
        name: The name of the argument, for messages.
        split: A pair (sequences, labels), or a table with labels; None for no records.
        spec: The spec that the records must fit.
        layout: The order of the axes of an array.

    Raises:
        ConfigurationError: It is neither a pair nor such a table. An error of its records begins with `name`.
        InvalidSequences: Some sequences or labels cannot be used; each message begins with "in" and `name`.
    """
    if split is None:
        return []
    if isinstance(split, tuple | list) and len(split) == 2 and not isinstance(split, InputSequences):
        sequences, labels = split
    # Sequences that were read already, a table, or a GroupBy of pandas
    elif isinstance(split, InputSequences) or columns_of(split) is not None or hasattr(type(split), "groups"):
        sequences, labels = split, None
    else:
        share = ", or a share of the sequences" if name == "validation" else ""
        raise ConfigurationError(
            f"{name} must be a pair (sequences, labels) or a table with labels{share}, got a {type(split).__name__}"
        )
    try:
        records = arrays.from_sequences(spec, sequences, labels, layout).records
        arrays.require_fit("", records, spec)  # it may be longer than what the spec says
        return records
    except InvalidSequences as error:
        problems = [replace(problem, detail=f"in {name}: {problem.detail}") for problem in error.problems]
        raise InvalidSequences(problems) from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from error
