"""Reads a user's ONNX graph: which inputs are the steps, the lengths or the mask, and the order of the axes.

The graph stays unchanged; the roles go into the manifest, by which the service feeds it. A reading (an assignment of
roles) must fit the ranks, the element types and the shared axis names, and it must run. If several run, the user has to
choose with options.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import onnx

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise.runtime.onnx import data_dependence, onnx_graph
from lengthwise_export.errors import UncheckableError
from lengthwise_export.layouts import RIGHT, ROLE_OF, PackedRole, StepLayout, role_of
from lengthwise_export.onnx_graphs.probing import (
    GraphValue,
    ReadingTrial,
    agrees,
    candidates,
    listed,
    logits_of,
    open_session,
    with_int64_tokens,
)
from lengthwise_export.onnx_graphs.protos import keras_cure
from lengthwise_export.options import TargetOptions

_NOT_FED: Final = {
    "token_type_ids": "which distinguishes the two texts of a pair, but a sequence is a single text (the model uses "
    "zeros if they are not passed)",
    "position_ids": "which the model counts from 0 if they are not passed",
}
"""Inputs of Hugging Face's exports that the service does not feed, each with the reason why it is not needed."""

_HUGGING_FACE: Final = ("input_ids", "inputs_embeds", "input_values", "input_features")
_ROWS: Final = re.compile(r"(n|b|bs|rows?|batch.*|.*batch(_size)?)")


@dataclass(frozen=True, slots=True)
class ExternalGraph:
    """A user's graph and the roles of its inputs and outputs."""

    graph: onnx.ModelProto  # The graph, unchanged except that int32 token ids become int64 with a Cast
    steps: StepInput
    names: GraphNames
    classes: int
    per_step: bool
    # Whether it takes the steps alone. Then `names.lengths` is a name that the graph does not have yet
    blind: bool = False
    others: Mapping[str, PackedRole] = field(default_factory=dict)  # Further inputs, which the service does not feed
    layout: StepLayout = RIGHT


def read_graph(
    graph: onnx.ModelProto, hints: TargetOptions, *, blind: bool = False, takes_positions: bool = False
) -> ExternalGraph:
    """Finds the roles of a graph's inputs; a `blind` graph may take the steps alone.

    `takes_positions`: whether it may have an input for the position of each step, which a check feeds.

    Raises:
        UncheckableError: It has neither lengths nor a mask, a frozen axis, or answers that are not float32.
        ConfigurationError: Several readings run, or the meaning of a mask is unclear; the message lists the options.
    """
    weights = {initializer.name for initializer in graph.graph.initializer}
    inputs = [GraphValue.of(value) for value in graph.graph.input if value.name not in weights]
    logits = logits_of([GraphValue.of(value) for value in graph.graph.output], hints.output)
    if logits.element in ("float16", "float64"):
        raise UncheckableError(f"{logits} is not float32, as answers are: export the graph in float32")
    others: dict[str, PackedRole] = {}
    if takes_positions:
        others = {value.name: "positions" for value in inputs if role_of(value.name) == "positions"}
        inputs = [value for value in inputs if value.name not in others]
    _require_readable(inputs, hints, blind=blind)
    new_lengths = _unused_name(graph) if blind else None
    reader = _Reader(graph, inputs, hints, others)
    readings = dict.fromkeys(candidates(inputs, logits, hints, new_lengths))
    names = [names for names in readings if agrees(names, inputs, logits)]
    reader.require_dynamic_axes(names)
    reader.require_rows_in_recurrent_layers(names)
    running = [reading for candidate in names if (reading := reader.running(candidate)) is not None]
    if len(inputs) == 1:
        running = [reading for reading in running if reading.tried.keeps_rows_apart()] or running
    running = reader.by_their_names(running)
    if len(inputs) == 1:
        running = running[:1]  # either order of axes gives the same answers
    if not running:
        raise reader.why_none_runs(names, new_lengths)
    if len(running) > 1:
        choices = "; ".join(_as_options(reading.tried.names) for reading in running)
        raise ConfigurationError(f"the inputs {listed(inputs)} can be read in several ways; choose one: {choices}")
    tried, shape = running[0].tried, running[0].shape
    mask = tried.names.mask
    if mask is not None and "pad" in mask.lower() and hints.second in (None, "both"):
        raise ConfigurationError(
            f"{mask} may be true at padding or at valid steps; pass --second mask (true at valid steps) or "
            "--second padding-mask (true at padding)"
        )
    return ExternalGraph(
        with_int64_tokens(graph, tried.names.sequences),
        tried.steps if tried.steps.kind == "values" else reader.vocabulary_of(tried.names.sequences),
        tried.names,
        classes=shape[-1],
        per_step=len(shape) == 3,
        blind=len(inputs) == 1,
        others=others,
    )


def read_packed_graph(graph: onnx.ModelProto, hints: TargetOptions, layout: StepLayout) -> ExternalGraph:
    """Finds the roles of the inputs of a graph that takes packed rows, by their names.

    Raises:
        UncheckableError: An input has no known role, or no form of the answer is that of packed rows.
        ConfigurationError: No input tells the borders, by its name or by the option.
    """
    weights = {initializer.name for initializer in graph.graph.initializer}
    inputs = [GraphValue.of(value) for value in graph.graph.input if value.name not in weights]
    wanted = ROLE_OF[layout.packed or "cu_seqlens"]
    others = {value.name: role for value in inputs if (role := role_of(value.name)) is not None}
    if layout.packed_input is not None:
        others = {name: role for name, role in others.items() if role != wanted} | {layout.packed_input: wanted}
    others.pop(hints.values or "", None)
    if wanted not in others.values() or not others.keys() <= {value.name for value in inputs}:
        raise ConfigurationError(
            f"the graph takes {listed(inputs)}, and none is {layout.packed} by its name: name one with --packed-input"
        )
    steps, *more = [value for value in inputs if value.name not in others] or inputs
    if more or steps.name in others:
        raise UncheckableError(f"the graph takes {listed(inputs)}: steps must be one input, beside {', '.join(others)}")
    is_float = steps.element.startswith("float")
    names = GraphNames(
        sequences=steps.name,
        lengths=None,
        mask="mask",  # one of the graph is among the others
        logits=logits_of([GraphValue.of(value) for value in graph.graph.output], hints.output).name,
    )
    reader = _Reader(graph, inputs, hints, others)
    features_axis = steps.axes[-1] if steps.rank > 1 else 1
    kind = reader.features_of(steps, features_axis) if is_float else reader.vocabulary_of(steps.name)
    known_sizes = frozenset(int(size) for weight in graph.graph.initializer for size in weight.dims)
    layout = replace(layout, has_rows_axis=steps.rank == (3 if is_float else 2), known_sizes=known_sizes)
    graph = with_int64_tokens(graph, steps.name)
    tried = ReadingTrial(open_session(graph), names, kind, others, layout)
    shape = tried.shape_at_some_width()
    if shape is None:
        raise UncheckableError(
            f"the inputs {listed(inputs)} do not run as packed rows, or the answer is neither [sequences, classes] nor "
            f"[1, steps, classes]: {tried.error() or 'it has another shape'}"
        )
    layout = replace(layout, per_step=len(shape) == 3)
    return ExternalGraph(graph, kind, names, shape[-1], len(shape) == 3, others=others, layout=layout)


class _RunningReading(NamedTuple):
    """A reading that runs, and the shape of the answer, rows first."""

    tried: ReadingTrial
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Finds the readings of a graph, from its inputs and the user's hints."""

    graph: onnx.ModelProto
    inputs: list[GraphValue]
    hints: TargetOptions
    others: Mapping[str, PackedRole]

    def trial(self, names: GraphNames) -> ReadingTrial:
        """The trial of a reading, with a session of the graph."""
        session = open_session(with_int64_tokens(self.graph, names.sequences))
        return ReadingTrial(session, names, self.step_of(names), self.others)

    def running(self, names: GraphNames) -> _RunningReading | None:
        """A reading that runs, with the classes before or behind the steps; None if it does not run."""
        trial = self.trial(names)
        classes_first = names.model_copy(update={"classes_first": names.channels_first})
        shapes = ((each, each.shape_at_some_width()) for each in (trial, replace(trial, names=classes_first)))
        return next((_RunningReading(each, shape) for each, shape in shapes if shape is not None), None)

    def input(self, name: str) -> GraphValue:
        """An input of the graph by its name."""
        return next(value for value in self.inputs if value.name == name)

    def step_of(self, names: GraphNames) -> StepInput:
        """A step in a reading; of tokens with a vocabulary of 2, which is enough for a trial.

        Raises:
            ConfigurationError: `features` contradicts the graph, or is needed because the axis is dynamic.
        """
        steps, features = self.input(names.sequences), self.hints.features
        if steps.rank == 2:
            if features not in (None, 1) and steps.is_raw:
                raise ConfigurationError(f"--features {features} contradicts the graph: {steps} has one value a step")
            return StepInput(features=1) if steps.is_raw else StepInput(kind="tokens", vocabulary=2)
        return self.features_of(steps, steps.axes[1 if names.channels_first else 2])

    def features_of(self, steps: GraphValue, axis: int | str | None) -> StepInput:
        """The values of a step, as many as `axis` of the input or the option says.

        Raises:
            ConfigurationError: `features` contradicts the graph, or is needed because the axis is dynamic.
        """
        features = self.hints.features
        count = axis if isinstance(axis, int) else features
        if count is None:
            raise ConfigurationError(f"{steps} has a dynamic number of features: pass it with --features")
        if features not in (None, count):
            raise ConfigurationError(f"--features {features} contradicts the graph: {steps}")
        return StepInput(features=count)

    def vocabulary_of(self, tokens: str) -> StepInput:
        """Token ids, as many as the rows of the embedding table that they index directly.

        Raises:
            ConfigurationError: Neither the graph nor an option says how many there are.
        """
        vocabulary = self.hints.vocabulary
        tables = {table.name: int(table.dims[0]) for table in self.graph.graph.initializer if table.dims}
        gathers = (node.input for node in self.graph.graph.node if node.op_type == "Gather")
        read = (tables[table] for table, indices in gathers if indices == tokens and table in tables)
        vocabulary = vocabulary or next(read, None)
        if vocabulary is None:
            raise ConfigurationError(f"{tokens} takes token ids: pass their number with --vocabulary")
        return StepInput(kind="tokens", vocabulary=vocabulary)

    def require_dynamic_axes(self, readings: list[GraphNames]) -> None:
        """Makes sure that some reading has no frozen axis.

        Raises:
            UncheckableError: Rows or width are fixed in all of them; the message says which, and at what size.
        """
        frozen: list[str] = []
        for names in readings:
            axes = [self.input(names.sequences).axes[axis] for axis in names.open_axes]
            axes_by_name = zip(("rows", "width"), axes, strict=True)
            sizes = [f"{name} at {size}" for name, size in axes_by_name if isinstance(size, int)]
            if not sizes:
                return
            frozen = frozen or sizes
        if frozen:
            raise UncheckableError(
                f"the graph is frozen: {' and '.join(frozen)} (it takes {listed(self.inputs)}); export it again with "
                "dynamic axes for rows and width"
            )

    def require_rows_in_recurrent_layers(self, readings: Iterable[GraphNames]) -> None:
        """Makes sure that no recurrent layer can get a batch without rows: onnxruntime would end the process.

        Raises:
            UncheckableError: A recurrent layer may get a batch without rows; the message names it.
        """
        ending = data_dependence.ENDS_WITHOUT_ROWS | data_dependence.ENDS_WITHOUT_ROWS_AT_INT8
        nodes = onnx_graph.read(self.graph.SerializeToString())
        for names in readings:
            others = [name for name in (names.lengths, names.mask) if name is not None]
            operator = data_dependence.recurrent_without_rows(nodes, names.sequences, others, ending)
            if operator is not None:
                raise UncheckableError(data_dependence.why_refused(operator))

    def by_their_names(self, running: list[_RunningReading]) -> list[_RunningReading]:
        """Keeps the readings that fit the names of inputs and axes best; all of them if the names do not help."""

        def mask_is_named_so(names: GraphNames) -> bool:
            return names.mask is not None and "mask" in names.mask.lower() and "mask" not in names.sequences.lower()

        def ids_are_named_so(names: GraphNames) -> bool:  # by Hugging Face, where rows always come first
            return names.sequences in _HUGGING_FACE and not names.time_first

        def rows_are_named_so(names: GraphNames) -> bool:
            rows = self.input(names.sequences).axes[names.open_axes[0]]
            return isinstance(rows, str) and _ROWS.fullmatch(rows.lower()) is not None

        for speaks_for in (mask_is_named_so, ids_are_named_so, rows_are_named_so):
            running = [reading for reading in running if speaks_for(reading.tried.names)] or running
        return running

    def why_none_runs(self, names: list[GraphNames], new_lengths: str | None) -> UncheckableError:
        """The error for a graph of which no reading runs, with a hint or onnxruntime's error."""
        inputs, hints = self.inputs, self.hints
        if not (hints.channels_first or hints.time_first):
            channels_first = replace(self, hints=hints.model_copy(update={"channels_first": True}))
            logits = GraphValue.of(self.graph.graph.output[0])
            for names_of_reading in candidates(inputs, logits, channels_first.hints, new_lengths):
                steps = self.input(names_of_reading.sequences)
                has_features = steps.rank == 3 and (isinstance(steps.axes[1], int) or hints.features)
                if has_features and channels_first.trial(names_of_reading).shape_at_some_width() is not None:
                    return UncheckableError(
                        f"the inputs {listed(inputs)} run with steps as [rows, features, width]: if that is right, "
                        "pass --channels-first"
                    )
        trials = [self.trial(reading) for reading in names]
        for trial in trials:
            trial.require_dynamic_inside(cure=keras_cure(self.graph))
        if shares := [value for value in inputs if value.rank == 1 and value.element.startswith("float")]:
            return UncheckableError(
                f"{shares[0]} are probably lengths as shares of the longest, not in steps: export the graph with int64 "
                f"lengths, and divide them by the width inside (it has {listed(inputs)}; lengths are int32 or int64)"
            )
        error_text = next((f" ({error})" for trial in trials if (error := trial.error())), "")
        return UncheckableError(
            f"no reading of the inputs {listed(inputs)} runs: name them with --values and --lengths or --mask, and "
            f"pass --time-first or --channels-first if steps are not [rows, width, features]{error_text}"
        )


def _unused_name(graph: onnx.ModelProto) -> str:
    """`lengths`, or a similar name if the graph has a value of that name."""
    used = {value.name for value in graph.graph.input} | {value.name for value in graph.graph.initializer}
    used |= {name for node in graph.graph.node for name in (*node.input, *node.output)}
    names = itertools.chain(["lengths", "sequence_lengths"], (f"lengths_{number}" for number in itertools.count()))
    return next(name for name in names if name not in used)


def _require_readable(inputs: list[GraphValue], hints: TargetOptions, *, blind: bool) -> None:
    """Refuses inputs that no reading fits.

    Raises:
        ConfigurationError: An option names an input that the graph does not have, or contradicts its inputs.
        UncheckableError: An input cannot be fed, or nothing marks where a sequence ends.
    """
    for option, name in (("--values", hints.values), ("--lengths", hints.lengths), ("--mask", hints.mask)):
        if name is not None and name not in {value.name for value in inputs}:
            raise ConfigurationError(f"{option} {name}: the graph's inputs are {listed(inputs)}")
    if hints.second == "none" and len(inputs) > 1:
        raise ConfigurationError(f"--second none: the graph takes {listed(inputs)}, and each of them must be given")
    if len(inputs) == 1 and not blind:
        raise UncheckableError(
            f"the graph has one input, {inputs[0]}, and nothing marks where a sequence ends: export it with lengths "
            "[rows] or a mask [rows, width] as a second input, or pass --mend (check: --suggest)"
        )
    for name, why in _NOT_FED.items():
        if any(value.name == name for value in inputs) and name not in (hints.values, hints.lengths, hints.mask):
            raise UncheckableError(f"the graph takes {name}, {why}: export it without that ({listed(inputs)})")
    if len([value for value in inputs if value.can_be_steps and value.rank == 3]) > 1 or len(inputs) > 3:
        raise UncheckableError(
            f"the graph takes {listed(inputs)}: sequences must be one input [rows, width, features], with lengths or "
            "a mask as another"
        )


def _as_options(names: GraphNames) -> str:
    """A reading as the options that choose it."""
    named = {"values": names.sequences, "lengths": names.lengths, "mask": names.mask}
    options = [f"--{option} {name}" for option, name in named.items() if name is not None]
    flags = {"--time-first": names.time_first, "--channels-first": names.channels_first}
    return " ".join([*options, *(flag for flag, is_set in flags.items() if is_set)])
