"""Mends a graph: padding is kept out wherever an operator mixes steps. Read this file first.

    graph -> prepare -> follow each node, with a rule for its operator -> mended graph

A mended graph answers every row of a padded batch as the original answers that sequence alone, unpadded. Each value is
followed with the meaning of its axes (`values`): rows, time, or a fixed size; each axis of time has its own size as a
function of the length, a table for the range of lengths that the original accepts. The rules put a mask, the lengths or
the row's own positions in front of operators that mix steps. A graph is mended as a whole or refused: an operator
without a rule, or axes that cannot be told apart, end the mend with `UnmendableError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper

from lengthwise.runtime.manifest import GraphNames, StepInput
from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending.hiding_masks import hiding_masks, opened
from lengthwise_export.mending.mender import RULES, Mender
from lengthwise_export.mending.node_mender import LengthsRestricted, StepsHidden
from lengthwise_export.mending.rules import (  # noqa: F401  # each registers its rules
    arithmetic,
    convolution,
    indexing,
    joining,
    loops,
    reductions,
    shapes,
)
from lengthwise_export.mending.values import (
    ROW_COUNTS,
    DataTensor,
    KnownTensor,
    Size,
    Value,
    constant_of,
    groups_of_one,
    is_pure,
    run_node,
    run_on_tables,
)
from lengthwise_export.mending.writer import Writer
from lengthwise_export.onnx_graphs.protos import (
    OF_ONNX,
    advice_for_keras,
    all_names,
    keep_needed,
    names_in,
    opset_of,
    refill,
)
from lengthwise_export.tracing.source_lines import CodeLocation, location_of_node, operator_name

_MIN_LENGTHS: Final = 64  # at least so many lengths are followed, so that no two sizes agree by chance
_LOWEST_OPSET: Final = 15  # the first opset in which Shape can return a single axis
_CONVERTED_OPSET: Final = 17
_REASONS: Final = {
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli": "draws random numbers, so "
    "the original does not give the same answer twice: export it in evaluation mode",
    "DFT STFT MelWeightMatrix": "transforms the whole width at once, and its frequencies depend on the width: "
    "transform outside of the model",
    "NonZero Compress Unique NonMaxSuppression": "gives as many indices as the data say, so no axis of time can be "
    "followed behind it",
    "If SequenceMap": "has a graph of its own inside: write the loop as a layer (LSTM, GRU, Conv), or the branch as "
    "Where",
    "Upsample GridSample AffineGrid": "resamples the steps to another number of steps, which depends on the width",
    "DynamicQuantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul": "takes one scale for the whole batch: mend the "
    "float32 graph, and quantise it with a fixed scale, or export with --precision int8",
}
"""By operator types, separated by blanks: why they cannot be mended."""

_OUTPUTS: Final = ("rows fixed", "rows time", "rows time fixed", "rows fixed time", "time rows fixed")
"""The kinds of dims that an output may have, in order."""


def mend(graph: ModelProto, names: GraphNames, steps: StepInput, *, max_length: int) -> Mended:
    """Rewrites a graph of opset 11 or later so that padding cannot reach an answer; `proof` shows whether it does.

    The mend begins again each time it finds that the original accepts fewer lengths, or that a mask that hides steps by
    their values has to be true everywhere.

    Args:
        graph: The original, which stays as it is. The mended graph has an input for lengths, too.
        names: The names of its inputs and outputs.
        steps: What a step of its sequences is: a token, or features.
        max_length: The longest sequence; longer ones may be accepted, too.

    Raises:
        UnmendableError: An operator cannot be mended; the error names it, with the reason.
    """
    shortest, longest = 1, max(max_length, _MIN_LENGTHS)
    opened_masks: dict[str, float] = {}
    while True:
        try:
            return _mended(graph, names, steps, np.arange(shortest, longest + 1, dtype=np.int64), opened_masks)
        except LengthsRestricted as restriction:
            shortest, longest = restriction.args
        except StepsHidden as masks_to_open:
            opened_masks |= masks_to_open.args[0]
        except UnmendableError as error:
            loops_and_branches = {shown_operator(node) for node in graph.graph.node if node.op_type in ("Loop", "If")}
            cure = advice_for_keras(graph) if error.operator in loops_and_branches else ""
            raise UnmendableError(error.operator, error.reason + cure, error.location) from error


def _mended(
    graph: ModelProto,
    names: GraphNames,
    steps: StepInput,
    lengths: NDArray[np.int64],
    opened_masks: Mapping[str, float],
) -> Mended:
    """Tries to mend a graph for a range of lengths.

    Args:
        graph: The original, which stays as it is.
        names: The names of its inputs and outputs.
        steps: What a step of its sequences is.
        lengths: The lengths to follow, ascending without a gap.
        opened_masks: By the names of masks that are made true everywhere, the number that marks the steps each hides.

    Raises:
        LengthsRestricted: The original accepts fewer lengths; `mend` begins again with these.
        StepsHidden: Further masks are to be made true everywhere; `mend` begins again with them.
        UnmendableError: An operator cannot be mended.
    """  # noqa: DOC502 - the rules raise them
    mended = _prepared(graph)
    masks = hiding_masks(mended, names.sequences)
    without_hiding = opened(mended, opened_masks) if opened_masks else None
    mended = mended if without_hiding is None else deepcopy(without_hiding)
    # Only outputs with answers are mended, and what they depend on.
    outputs = mended.graph.output
    refill(outputs, (value for value in outputs if value.name in (names.logits, names.attention)))
    keep_needed(mended.graph)

    mender = _mender(mended, names, steps, lengths)
    mender.hiding_masks = masks
    mender.always_true_masks = {name for name, mask in masks.items() if mask.name in opened_masks}
    changes = [change for node in mended.graph.node for change in _follow(mender, node)]
    _replace_nodes(mended, mender)
    return Mended(
        graph=mended,
        changes=tuple(changes),
        min_length=int(lengths[0]),
        max_length=int(lengths[-1]),
        hiding=tuple(sorted(set(opened_masks.values()))),
        without_hiding=without_hiding,
    )


def _mender(model: ModelProto, names: GraphNames, steps: StepInput, lengths: NDArray[np.int64]) -> Mender:
    """The mender of a prepared graph, which knows its inputs and constants.

    It also adds an input for the lengths to the graph, if the graph has none.

    Args:
        model: The graph.
        names: The names of its inputs and outputs.
        steps: What a step of its sequences is.
        lengths: The lengths to follow, ascending without a gap.
    """
    lengths_name = names.lengths or "lengths"
    inputs = {value.name: value for value in model.graph.input}
    lengths_input = inputs.setdefault(
        lengths_name, helper.make_tensor_value_info(lengths_name, TensorProto.INT32, ["rows"])
    )
    writer = Writer(
        lengths_name,
        names.sequences,
        names.open_axes[1],
        all_names(model.graph) | {lengths_name},
        has_int32_lengths=lengths_input.type.tensor_type.elem_type == TensorProto.INT32,
        table_lengths=lengths,
    )
    mender = Mender(writer, lengths, opset=opset_of(model))
    mender.follow = _follow
    mender.used_names = {*names_in(model.graph.node), *(value.name for value in model.graph.output)}
    _set_inputs(mender, names, steps, inputs, lengths_name)
    for tensor in model.graph.initializer:
        mender.values[tensor.name] = mender.constant_tensor(tensor.name, numpy_helper.to_array(tensor))
    refill(model.graph.input, inputs.values())
    return mender


def _replace_nodes(model: ModelProto, mender: Mender) -> None:
    """Puts the nodes that the rules wrote in the place of the graph's nodes, and declares its outputs anew."""
    refill(model.graph.output, (_output(mender, value) for value in model.graph.output))  # may write nodes, too
    refill(model.graph.node, mender.writer.nodes)
    refill(model.graph.value_info, ())
    model.graph.initializer.extend(mender.writer.constants)
    model.graph.name = model.graph.name or "mended"
    keep_needed(model.graph)
    onnx.checker.check_model(model)


def _prepared(graph: ModelProto) -> ModelProto:
    """A copy of a graph in the form that the rules know: without local functions, of opset 15 or later.

    Raises:
        UnmendableError: The graph is of an older opset, and cannot be converted.
    """
    copy = deepcopy(graph)
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    if opset_of(copy) < _LOWEST_OPSET:
        try:  # in that opset, axes and sizes are inputs of all operators but reductions
            copy = onnx.version_converter.convert_version(copy, _CONVERTED_OPSET)
        except Exception as error:  # the converter's own kinds
            why = f"cannot be converted to opset {_CONVERTED_OPSET} ({error}): export it there"
            raise UnmendableError(f"opset {opset_of(graph)}", why) from error
    constants = {tensor.name for tensor in copy.graph.initializer}  # old graphs list them as inputs, too
    refill(copy.graph.input, (value for value in copy.graph.input if value.name not in constants))
    return copy


def _set_inputs(
    mender: Mender, names: GraphNames, steps: StepInput, inputs: Mapping[str, onnx.ValueInfoProto], lengths: str
) -> None:
    """Describes the inputs of the graph to the mender: which of their axes are rows and time.

    Args:
        mender: The mender, which gets the descriptions.
        names: The names of the graph's inputs, and the order of their axes.
        steps: What a step of its sequences is.
        inputs: The inputs, by name.
        lengths: The name of the input with the lengths.

    Raises:
        UnmendableError: The graph has another input.
    """
    # As a table, the time is the length itself, with one row and with many.
    time = Size(np.broadcast_to(mender.lengths, (ROW_COUNTS, mender.length_count)))
    features = () if steps.kind == "tokens" or not names.features_axis else (mender.fixed_size(steps.features or 1),)
    order = (mender.rows, time) if names.open_axes[0] == 0 else (time, mender.rows)
    has_time_last = names.channels_first and features
    sizes = {
        names.mask: order,
        names.sequences: (mender.rows, *features, time) if has_time_last else (*order, *features),
        lengths: (mender.rows,),
    }
    for name, value in inputs.items():
        if name not in sizes:
            raise UnmendableError(name, "is an input that is neither the steps, the lengths nor the mask")
        mender.values[name] = DataTensor(name, value.type.tensor_type.elem_type, groups_of_one(sizes[name]))
        (mender.depends_on_steps if name == names.sequences else mender.depends_on_lengths).add(name)
    mender.unchanged_steps |= mender.depends_on_steps


def _follow(mender: Mender, node: NodeProto) -> list[MendedOperator]:
    """Mends one node: writes what stands for it in the mended graph, and puts its outputs into `mender.values`.

    Returns:
        The operator in a list, if the mend changes it; an empty list if padding does not reach its output.

    Raises:
        UnmendableError: It cannot be mended; the error names it, with its line of code.
    """
    mender.node, mender.causes = node, []
    before = len(mender.writer.nodes)
    try:
        computed = _computed_from_sizes(mender, node)
        outputs = _outputs_by_rule(mender, node) if computed is None else {node.output[0]: computed}
    except UnmendableError as error:
        if error.operator:  # it is that of a node in the body of this one, a loop
            raise
        raise UnmendableError(shown_operator(node), error.reason, location_of_node(node)) from error
    mender.values.update(outputs)
    # What the outputs depend on; a shape depends on neither the steps nor the lengths, but on the width.
    if node.op_type not in ("Shape", "Size"):
        for dependent in (mender.depends_on_lengths, mender.depends_on_steps):
            if dependent.intersection(node.input):
                dependent.update(node.output)
    if node.op_type in ("Cast", "Identity") and node.input[0] in mender.unchanged_steps:
        mender.unchanged_steps.update(node.output)
    if not mender.causes:
        return []
    after = tuple(map(_text, mender.writer.nodes[before:]))
    location = location_of_node(node)
    return [MendedOperator(shown_operator(node), node.op_type, location, mender.causes[0], (_text(node),), after)]


def shown_operator(node: NodeProto) -> str:
    """A node as text: its module or its own name, and its operator type, such as `Conv encoder.conv`."""
    name = operator_name(node)
    return name if node.op_type in name else f"{node.op_type} {name or node.output[0]}"


def _text(node: NodeProto) -> str:
    """A node as graph text (ONNX's textual syntax), without its name and metadata."""
    fields = {name: getattr(node, name) for name in ("op_type", "domain", "input", "output", "attribute")}
    return str(onnx.printer.to_text(NodeProto(**fields))).strip()


def _outputs_by_rule(mender: Mender, node: NodeProto) -> Mapping[str, Value]:
    """Mends a node by the rule for its operator type; refuses an operator that has no rule, with the reason.

    Returns:
        What is known of its outputs, by their names.
    """
    if (reason := next((why for names, why in _REASONS.items() if node.op_type in names.split()), None)) is not None:
        mender.refuse(reason)
    mender.refuse_if(node.domain not in OF_ONNX, f"is an operator of {node.domain}, not of ONNX")
    mender.refuse_if(node.op_type not in RULES, "is an operator that has no rule for mending")
    outputs = RULES[node.op_type](mender)
    return outputs if isinstance(outputs, Mapping) else {node.output[0]: outputs}


def _computed_from_sizes(mender: Mender, node: NodeProto) -> KnownTensor | None:
    """The output of a node whose inputs are all known for each length (a `KnownTensor`): it is then known, too.

    It is computed for each length here; the mended graph gets a copy of the node, which computes it for the width of
    the batch.

    Returns:
        The output; None if an input is data, or the node has to be mended by a rule: then nothing was written.
    """
    values = [mender.values[name] if name else None for name in node.input]
    inputs = [value for value in values if not isinstance(value, DataTensor)]
    has_own_rule = node.op_type in ("Shape", "ConstantOfShape", "Range") or not is_pure(node)
    if len(inputs) < len(values) or len(node.output) != 1 or has_own_rule:
        return None
    tables = [None if value is None else value.table for value in inputs]
    # 1. From constants, a constant: by any operator
    results = None
    if all(value is None or value.is_constant for value in inputs):
        results = run_node(node, [None if table is None else table[0, 0] for table in tables])
    # 2. Else a table, by an operator that can be run on tables; it may be constant, too
    table = run_on_tables(node, tables) if results is None and inputs else None
    constant = constant_of(table) if results is None else results[0]
    if constant is not None:
        output = mender.constant_tensor(node.output[0], constant)
    elif table is not None:
        output = KnownTensor(node.output[0], table)
    else:
        return None
    mender.copy_node(["" if value is None else value.name for value in inputs])
    return output


def _output(mender: Mender, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """The declaration of an output of the mended graph; refuses one that is no answer.

    Where the output has another name in the mended graph, this also writes an Identity that gives it its old name.

    Raises:
        UnmendableError: It does not depend on the steps, has other axes than an answer, or another number of steps.
    """
    tensor = mender.values[value.name]
    if isinstance(tensor, KnownTensor) or tensor.rows_dim is None:
        raise UnmendableError(value.name, "does not depend on the steps")
    kinds = ["rows" if size.is_rows else "time" if size.is_time else "fixed" for size in tensor.dim_sizes]
    if not tensor.has_original_axes or " ".join(kinds) not in _OUTPUTS:
        raise UnmendableError(value.name, f"is {kinds}, and must be [rows, classes] or [rows, time, classes]")
    for size in tensor.dim_sizes:
        if size.is_time and not np.array_equal(size.by_length, mender.lengths):
            raise UnmendableError(value.name, "answers another number of steps than the sequence has")
    if tensor.name != value.name:  # a node that still has the output's name gets another one
        for node in mender.writer.nodes:
            if value.name in node.output:
                node.output[list(node.output).index(value.name)] = mender.writer.name(f"{value.name}_before")
        mender.writer.nodes.append(helper.make_node("Identity", [tensor.name], [value.name]))
    shape = ["rows" if size.is_rows else "width" if size.is_time else size.fixed for size in tensor.dim_sizes]
    return helper.make_tensor_value_info(value.name, tensor.dtype, shape)


@dataclass(frozen=True, slots=True)
class MendedOperator:
    """One operator that a mend changed."""

    operator: str  # Its name, as `shown_operator` gives it
    kind: str  # Its operator type
    location: CodeLocation | None  # The line of code that it comes from, if the graph says it
    cause: str  # How padding reached its output
    before: tuple[str, ...]  # The operator as graph text, a line for each node
    after: tuple[str, ...]  # The nodes of the mended graph that replace it, as graph text


@dataclass(frozen=True, slots=True)
class Mended:
    """A mended graph."""

    graph: onnx.ModelProto  # The graph; it takes the steps and the lengths
    changes: tuple[MendedOperator, ...]  # The operators that it changes, in order of execution
    min_length: int  # The shortest sequence that the original accepts, derived from its kernels and slices
    max_length: int  # The longest, derived from its tables of positions; or more than was asked for
    # The numbers with which the original hides a step, if all its values are that one; the mended graph takes such a
    # step for data
    hiding: tuple[float, ...] = ()
    # The original, changed to take such steps for data, too; None if it hides none
    without_hiding: onnx.ModelProto | None = None
