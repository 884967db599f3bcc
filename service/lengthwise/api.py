"""The Python interface: `load` verifies and loads a model directory, `Model.predict` answers arrays without a server.

    arrays -> items (`datasets.arrays`) -> batches of the planner (`scoring.offline`) -> a `Prediction` for each array

`load` and `predict` import what runs a model, so that importing this module is cheap.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets import arrays, input_sequences
from lengthwise.datasets.input_sequences import Layout, Padding
from lengthwise.decoding import json_body
from lengthwise.decoding.calls import Item
from lengthwise.decoding.chunks import NO_STREAM
from lengthwise.decoding.options import OUTPUTS
from lengthwise.errors import ConfigurationError
from lengthwise.padding import planned_length
from lengthwise.reports import notebook
from lengthwise.runtime.manifest import LongPolicy, MissingPolicy, Task
from lengthwise.runtime.states import StateKeys
from lengthwise.scoring.opened import ModelOptions, OpenModel, ProviderName, check_attention
from lengthwise.wrong_values import counted

_WORTH_THREADS_SECONDS: Final = 0.002  # a call of a shorter predicted time runs in the caller's thread


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The answer to one sequence. Arrays are float32. In shapes, `sent` is the number of steps of the given sequence.

    Attributes:
        probabilities: `[classes]` in the order of `Model.labels`. Per-step model: `[sent, classes]`, with NaN at steps
            that the policy for long sequences left out. Of an embedding `[0]`.
        length: Number of steps that the model used: fewer than `sent` if the policy left some out. Of a model that
            takes several sequences, that of each by its name.
        label: The most probable label; None for a multi-label or per-step model.
        score: The probability of `label`, 0 to 1; None if `label` is None.
        assigned: Multi-label model only: the labels at or above its threshold, in order.
        step_labels: Per-step model only: the label of each of the `sent` steps, None at steps left out.
        step_scores: Per-step model only: the probabilities of these labels, `[sent]`, NaN at steps left out.
        fitted: How the model brought the sequence to its only width, `pad` or `resample`; None if it takes any width.
        attention: The attention weights, `[sent]`, with sum 1 and 0 at steps left out; None if not requested.
        windows: The answer of each window, in the form of `POST /predict`, if the sequence was split into windows.
        id: The caller's name for the sequence, if it was given to a client with one.
        state: The state after the steps, from which the sequence goes on; None if not requested.
        offset: The steps of the whole sequence so far; None if the state was not requested.
        decided: Of steps sent with states to a model that has `stop_at` in its manifest: whether the label is as likely
            as that, after enough steps; else None.
        values: Of an embedding only: its values, `[dimensions]`.
        version: The version that answered.
    """

    probabilities: NDArray[np.float32]
    length: int | dict[str, int]
    label: str | None = None
    score: float | None = None
    assigned: tuple[str, ...] | None = None
    step_labels: tuple[str | None, ...] | None = None
    step_scores: NDArray[np.float32] | None = None
    fitted: str | None = None
    attention: NDArray[np.float32] | None = None
    windows: tuple[dict[str, Any], ...] | None = field(default=None, repr=False)
    id: str | None = None
    version: str | None = None
    state: str | None = field(default=None, repr=False)
    offset: int | None = None
    decided: bool | None = None
    values: NDArray[np.float32] | None = None
    _labels: tuple[str, ...] = field(default=(), repr=False)  # of the model, for `_repr_html_`

    def __repr__(self) -> str:
        names = (item.name for item in fields(self) if item.repr and getattr(self, item.name) is not None)
        return f"Prediction({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def _repr_html_(self) -> str:
        return notebook.prediction(self, self._labels)


class Predictions(list[Prediction]):
    """The predictions for the sequences of one call, in their order: a list that a notebook shows as a table.

    Attributes:
        model: The name of the model that answered.
        version: Its version, from "1"; of a call that was split the first, and each prediction has its own.
        labels: Its classes, in the order of `Prediction.probabilities`.
    """

    def __init__(self, predictions: Iterable[Prediction], model: str, version: str, labels: tuple[str, ...]) -> None:
        super().__init__(predictions)
        self.model = model
        self.version = version
        self.labels = labels

    def _repr_html_(self) -> str:
        return notebook.predictions(self)


def prediction_of(entry: Mapping[str, Any], labels: tuple[str, ...], version: str) -> Prediction:
    """Converts a prediction in the form of `POST /predict`, with lists or arrays, to a `Prediction`.

    None in a list of numbers becomes NaN. `labels` are those of the model, `version` is the one that answered.
    """
    present = {name: value for name, value in entry.items() if value is not None and name in _CONVERSIONS}
    values = {name: _CONVERSIONS[name](value) for name, value in present.items()}
    values.setdefault("probabilities", np.empty(0, dtype=np.float32))  # an embedding has none
    return Prediction(**values, version=version, _labels=labels)


def _floats(entries: Any) -> NDArray[np.float32]:
    """Float32 of the entries, `[entries]` or `[entries, classes]`; an entry of None becomes NaN, in all classes."""
    if isinstance(entries, list):
        first_entry = next((entry for entry in entries if entry is not None), None)
        absent = np.full(len(first_entry), np.nan) if isinstance(first_entry, list | np.ndarray) else np.nan
        entries = [absent if entry is None else entry for entry in entries]
    return np.asarray(entries, dtype=np.float32)


_CONVERSIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(("id", "state"), str),
    "offset": int,
    "decided": bool,
    "length": lambda length: dict(length) if isinstance(length, Mapping) else int(length),
    **dict.fromkeys(("fitted", "label"), str),
    "score": lambda score: float(np.float32(score)),
    **dict.fromkeys(("probabilities", "step_scores", "attention", "values"), _floats),
    **dict.fromkeys(("assigned", "step_labels", "windows"), tuple),
}  # from a field of an answer to that of a `Prediction`


class Stream:
    """A sequence that goes on: each prediction is the answer to all of its steps so far. One thread uses it at a time.

    Attributes:
        state: What the next steps begin from, of the last prediction; None before the first. To go on later, or
            elsewhere, keep it, and give it to `stream`.
    """

    def __init__(self, predict: Callable[..., Any], state: str | None = None) -> None:
        self.state = state
        self._predict = predict

    def push(self, steps: Any, **options: Any) -> Prediction:
        """Answers the sequence with these next steps, none of them too; `options` are those of `predict`."""
        return self._keep(self._answer(steps, options))

    def _answer(self, steps: Any, options: Mapping[str, Any]) -> Any:
        """What `predict` returns for the next steps."""
        outputs = [*options.get("outputs", ()), "state"]
        return self._predict([steps], **{**options, "states": [self.state], "outputs": outputs})

    def _keep(self, predictions: Predictions) -> Prediction:
        """Keeps the state of the call's one prediction for the next steps, and returns the prediction."""
        (prediction,) = predictions
        self.state = prediction.state
        return prediction


class AsyncStream(Stream):
    """`Stream` of an `AsyncClient`, whose `push` is a coroutine."""

    async def push(self, steps: Any, **options: Any) -> Prediction:  # type: ignore[override]
        """Answers the sequence with these next steps, none of them too; `options` are those of `predict`."""
        return self._keep(await self._answer(steps, options))


def outputs_of(outputs: Sequence[str], attention: bool) -> list[str]:
    """The further outputs that a caller asks for: `outputs`, and the attention weights if `attention` says so.

    Raises:
        ConfigurationError: One is not known.
    """
    for name in outputs:
        if name not in OUTPUTS:
            raise ConfigurationError(f"outputs must be {' or '.join(map(repr, OUTPUTS))}, got {name!r}")
    return [*dict.fromkeys([*(["attention"] if attention else []), *outputs])]


class Model:
    """A verified model, ready to answer; `load` returns it. Several threads may use it at once.

    Attributes:
        name: Its name.
        version: Its version, from 1.
        labels: Its classes, in the order of `Prediction.probabilities`.
        task: `single-label`, `multi-label`, `per-step` or `embedding`, which has no labels.
        features: Number of values of a step; None for a token model.
        names: The names of the features, in their order; None if they have none.
        vocabulary: Number of token ids; None for a model of values.
        min_length: Fewest steps of a sequence; a shorter one is an error.
        max_length: Most steps of a sequence.
        long: The policy for longer sequences: `reject` (an error), `head`, `tail` or `window`.
        missing: The policy for missing values (NaN); `refuse` makes them an error.
        has_attention: Whether `predict` can return attention weights.
        provider: The device that it runs on, by onnxruntime's name.
    """

    def __init__(self, opened: OpenModel) -> None:
        self._opened = opened
        manifest = opened.loaded.manifest
        self.name: str = manifest.name
        self.version: int = manifest.version
        self.labels: tuple[str, ...] = manifest.labels
        self.task: Task = manifest.task
        self.features: int | None = manifest.input.features
        self.names: tuple[str, ...] | None = manifest.input.names
        self.vocabulary: int | None = manifest.input.vocabulary
        self.min_length: int = manifest.min_length
        self.max_length: int = manifest.max_length
        self.long: LongPolicy = manifest.long
        self.missing: MissingPolicy = manifest.missing
        self.has_attention: bool = manifest.graph.attention is not None
        self.provider: str = opened.loaded.session.provider

    def __repr__(self) -> str:
        step = f"{self._step_text} a step" if self.vocabulary is None else self._step_text
        lengths = f"at most {self.max_length}" if self.min_length == 1 else f"{self.min_length} to {self.max_length}"
        return f"<lengthwise.Model {self.name}/{self.version}: {len(self.labels)} labels, {step}, {lengths} steps>"

    def _repr_html_(self) -> str:
        """A table of the model for notebooks: task, labels, steps, policies, device and promise."""
        promises = "; ".join(
            f"{'the same bits' if promise.bits else f'within {promise.tolerance:.2g}'} on {promise.provider}"
            for promise in self._opened.loaded.manifest.promises
        )
        rows = [
            ("task", self.task),
            (f"{len(self.labels)} labels", ", ".join(self.labels)),
            ("a step", self._step_text),
            ("steps of a sequence", f"{self.min_length} to {self.max_length}; longer ones: {self.long}"),
            ("missing values", self.missing),
            ("attention", "predict(..., attention=True)" if self.has_attention else "none"),
            ("runs on", self.provider),
            ("an answer in any batch", promises or "not promised"),
        ]
        return notebook.table(rows, title=f"{self.name}, version {self.version}")

    @property
    def _step_text(self) -> str:
        """What a step is, in words: `12 features`, or `5000 token ids`."""
        return f"{self.vocabulary} token ids" if self.features is None else counted(self.features, "feature")

    def predict(
        self,
        sequences: Any = None,
        *,
        attention: bool = False,
        layout: Layout = "steps-first",
        padding: Padding | None = None,
        static: Any = None,
        inputs: Mapping[str, Any] | None = None,
        states: Sequence[str | None] | None = None,
        offsets: Sequence[int | None] | None = None,
        outputs: Sequence[str] = (),
        **columns: Any,
    ) -> Predictions:
        """Answers sequences of different lengths, in their order, with the same bits as `POST /predict`.

        The planner of the service batches them. On the CPU, the bits of an answer do not depend on the other sequences.

        Args:
            sequences: Each `[length, features]` of any real type, with NaN for a missing value; with one feature,
                `[length]` is accepted too. For a token model, `[length]` whole numbers. Or a mapping of ids to them, a
                pandas or Polars table with a row for each step, a grouped table, or a list column of Arrow:
                docs/data.md has all forms.
            attention: Whether to return the attention weights.
            layout: `channels-first` for arrays `[features, length]`, such as those of aeon and sktime.
            padding: `zeros` or `nan` cuts steps of zeros, or without values, off the end of each sequence first.
                Without it, a warning (logger `lengthwise.data`) says what looks like padding.
            static: Of a model that takes static values: for each sequence a list of them, or a mapping by their names;
                or a table with a row for each sequence. Of a table of steps, the names of the columns that have them;
                by default those with the names of the model's. They may also stand beside each sequence:
                `{"steps": ..., "static": ...}`.
            inputs: Of a model that takes several sequences: those of each name, in the place of `sequences`.
            states: Of a model that streams: for each sequence the `state` of the prediction before, or None where it
                begins. The answer is that to the whole sequence so far.
            offsets: How many steps the caller believes each of these states has seen; None for no belief.
            outputs: Further outputs: `state`, the state after the steps of each, and `attention`.
            columns: What the columns of a table are: `id`, `time`, `label`, `values` and `row` of
                `lengthwise.sequences`.

        Returns:
            One prediction for each sequence, in a list that a notebook shows as a table.

        Raises:
            InvalidSequences: The model does not accept some of them, or their answers are not finite; names each by its
                index. It is a ValueError.
            StateConflict: Some states are of another model, or have seen another number of steps; names each, too.
            ConfigurationError: The model has no attention weights, or does not stream; or it is not clear what the
                columns of a table are.
            InferenceFailed: The runtime failed.

        Example:
            >>> model = lengthwise.load()
            >>> steps = np.zeros((19, 12))
            >>> (prediction,) = model.predict([steps])
            >>> prediction.probabilities.shape, prediction.length
            ((9,), 19)
        """  # noqa: DOC502 - what it calls raises them
        from lengthwise.scoring import offline

        manifest = self._opened.loaded.manifest
        further = outputs_of(outputs, attention)
        attention = "attention" in further
        check_attention(manifest, attention)
        keys = StateKeys() if "state" in further else None
        if keys is not None and manifest.streaming is None:
            raise ConfigurationError(NO_STREAM.format(manifest.key))
        if columns:
            static = (manifest.input.static_names or None) if static is None else static
            sequences = input_sequences.sequences(sequences, layout=layout, padding=padding, static=static, **columns)
            static = None
        # Items, their answers (or reasons why there is none), and predictions
        options: Any = {"padding": padding, "static": static, "inputs": inputs, "wants_state": keys is not None}
        before = {"state": states, "offset": offsets}
        items = arrays.items(sequences, manifest, layout, **options, before=before)
        results = self._opened.answers(items, attention=attention, threads=self._threads_for(items))
        version = str(self.version)
        predictions = (
            prediction_of(
                json_body.prediction(manifest, item, answer, attention=attention, state_keys=keys), self.labels, version
            )
            for item, answer in zip(items, offline.require_answers(results), strict=True)
        )
        return Predictions(predictions, self.name, version, self.labels)

    def stream(self, state: str | None = None) -> Stream:
        """A sequence that goes on, from the `state` of a prediction or from its beginning.

        After `stream = model.stream()`, each `stream.push(steps)` is the answer to all steps so far.
        """
        return Stream(self.predict, state)

    def _threads_for(self, items: Sequence[Item]) -> int:
        """How many threads a call starts for its items; 0 if starting them would take longer than running the items.

        The predicted seconds of the items are added only until their sum is worth threads.
        """
        cost, longest = self._opened.loaded.cost, self._opened.loaded.manifest.longest
        sums_of_seconds = accumulate(cost.predict(1, min(planned_length(item.steps), longest)) for item in items)
        is_worth_threads = len(items) > 1 and any(seconds > _WORTH_THREADS_SECONDS for seconds in sums_of_seconds)
        return self._opened.threads if is_worth_threads else 0


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    provider: ProviderName = "auto",
    threads: int | None = None,
    max_batch_rows: int = 64,
    max_batch_cost_steps: int = 16_384,
    recurrent_kernels: bool | None = None,
) -> Model:
    """Loads a model directory, after the same verification as in the service.

    This takes about a second, mostly to measure the costs of batches. Load only models that you trust: the service
    verifies each model in a separate process, but here a graph that crashes ends this process.

    Args:
        path: A version (`models/vowels/1`), or a model (`models/vowels`) for its highest version. Default: the bundled
            model.
        provider: `cuda`, `cpu`, or `auto` for a GPU if one can be used, else the CPU.
        threads: How many batches of one call run at once; by default the number of cores that this process may use. A
            short call runs in the caller's thread.
        max_batch_rows: Most sequences in one batch.
        max_batch_cost_steps: Most padded steps (rows x width) in one batch.
        recurrent_kernels: Whether LSTM and GRU layers on the CPU run in Lengthwise's kernels, which compute valid steps
            only, or in onnxruntime's. By default the model is timed in both.

    Returns:
        The model, ready to answer.

    Raises:
        ConfigurationError: There is no such model directory, an option is out of bounds, or onnxruntime or the provider
            is not installed.
        ModelError: The model fails its verification on this machine; the message says why.

    Example:
        >>> model = lengthwise.load()
        >>> model.name, model.features, model.task
        ('japanese-vowels', 12, 'single-label')
    """  # noqa: DOC502 - what it calls raises them
    options = ModelOptions(
        None if path is None else os.fspath(path),
        provider,
        threads,
        max_batch_rows,
        max_batch_cost_steps,
        recurrent_kernels,
    )
    return Model(options.open())
