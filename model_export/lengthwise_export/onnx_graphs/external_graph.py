"""Reads a user's ONNX graph: which inputs are the steps, the lengths or the mask, and the order of the axes.

The graph stays unchanged; the roles go into the manifest, by which the service feeds it. A reading (an assignment of
roles) must fit the ranks, the element types and the shared axis names, and it must run. If several run, the user has to
choose with options.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import onnx

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise.runtime.onnx import data_dependence, onnx_graph
from lengthwise_export.errors import UncheckableError
from lengthwise_export.onnx_graphs.probing import (
    GraphValue,
    agrees,
    candidates,
    listed,
    logits_of,
    open_session,
    require_dynamic_inside,
    rows_are_independent,
    shape_at_some_width,
    what_it_raises,
    with_int64_tokens,
)
from lengthwise_export.onnx_graphs.protos import keras_cure
from lengthwise_export.options import TargetOptions

if TYPE_CHECKING:
    import onnxruntime

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


def read_graph(graph: onnx.ModelProto, hints: TargetOptions, *, blind: bool = False) -> ExternalGraph:
    """Finds the roles of a graph's inputs; a `blind` graph may take the steps alone.

    Errors: `UncheckableError` (neither lengths nor a mask, a frozen axis), `ConfigurationError` (several readings run).
    """
    weights = {initializer.name for initializer in graph.graph.initializer}
    inputs = [GraphValue.of(value) for value in graph.graph.input if value.name not in weights]
    outputs = [GraphValue.of(value) for value in graph.graph.output]
    logits = logits_of(outputs, None if hints.output is None else str(hints.output))
    if logits.element in ("float16", "float64"):
        raise UncheckableError(f"{logits} is not float32, as answers are: export the graph in float32")
    _require_readable(inputs, hints, blind=blind)
    new_lengths = _unused_name(graph) if blind else None
    readings = dict.fromkeys(candidates(inputs, logits, hints, new_lengths))
    names = [names for names in readings if agrees(names, inputs, logits)]
    _require_dynamic_axes(names, inputs)
    _require_rows_in_recurrent_layers(graph, names)
    tried = (_reading_that_runs(graph, candidate, inputs, hints) for candidate in names)
    running = [reading for reading in tried if reading is not None]
    running = _by_their_names([each for each in running if each.is_batch] or running, inputs)
    if len(inputs) == 1:
        running = running[:1]  # either order of axes gives the same answers
    if not running:
        _require_order_of_axes(graph, inputs, hints, new_lengths)
        for candidate in names:
            session, steps = _opened(graph, candidate, inputs, hints)
            require_dynamic_inside(session, candidate, steps, cure=keras_cure(graph))
        raise UncheckableError(_why_none_runs(graph, names, inputs, hints))
    if len(running) > 1:
        choices = "; ".join(_as_options(reading.names) for reading in running)
        raise ConfigurationError(f"the inputs {listed(inputs)} can be read in several ways; choose one: {choices}")
    (reading,) = running
    mask = reading.names.mask
    if mask is not None and "pad" in mask.lower() and hints.second in (None, "both"):
        raise ConfigurationError(
            f"{mask} may be true at padding or at valid steps; pass --second mask (true at valid steps) or "
            "--second padding-mask (true at padding)"
        )
    return ExternalGraph(
        reading.graph,
        _steps(graph, reading.names, inputs, hints),
        reading.names,
        classes=reading.shape[-1],
        per_step=len(reading.shape) == 3,
        blind=len(inputs) == 1,
    )


@dataclass(frozen=True, slots=True)
class _InputReading:
    """A reading that runs, the graph for it, the shape of the answer, rows first, and whether its rows are sequences.

    They are if an answer depends on its own row only.
    """

    names: GraphNames
    graph: onnx.ModelProto
    shape: tuple[int, ...]
    is_batch: bool


def _opened(
    graph: onnx.ModelProto, names: GraphNames, inputs: list[GraphValue], hints: TargetOptions
) -> tuple[onnxruntime.InferenceSession, StepInput]:
    """A session to try a reading with, and the kind of a step in it."""
    return open_session(with_int64_tokens(graph, names.sequences)), _probed(names, inputs, hints)


def _reading_that_runs(
    graph: onnx.ModelProto, names: GraphNames, inputs: list[GraphValue], hints: TargetOptions
) -> _InputReading | None:
    session, steps = _opened(graph, names, inputs, hints)
    for read_as in (names, names.model_copy(update={"classes_first": names.channels_first})):
        shape = shape_at_some_width(session, read_as, steps)
        if shape is not None:
            is_batch = len(inputs) > 1 or rows_are_independent(session, read_as, steps)
            return _InputReading(read_as, with_int64_tokens(graph, names.sequences), shape, is_batch)
    return None


def _require_rows_in_recurrent_layers(graph: onnx.ModelProto, readings: Iterable[GraphNames]) -> None:
    """Makes sure that no recurrent layer can get a batch without rows: onnxruntime would end the process."""
    ending = data_dependence.ENDS_WITHOUT_ROWS | data_dependence.ENDS_WITHOUT_ROWS_AT_INT8
    nodes = onnx_graph.read(graph.SerializeToString())
    for names in readings:
        others = [name for name in (names.lengths, names.mask) if name is not None]
        operator = data_dependence.recurrent_without_rows(nodes, names.sequences, others, ending)
        if operator is not None:
            raise UncheckableError(data_dependence.why_refused(operator))


def _by_their_names(running: list[_InputReading], inputs: list[GraphValue]) -> list[_InputReading]:
    """Keeps the readings that fit the names of inputs and axes best; all of them if the names do not help."""
    axes = {value.name: value.axes for value in inputs}

    def mask_is_named_so(names: GraphNames) -> bool:
        return names.mask is not None and "mask" in names.mask.lower() and "mask" not in names.sequences.lower()

    def ids_are_named_so(names: GraphNames) -> bool:  # by Hugging Face, where rows always come first
        return names.sequences in _HUGGING_FACE and not names.time_first

    def rows_are_named_so(names: GraphNames) -> bool:
        rows = axes[names.sequences][names.open_axes[0]]
        return isinstance(rows, str) and _ROWS.fullmatch(rows.lower()) is not None

    for speaks_for in (mask_is_named_so, ids_are_named_so, rows_are_named_so):
        running = [reading for reading in running if speaks_for(reading.names)] or running
    return running


def _unused_name(graph: onnx.ModelProto) -> str:
    """`lengths`, or a similar name if the graph has a value of that name."""
    used = {value.name for value in graph.graph.input} | {value.name for value in graph.graph.initializer}
    used |= {name for node in graph.graph.node for name in (*node.input, *node.output)}
    names = itertools.chain(["lengths", "sequence_lengths"], (f"lengths_{number}" for number in itertools.count()))
    return next(name for name in names if name not in used)


def _require_order_of_axes(
    graph: onnx.ModelProto, inputs: list[GraphValue], hints: TargetOptions, new_lengths: str | None
) -> None:
    """Names the option for a graph that runs only with features before steps."""
    if hints.channels_first or hints.time_first:
        return
    turned = hints.model_copy(update={"channels_first": True})
    for candidate in candidates(inputs, GraphValue.of(graph.graph.output[0]), turned, new_lengths):
        steps = next(value for value in inputs if value.name == candidate.sequences)
        if steps.rank == 3 and (isinstance(steps.axes[1], int) or hints.features):
            session, probed = _opened(graph, candidate, inputs, turned)
            if shape_at_some_width(session, candidate, probed) is not None:
                raise UncheckableError(
                    f"the inputs {listed(inputs)} run with steps as [rows, features, width]: if that is right, pass "
                    "--channels-first"
                )


def _why_none_runs(
    graph: onnx.ModelProto, names: list[GraphNames], inputs: list[GraphValue], hints: TargetOptions
) -> str:
    """The error for a graph of which no reading runs, with a hint or onnxruntime's error."""
    shares = [value for value in inputs if value.rank == 1 and value.element.startswith("float")]
    if shares:
        return (
            f"{shares[0]} are probably lengths as shares of the longest, not in steps: export the graph with int64 "
            f"lengths, and divide them by the width inside (it has {listed(inputs)}; lengths are int32 or int64)"
        )
    tried = ((one, *_opened(graph, one, inputs, hints)) for one in names)
    raised = next((why for one, session, steps in tried if (why := what_it_raises(session, one, steps))), None)
    return (
        f"no reading of the inputs {listed(inputs)} runs: name them with --values and --lengths or --mask, and pass "
        "--time-first or --channels-first if steps are not [rows, width, features]" + (f" ({raised})" if raised else "")
    )


def _require_readable(inputs: list[GraphValue], hints: TargetOptions, *, blind: bool) -> None:
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


def _require_dynamic_axes(readings: list[GraphNames], inputs: list[GraphValue]) -> None:
    by_name = {value.name: value for value in inputs}
    frozen: list[str] = []
    for names in readings:
        axes = [by_name[names.sequences].axes[axis] for axis in names.open_axes]
        sizes = [
            f"{axis} at {size}" for axis, size in zip(("rows", "width"), axes, strict=True) if isinstance(size, int)
        ]
        if not sizes:
            return
        frozen = frozen or sizes
    if frozen:
        raise UncheckableError(
            f"the graph is frozen: {' and '.join(frozen)} (it takes {listed(inputs)}); export it again with dynamic "
            "axes for rows and width"
        )


def _probed(names: GraphNames, inputs: list[GraphValue], hints: TargetOptions) -> StepInput:
    """The kind of a step, to try a reading with; for tokens, a vocabulary of 2 is enough."""
    steps = next(value for value in inputs if value.name == names.sequences)
    if steps.rank == 2:
        if hints.features not in (None, 1) and steps.is_raw:
            raise ConfigurationError(f"--features {hints.features} contradicts the graph: {steps} has one value a step")
        return StepInput(features=1) if steps.is_raw else StepInput(kind="tokens", vocabulary=2)
    axis = steps.axes[1 if names.channels_first else 2]
    features = axis if isinstance(axis, int) else hints.features
    if features is None:
        raise ConfigurationError(f"{steps} has a dynamic number of features: pass it with --features")
    if hints.features not in (None, features):
        raise ConfigurationError(f"--features {hints.features} contradicts the graph: {steps}")
    return StepInput(features=features)


def _steps(graph: onnx.ModelProto, names: GraphNames, inputs: list[GraphValue], hints: TargetOptions) -> StepInput:
    steps = _probed(names, inputs, hints)
    if steps.kind == "values":
        return steps
    vocabulary = hints.vocabulary or _vocabulary(graph, names.sequences)
    if vocabulary is None:
        raise ConfigurationError(f"{names.sequences} takes token ids: pass their number with --vocabulary")
    return StepInput(kind="tokens", vocabulary=vocabulary)


def _vocabulary(graph: onnx.ModelProto, tokens: str) -> int | None:
    """The number of rows of the embedding table, if the tokens are used directly as its index."""
    tables = {initializer.name: initializer.dims[0] for initializer in graph.graph.initializer if initializer.dims}
    for node in graph.graph.node:
        if node.op_type == "Gather" and node.input[1] == tokens and node.input[0] in tables:
            return int(tables[node.input[0]])
    return None


def _as_options(names: GraphNames) -> str:
    named = {"values": names.sequences, "lengths": names.lengths, "mask": names.mask}
    options = [f"--{option} {name}" for option, name in named.items() if name is not None]
    flags = [flag for flag in ("time_first", "channels_first") if getattr(names, flag)]
    return " ".join([*options, *(f"--{flag.replace('_', '-')}" for flag in flags)])
