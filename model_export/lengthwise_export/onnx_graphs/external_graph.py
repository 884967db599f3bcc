"""Reads a user's ONNX graph: which inputs are the steps, the lengths or the mask, and the order of the axes.

The graph stays unchanged; the roles go into the manifest, by which the service feeds it.

A *reading* of a graph is one assignment of roles to its inputs, a `GraphNames`: `x` are the steps with the rows first,
`n` are the lengths. It must fit the ranks, the element types and the shared axis names, and it must run on small
batches (`ReadingTrial`). If several readings run, the user has to choose with options, which the code calls *hints*.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import onnx

from lengthwise.exporter_api.contract import GraphNames, StepInput
from lengthwise.exporter_api.graphs import (
    ENDS_WITHOUT_ROWS,
    ENDS_WITHOUT_ROWS_AT_INT8,
    onnx_graph,
    recurrent_without_rows,
    why_refused,
)
from lengthwise_export.errors import ConfigurationError, UncheckableError
from lengthwise_export.layouts import RIGHT, ROLE_OF, PackedRole, StepLayout, role_of
from lengthwise_export.onnx_graphs.inputs_beside import InputsBeside, read_inputs_beside
from lengthwise_export.onnx_graphs.probing import (
    GraphValue,
    ReadingTrial,
    axis_names_agree,
    candidates,
    listed,
    logits_of,
    open_session,
    with_int64_tokens,
)
from lengthwise_export.onnx_graphs.protos import advice_for_keras
from lengthwise_export.options import BESIDE_HINT, TargetOptions

_NOT_FED: Final = {
    "token_type_ids": "which distinguishes the two texts of a pair, but a sequence is a single text (beside int64 "
    "input_ids, it becomes zeros)",
    "position_ids": "which the model counts from 0 if they are not passed",
}
"""Inputs of Hugging Face's exports that the service does not feed, each with the reason why it is not needed."""

_TWO_TOKENS: Final = StepInput(kind="tokens", vocabulary=2)  # of a trial
_HUGGING_FACE: Final = ("input_ids", "inputs_embeds", "input_values", "input_features")  # names of its steps
_ROWS: Final = re.compile(r"(n|b|bs|rows?|batch.*|.*batch(_size)?)")  # usual names of the axis of rows


@dataclass(frozen=True, slots=True)
class ExternalGraph:
    """A user's graph and the roles of its inputs and outputs."""

    graph: onnx.ModelProto  # The graph, unchanged except that int32 token ids become int64 with a Cast
    steps: StepInput  # Whether a step is numbers or a token id, and how many there are
    names: GraphNames  # The reading
    classes: int
    per_step: bool  # Whether it answers each step: `[rows, width, classes]`
    # Whether it takes the steps alone. Then `names.lengths` is a name that the graph does not have yet
    blind: bool = False
    # The roles of inputs that a check feeds and the service does not, by name
    further_inputs: Mapping[str, PackedRole] = field(default_factory=dict)
    layout: StepLayout = RIGHT  # Where each sequence is in the steps


def read_graph(
    graph: onnx.ModelProto, hints: TargetOptions, *, blind: bool = False, takes_positions: bool = False
) -> ExternalGraph:
    """Finds the roles of a graph's inputs.

    Args:
        graph: The user's graph.
        hints: The user's options.
        blind: Whether the graph may take the steps alone, because it is to be mended.
        takes_positions: Whether it may have an input for the position of each step, which a check feeds.

    Raises:
        UncheckableError: It has neither lengths nor a mask, a frozen axis, or answers that are not float32.
        ConfigurationError: Several readings run, or the meaning of a mask is unclear; the message lists the options.
    """  # noqa: DOC502 - what it calls raises them
    # 1. Inputs and the output
    inputs = _inputs_without_weights(graph)
    logits = logits_of([GraphValue.of(value) for value in graph.graph.output], hints.output)
    if logits.element in ("float16", "float64"):
        raise UncheckableError(f"{logits} is not float32, as answers are: export the graph in float32")
    beside = read_inputs_beside(graph, inputs, hints)
    graph, inputs = beside.graph, beside.inputs
    further_inputs: dict[str, PackedRole] = {}
    if takes_positions:
        further_inputs = {value.name: "positions" for value in inputs if role_of(value.name) == "positions"}
        inputs = [value for value in inputs if value.name not in further_inputs]
    _require_readable(inputs, hints, blind=blind)
    # 2. The readings that fit, those of them that run, and of several the likeliest
    new_lengths = _unused_name(graph) if blind else None
    reader = _Reader(graph, inputs, hints, further_inputs, beside)
    fitting = dict.fromkeys(candidates(inputs, logits, hints, new_lengths))
    readings = [names for names in fitting if axis_names_agree(names, inputs, logits)]
    reader.require_dynamic_axes(readings)
    reader.require_rows_in_recurrent_layers(readings)
    running = [reading for names in readings if (reading := reader.run(names)) is not None]
    if not running:
        raise reader.error_without_reading(readings, new_lengths)
    trial, shape = reader.likeliest(running)
    return ExternalGraph(
        with_int64_tokens(graph, trial.names.sequences),
        reader.step_of(trial.names, is_trial=False),
        trial.names,
        classes=shape[-1],
        per_step=len(shape) == 3,
        blind=reader.takes_steps_alone,
        further_inputs=further_inputs,
    )


def read_packed_graph(graph: onnx.ModelProto, hints: TargetOptions, layout: StepLayout) -> ExternalGraph:
    """Finds the roles of the inputs of a graph that takes packed rows, by their names and by the user's options.

    One input are the steps, another one tells the borders of the sequences; all others have a role by their name.

    Args:
        graph: The user's graph.
        hints: The user's options.
        layout: How sequences are packed. That of the returned graph also says which axes it has, and whether it answers
            each step.

    Raises:
        UncheckableError: An input has no known role, or no form of the answer is that of packed rows.
        ConfigurationError: No input tells the borders, by its name or by the option.
    """  # noqa: DOC502 - what it calls raises it
    # 1. The roles of the inputs; the steps are the one without. If all have one, all are taken for unknown.
    inputs = _inputs_without_weights(graph)
    further_inputs = _roles_by_name(inputs, hints, layout)
    steps, *unknown_inputs = [value for value in inputs if value.name not in further_inputs] or inputs
    if unknown_inputs or steps.name in further_inputs:
        names_of_others = ", ".join(further_inputs)
        raise UncheckableError(f"the graph takes {listed(inputs)}: steps must be one input, beside {names_of_others}")
    is_float = steps.element.startswith("float")
    names = GraphNames(
        sequences=steps.name,
        lengths=None,
        mask="mask",  # a mask that the graph takes is among the further inputs
        logits=logits_of([GraphValue.of(value) for value in graph.graph.output], hints.output).name,
    )
    reader = _Reader(graph, inputs, hints, further_inputs)
    features_axis = steps.axes[-1] if steps.rank > 1 else 1
    step = reader.features_of(steps, features_axis) if is_float else reader.vocabulary_of(steps.name)
    # 2. A trial of this reading
    known_sizes = frozenset(int(size) for weight in graph.graph.initializer for size in weight.dims)
    layout = replace(layout, has_rows_axis=steps.rank == (3 if is_float else 2), known_sizes=known_sizes)
    graph = with_int64_tokens(graph, steps.name)
    trial = ReadingTrial(open_session(graph), names, step, further_inputs, layout)
    shape = trial.shape_at_some_width()
    if shape is None:
        raise UncheckableError(
            f"the inputs {listed(inputs)} do not run as packed rows, or the answer is neither [sequences, classes] nor "
            f"[1, steps, classes]: {trial.error() or 'it has another shape'}"
        )
    return ExternalGraph(
        graph,
        step,
        names,
        classes=shape[-1],
        per_step=len(shape) == 3,
        further_inputs=further_inputs,
        layout=replace(layout, per_step=len(shape) == 3),
    )


def _roles_by_name(inputs: list[GraphValue], hints: TargetOptions, layout: StepLayout) -> dict[str, PackedRole]:
    """The roles of the inputs beside the steps, by their names; among them the one that tells the borders of sequences.

    Raises:
        ConfigurationError: No input tells the borders, by its name or by the option.
    """
    border_role = ROLE_OF[layout.packed or "cu_seqlens"]
    roles = {value.name: role for value in inputs if (role := role_of(value.name)) is not None}
    if layout.packed_input is not None:
        roles = {name: role for name, role in roles.items() if role != border_role}
        roles[layout.packed_input] = border_role
    roles.pop(hints.values or "", None)
    if border_role not in roles.values() or not roles.keys() <= {value.name for value in inputs}:
        raise ConfigurationError(
            f"the graph takes {listed(inputs)}, and none is {layout.packed} by its name: name one with --packed-input"
        )
    return roles


class _RunningReading(NamedTuple):
    """A reading that runs."""

    trial: ReadingTrial
    shape: tuple[int, ...]  # of the answer to a small batch, rows first and classes last


@dataclass(frozen=True, slots=True)
class _Reader:
    """Finds the readings of a graph, from its inputs and the user's hints."""

    graph: onnx.ModelProto
    inputs: list[GraphValue]  # without weights
    hints: TargetOptions
    further_inputs: Mapping[str, PackedRole]  # the roles of inputs that no reading assigns, by name
    beside: InputsBeside | None = None  # what stands beside the first sequence; None for packed rows

    def trial(self, names: GraphNames) -> ReadingTrial:
        """The trial of a reading, in a new session of the graph."""
        session = open_session(with_int64_tokens(self.graph, names.sequences))
        return ReadingTrial(session, names, self.step_of(names), self.further_inputs)

    def run(self, names: GraphNames) -> _RunningReading | None:
        """Tries a reading, with the classes last and, if channels are first, with the classes first.

        Returns the first that runs; None if neither does.
        """
        trial = self.trial(names)
        classes_first = names.model_copy(update={"classes_first": names.channels_first})
        shapes = ((variant, variant.shape_at_some_width()) for variant in (trial, replace(trial, names=classes_first)))
        return next((_RunningReading(variant, shape) for variant, shape in shapes if shape is not None), None)

    def input(self, name: str) -> GraphValue:
        """An input of the graph by its name."""
        return next(value for value in self.inputs if value.name == name)

    def step_of(self, names: GraphNames, *, is_trial: bool = True) -> StepInput:
        """What a step is in a reading, with what stands beside the first sequence.

        In a trial, token ids get a vocabulary of 2, which is enough for it.
        """

        def further_step(value: GraphValue) -> StepInput:
            """What a step of a further sequence is."""
            if value.rank == 3:
                return self.features_of(value, value.axes[2])
            return _TWO_TOKENS if is_trial else self.vocabulary_of(value.name)

        step = self._first_step(names)
        step = step if is_trial or step.kind == "values" else self.vocabulary_of(names.sequences)
        return step if self.beside is None else self.beside.of(step, further_step)

    def _first_step(self, names: GraphNames) -> StepInput:
        """What a step of the first sequence is in a reading; token ids get a vocabulary of 2.

        Raises:
            ConfigurationError: `features` contradicts the graph, or is needed because the axis is dynamic.
        """
        steps, features = self.input(names.sequences), self.hints.features
        if steps.rank == 2:
            if features not in (None, 1) and steps.is_raw:
                raise ConfigurationError(f"--features {features} contradicts the graph: {steps} has one value a step")
            return StepInput(features=1) if steps.is_raw else _TWO_TOKENS
        return self.features_of(steps, steps.axes[1 if names.channels_first else 2])

    def features_of(self, steps: GraphValue, axis: int | str | None) -> StepInput:
        """The step of an input of numbers, with as many features as the option `--features` or the input says.

        `axis` is the axis of features of the input `steps`: its size, or the name or None of a dynamic one.

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
        """The step of an input of token ids: as many ids as the option says, or as the embedding table has rows.

        `tokens` is the name of the input; the table is the one that a Gather indexes directly by it.

        Raises:
            ConfigurationError: Neither the graph nor an option says how many there are.
        """
        tables = {table.name: int(table.dims[0]) for table in self.graph.graph.initializer if table.dims}
        gathers = (node.input for node in self.graph.graph.node if node.op_type == "Gather")
        vocabularies = (tables[table] for table, indices in gathers if indices == tokens and table in tables)
        vocabulary = self.hints.vocabulary or next(vocabularies, None)
        if vocabulary is None:
            raise ConfigurationError(f"{tokens} takes token ids: pass their number with --vocabulary")
        return StepInput(kind="tokens", vocabulary=vocabulary)

    def require_dynamic_axes(self, readings: list[GraphNames]) -> None:
        """Makes sure that some reading has no frozen axis, neither in the steps nor in the lengths or the mask.

        Raises:
            UncheckableError: Rows or width are fixed in all of them; the message says which, and at what size.
        """
        frozen_axes = []  # for each reading
        for names in readings:
            axes = [self.input(names.sequences).axes[axis] for axis in names.open_axes]
            sizes = zip(("rows", "width"), axes, strict=True)
            ends = [value for value in self.inputs if value.name in (names.lengths, names.mask)]
            frozen_axes.append(
                [f"{name} at {size}" for name, size in sizes if isinstance(size, int)]
                + [f"{value.name} at {size}" for value in ends for size in value.axes if isinstance(size, int)]
            )
        if readings and all(frozen_axes):
            raise UncheckableError(
                f"the graph is frozen: {' and '.join(frozen_axes[0])} (it takes {listed(self.inputs)}); name the axes "
                "of rows and width of each input in `dynamic_axes` (or `dynamic_shapes`), and export it again"
            )

    def require_rows_in_recurrent_layers(self, readings: Iterable[GraphNames]) -> None:
        """Makes sure that no recurrent layer can get a batch of 0 rows, with which onnxruntime ends the process.

        Raises:
            UncheckableError: A recurrent layer may get a batch of 0 rows; the message names it.
        """
        unsafe_operators = ENDS_WITHOUT_ROWS | ENDS_WITHOUT_ROWS_AT_INT8
        nodes = onnx_graph.read(self.graph.SerializeToString())
        for names in readings:
            operator = recurrent_without_rows(nodes, names.sequences, names.length_inputs, unsafe_operators)
            if operator is not None:
                raise UncheckableError(why_refused(operator))

    @property
    def takes_steps_alone(self) -> bool:
        """Whether the graph has no input for lengths or a mask."""
        return len(self.inputs) == 1

    def likeliest(self, running: list[_RunningReading]) -> _RunningReading:
        """The likeliest of the readings that run, of which there is at least one.

        A graph that takes the steps alone may run with either order of the axes. In the right one, a row does not
        change the answers of other rows; where both do, the answers are the same.

        Raises:
            ConfigurationError: Several are as likely, or the meaning of its mask is unclear.
        """
        if self.takes_steps_alone:
            running = [reading for reading in running if reading.trial.keeps_rows_apart()] or running
        running = self._likeliest_by_names(running)
        if len(running) > 1 and not self.takes_steps_alone:
            choices = "; ".join(_as_options(reading.trial.names) for reading in running)
            raise ConfigurationError(
                f"the inputs {listed(self.inputs)} can be read in several ways; choose one: {choices}"
            )
        mask = running[0].trial.names.mask
        if mask is not None and "pad" in mask.lower() and self.hints.second in (None, "both"):
            raise ConfigurationError(
                f"{mask} may be true at padding or at valid steps; pass --second mask (true at valid steps) or "
                "--second padding-mask (true at padding)"
            )
        return running[0]

    def _likeliest_by_names(self, running: list[_RunningReading]) -> list[_RunningReading]:
        """The readings that fit the usual names of inputs and axes best; all of them if no name is usual."""

        def has_mask_name(names: GraphNames) -> bool:
            return names.mask is not None and "mask" in names.mask.lower() and "mask" not in names.sequences.lower()

        def has_name_of_hugging_face(names: GraphNames) -> bool:  # by Hugging Face, where rows always come first
            return names.sequences in _HUGGING_FACE and not names.time_first

        def has_name_of_rows(names: GraphNames) -> bool:
            rows = self.input(names.sequences).axes[names.open_axes[0]]
            return isinstance(rows, str) and _ROWS.fullmatch(rows.lower()) is not None

        for fits_names in (has_mask_name, has_name_of_hugging_face, has_name_of_rows):
            running = [reading for reading in running if fits_names(reading.trial.names)] or running
        return running

    def error_without_reading(self, readings: list[GraphNames], new_lengths: str | None) -> UncheckableError:
        """Returns the error for a graph of which none of these readings runs, with advice or onnxruntime's error.

        `new_lengths` is the name of the input of lengths that a mend will add to a graph that takes the steps alone;
        None for other graphs.
        """
        inputs, hints = self.inputs, self.hints
        # 1. It may run with the features before the steps
        if not (hints.channels_first or hints.time_first):
            channels_first_reader = replace(self, hints=hints.model_copy(update={"channels_first": True}))
            logits = GraphValue.of(self.graph.graph.output[0])
            for names in candidates(inputs, logits, channels_first_reader.hints, new_lengths):
                steps = self.input(names.sequences)
                has_features = steps.rank == 3 and (isinstance(steps.axes[1], int) or hints.features)
                if has_features and channels_first_reader.trial(names).shape_at_some_width() is not None:
                    return UncheckableError(
                        f"the inputs {listed(inputs)} run with steps as [rows, features, width]: if that is right, "
                        "pass --channels-first"
                    )
        # 2. It may run at one size only
        trials = [self.trial(reading) for reading in readings]
        for trial in trials:
            trial.require_dynamic_inside(advice=advice_for_keras(self.graph))
        # 3. An input may be lengths in another unit
        if floats_per_row := [value for value in inputs if value.rank == 1 and value.element.startswith("float")]:
            return UncheckableError(
                f"{floats_per_row[0]} are probably lengths as shares of the longest, not in steps: export the graph "
                "with int64 lengths, and divide them by the width inside "
                f"(it has {listed(inputs)}; lengths are int32 or int64)"
            )
        # 4. An input may have a type that the service does not feed
        if of_other_types := [value for value in inputs if value.element not in ("float32", "int64", "int32", "bool")]:
            return UncheckableError(
                f"the service cannot feed {of_other_types[0]}: steps are float32, token ids and lengths int64 or "
                "int32, masks bool, int64, int32 or float32; declare it as one of these, with a Cast behind it"
            )
        error_text = next((f" ({error})" for trial in trials if (error := trial.error())), "")
        return UncheckableError(
            f"no reading of the inputs {listed(inputs)} runs: name them with --values and --lengths or --mask, and "
            f"pass --time-first or --channels-first if steps are not [rows, width, features]{error_text}"
        )


def _inputs_without_weights(graph: onnx.ModelProto) -> list[GraphValue]:
    """The inputs that a caller feeds: in old graphs, weights are inputs as well."""
    weights = {initializer.name for initializer in graph.graph.initializer}
    return [GraphValue.of(value) for value in graph.graph.input if value.name not in weights]


def _unused_name(graph: onnx.ModelProto) -> str:
    """A name for a new input: `lengths`, or a similar name if the graph has a value of that name."""
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
    named = (hints.values, hints.lengths, hints.mask)
    for name, reason in _NOT_FED.items():
        if any(value.name == name for value in inputs) and name not in named:
            raise UncheckableError(f"the graph takes {name}, {reason}: export it without that ({listed(inputs)})")
    if len([value for value in inputs if value.can_be_steps and value.rank == 3]) > 1 or len(inputs) > 3:
        raise UncheckableError(
            f"the graph takes {listed(inputs)}: sequences must be one input [rows, width, features], with lengths or "
            f"a mask as another; {BESIDE_HINT}"
        )


def _as_options(names: GraphNames) -> str:
    """The options of a command that choose a reading, such as `--values x --lengths n --time-first`."""
    inputs = {"values": names.sequences, "lengths": names.lengths, "mask": names.mask}
    options = [f"--{option} {name}" for option, name in inputs.items() if name is not None]
    flags = {"--time-first": names.time_first, "--channels-first": names.channels_first}
    return " ".join([*options, *(flag for flag, is_set in flags.items() if is_set)])
