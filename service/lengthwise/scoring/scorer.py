"""`Scorer`: a model as a function of a batch, for engines that run a function on parts of a data set, such as Spark.

A *row* is one of the batch, with a sequence in one of its columns (a *cell*); its *item* is the sequence in the form of
the model, or a text on why the model does not accept it.

batch -> cells (`engine_batches`) -> items -> sorted by length, planned, run (`opened`) -> predictions -> batch
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Any, Final, Literal, TypeVar, cast, get_args

from numpy.typing import ArrayLike

from lengthwise.addresses import is_address
from lengthwise.datasets import arrays
from lengthwise.datasets.input_sequences import require_valid
from lengthwise.decoding import json_body
from lengthwise.decoding.calls import Item
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import Manifest
from lengthwise.scoring.engine_batches import (
    AnswerColumn,
    answer_columns,
    cells_of,
    check_names,
    names_of,
    with_answers,
)
from lengthwise.scoring.opened import ModelOptions, OpenModel, ProviderName, check_attention, opened
from lengthwise.versions import is_version

B = TypeVar("B")  # a pandas DataFrame, an Arrow Table or RecordBatch, or a dict of arrays

OnError = Literal["raise", "column"]

_MOST_SHOWN: Final = 40  # characters of an id in a message


@dataclass(frozen=True)
class Scorer:
    """A model that answers batches: tables with a column of sequences, as engines for large data sets have them.

    It is pickled as its path and options only, and opens the model in each process that uses it, once. It answers with
    the same bits as `POST /predict` and `lengthwise score`. Inside a batch, sequences are sorted by length and packed
    into batches for the model, so large batches have little padding. A wrong option raises a ConfigurationError.

    Example:
        >>> import lengthwise, numpy as np, pandas
        >>> scorer = lengthwise.Scorer()
        >>> answered = scorer(pandas.DataFrame({"id": ["a"], "steps": [np.zeros((19, 12))]}))
        >>> list(answered.columns)
        ['id', 'label', 'score', 'probabilities', 'length']

    Attributes:
        path: A version (`models/vowels/1`), or a model (`models/vowels`): then the version that is the highest now;
            None for the bundled model. A path that names a version is first read when the model is needed, so it may
            be one that only the workers have.
        on_error: For a row without an answer: `raise` an error that names all such rows, or write the error into the
            column `error`, where all other rows have null.
        attention: Whether to return the attention weights.
        steps: The column of sequences: a list of steps in each row, each step a list of numbers; a list of numbers
            where a step has one feature, or is a token id.
        id: The column that names a row in an error; it need not exist. None for none.
        static: The columns of the static values; they stay in the answered batch. Those with the names of the model's
            are matched by name, others are in the order of the model. By default those with the names of the model's,
            if the batch has them all.
        keep_steps: Whether the answered batch has the column of sequences, too; it is most of the data.
        prefix: Begins the name of each column of an answer, such as `predicted_` where the batch has a `label`.
        provider: `cuda`, `cpu`, or `auto` for a GPU if one can be used, else the CPU.
        threads: How many batches of the model run at once in a process; with 1, in the thread of the caller.
        max_batch_rows: Most sequences in one batch of the model.
        max_batch_cost_steps: Most padded steps (rows x width) in one batch of the model.
        recurrent_kernels: Whether LSTM and GRU layers on the CPU run in Lengthwise's kernels, or in onnxruntime's. By
            default each worker times the model in both, unless its model directory states the choice.
    """

    path: str | os.PathLike[str] | None = None
    _: KW_ONLY
    on_error: OnError = "raise"
    attention: bool = False
    steps: str = "steps"
    id: str | None = "id"
    static: Sequence[str] = ()
    keep_steps: bool = False
    prefix: str = ""
    provider: ProviderName = "auto"
    threads: int = 1
    max_batch_rows: int = 64
    max_batch_cost_steps: int = 16_384
    recurrent_kernels: bool | None = None

    def __post_init__(self) -> None:
        """Checks the options, and makes the path an absolute one of a version, which is the same for each worker.

        Raises:
            ConfigurationError: An option is wrong, or there is no model at the path.
        """
        if self.on_error not in get_args(OnError):
            raise ConfigurationError(f"on_error must be one of {', '.join(get_args(OnError))}, got {self.on_error!r}")
        if self.path is not None:
            from lengthwise.repository.source import model_directory

            if not is_address(self.path):  # an address stays: each worker fetches it into the cache of its machine
                path = os.path.abspath(self.path)  # a worker may have another working directory
                if not is_version(os.path.basename(path)):
                    path = str(model_directory(path))
                object.__setattr__(self, "path", path)
        if self.threads is None:
            raise ConfigurationError("threads must be an integer >= 1, got None")
        static = (self.static,) if isinstance(self.static, str) else tuple(self.static or ())
        if len({*static}) != len(static):
            raise ConfigurationError(f"static: a column is named twice in {', '.join(static)}")
        object.__setattr__(self, "static", static)
        self._options()  # raises for options that are wrong

    def __call__(self, batch: B) -> B:
        """Answers a batch.

        Args:
            batch: A table with the column `steps`.

        Returns:
            A table of the same type with the same rows: the columns of the batch without `steps`, and the columns of
            the answers, `columns()`.

        Raises:
            InvalidSequences: The model does not accept some sequences, or their answers are not finite; names them all.
                Not with `on_error="column"`.
            InferenceFailed: The runtime failed. Not with `on_error="column"`.
            ConfigurationError: The batch has no such column, or one of the same name as a column of the answers; or the
                model cannot be opened.
            ModelError: The model fails its verification on this machine.
        """  # noqa: DOC502 - what it calls raises them
        model = self.open()
        manifest = model.loaded.manifest
        names, columns = names_of(batch), self._columns(manifest)
        by_name = manifest.input.static_names
        is_named = {*by_name} == {*self.static} if self.static else {*by_name} <= {*names}
        static_columns = by_name if is_named else self.static
        check_names(names, self.steps, static_columns, columns, keep_steps=self.keep_steps)
        rows = cells_of(batch, self.steps)
        cells = {name: cells_of(batch, name) for name in static_columns}
        for column, values in cells.items():
            if len(values) != len(rows):
                raise ConfigurationError(
                    f"the column {column!r} has {len(values)} rows, and {self.steps!r} {len(rows)}"
                )
        static = [*zip(*cells.values(), strict=True)] or None
        items = arrays.items_or_reasons(rows, manifest, static=static, ask=False)
        ids = cache(lambda: cells_of(batch, self.id or ""))  # the column of ids, read at the first error only

        def name(row: int) -> str:
            """The id of a row, as the beginning of its error; empty if the batch has no ids."""
            return f"id {str(ids()[row])[:_MOST_SHOWN]!r}: " if self.id in names else ""

        answers = self._rows(model, items, name)
        return cast("B", with_answers(batch, None if self.keep_steps else self.steps, columns, answers))

    def batches(self, batches: Iterable[B]) -> Iterator[B]:
        """Answers batches one by one: a function for `mapInPandas` and `mapInArrow` of PySpark."""
        yield from map(self, batches)

    def predictions(self, sequences: Iterable[ArrayLike]) -> list[dict[str, Any]]:
        """Answers sequences that are not in a table: in any form that `Model.predict` takes.

        Each prediction has the fields of `POST /predict`, with numbers and arrays of NumPy; with `on_error="column"`, a
        sequence without an answer gets `{"error": ...}`.

        Raises:
            InvalidSequences: The model does not accept some sequences, or their answers are not finite; only with
                `on_error="raise"`.
            InferenceFailed: The runtime failed; only with `on_error="raise"`.
        """  # noqa: DOC502 - what it calls raises them
        model = self.open()
        return self._rows(model, arrays.items_or_reasons(sequences, model.loaded.manifest), lambda _: "")

    def columns(self) -> list[AnswerColumn]:
        """The columns that a batch gets. Reads the manifest only, so a driver may call it without opening the model."""
        return self._columns(Manifest.read(self._options().directory))

    def open(self) -> OpenModel:
        """Opens the model, unless this process has it open already.

        Raises:
            ConfigurationError: There is no model at the path; onnxruntime or the provider is not installed; or the
                model has no attention weights, which are to be returned.
            ModelError: The model fails its verification on this machine.
        """  # noqa: DOC502 - what it calls raises them
        model = opened(self._options())
        check_attention(model.loaded.manifest, self.attention)
        return model

    def _options(self) -> ModelOptions:
        """Which model, and how it is opened.

        Raises:
            ConfigurationError: An option is out of bounds.
        """  # noqa: DOC502 - what it calls raises it
        path = None if self.path is None else os.fspath(self.path)
        return ModelOptions(
            path, self.provider, self.threads, self.max_batch_rows, self.max_batch_cost_steps, self.recurrent_kernels
        )

    def _columns(self, manifest: Manifest) -> list[AnswerColumn]:
        """The columns that a batch gets from a model with this manifest."""
        check_attention(manifest, self.attention)
        return answer_columns(manifest, attention=self.attention, errors=self.on_error == "column", prefix=self.prefix)

    def _rows(self, model: OpenModel, items: Sequence[Item | str], name: Callable[[int], str]) -> list[dict[str, Any]]:
        """Runs the items that the model accepts; returns for each row its prediction, or `{"error": why}`.

        Args:
            model: The model.
            items: The item of each row, or a text: why the model does not accept it.
            name: Called with the index of a row; returns the text that begins its error.

        Raises:
            InvalidSequences: The model does not accept some rows, or their answers are not finite; only with
                `on_error="raise"`.
            InferenceFailed: The runtime failed on a row; only with `on_error="raise"`.
        """  # noqa: DOC502 - what it calls raises them
        from lengthwise.scoring import offline

        if self.on_error == "raise":  # before the model runs
            require_valid(items, name)
        answers = iter(model.answers([item for item in items if not isinstance(item, str)], attention=self.attention))
        results = [item if isinstance(item, str) else next(answers) for item in items]
        if self.on_error == "raise":
            offline.require_answers(results, name)
        manifest = model.loaded.manifest
        return [
            {"error": result}
            if isinstance(item, str) or isinstance(result, str)
            else json_body.prediction(manifest, item, result, attention=self.attention)
            for item, result in zip(items, results, strict=True)
        ]
