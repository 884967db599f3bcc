"""Mends a graph: padding is kept out wherever an operator mixes steps. Read this file first.

    graph -> prepare -> follow each node, with a rule for its operator -> mended graph

A mended graph answers every row of a padded batch as the original answers that sequence alone, unpadded. Each value is
followed with the meaning of its axes (`values`): rows, time, or a fixed size; each axis of time has its own size as a
function of the length, a table for the range of lengths that the original accepts. The rules put a mask, the lengths or
the row's own positions in front of operators that mix steps. A graph is mended as a whole or refused: an operator
without a rule, or axes that cannot be told apart, end the mend with `UnmendableError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, inliner, numpy_helper

from lengthwise.exporter_api.contract import STATIC, GraphNames, StepInput
from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending.engine import RULES, MendedOperator, Rule, follow, shown_operator
from lengthwise_export.mending.hiding_masks import HidingMask, StepsHidden, hiding_masks, opened
from lengthwise_export.mending.mender import LengthsRestricted, Mender
from lengthwise_export.mending.rules import (  # noqa: F401  # each registers its rules
    arithmetic,
    convolution,
    indexing,
    joining,
    loops,
    reductions,
    shapes,
)
from lengthwise_export.mending.values import ROW_COUNTS, DataTensor, KnownTensor, Size, groups_of_one
from lengthwise_export.mending.writer import Writer
from lengthwise_export.onnx_graphs.protos import (
    AXES_ARE_INPUTS,
    advice_for_keras,
    all_names,
    keep_needed,
    names_in,
    opset_of,
    refill,
)

_MIN_LENGTHS: Final = 64  # at least so many lengths are followed, so that no two sizes agree by chance
_LOWEST_OPSET: Final = 15  # the first opset in which Shape can return a single axis
_CONVERTED_OPSET: Final = 17
_OTHER_INPUT: Final = "is an input that is neither the steps, the lengths nor the mask"
_OF_SEVERAL: Final = (
    "is of a further sequence, and a mend masks one sequence only: mask each by its own lengths in the model, where "
    "`lengthwise check` says, and export it without --mend"
)
_OUTPUTS: Final = ("rows fixed", "rows time", "rows time fixed", "rows fixed time", "time rows fixed")
"""The kinds of dims that an output may have, in order."""


def mend(graph: ModelProto, names: GraphNames, steps: StepInput, *, max_length: int, min_length: int = 1) -> Mended:
    """Rewrites a graph of opset 11 or later so that padding cannot reach an answer; `proof` shows whether it does.

    The mend begins again each time it finds that the original accepts fewer lengths; or that a mask which the original
    makes of the values, as `x != 0`, has to become true everywhere, so that it hides no valid step.

    Args:
        graph: The original, which stays as it is. The mended graph has an input for lengths, too.
        names: The names of its inputs and outputs.
        steps: What a step of its sequences is: a token, or features.
        max_length: The longest sequence; longer ones may be accepted, too.
        min_length: The shortest one; the original may accept only longer ones.

    Raises:
        UnmendableError: An operator cannot be mended; the error names it, with the reason.
    """
    shortest, longest = min_length, max(max_length, min_length - 1 + _MIN_LENGTHS)
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
        opened_masks: By the name of each mask that is made true everywhere, the number that marks the steps it hides.

    Raises:
        LengthsRestricted: The original accepts fewer lengths; `mend` begins again with these.
        StepsHidden: Further masks are to be made true everywhere; `mend` begins again with them.
        UnmendableError: An operator cannot be mended.
    """  # noqa: DOC502 - the rules raise them
    mended = prepared(graph)
    masks = hiding_masks(mended, names.sequences, opened_masks)
    without_hiding = opened(mended, opened_masks) if opened_masks else None
    mended = mended if without_hiding is None else deepcopy(without_hiding)
    # Only the outputs that are answers are mended, with the nodes that they depend on.
    outputs = mended.graph.output
    refill(outputs, (value for value in outputs if value.name in (names.logits, names.attention)))
    keep_needed(mended.graph)

    mender = mender_of(mended, names, steps, lengths, masks)
    changes = [change for node in mended.graph.node for change in follow(mender, node)]
    replace_nodes(mended, mender)
    return Mended(
        graph=mended,
        changes=tuple(changes),
        min_length=int(lengths[0]),
        max_length=int(lengths[-1]),
        hiding=tuple(sorted(set(opened_masks.values()))),
        without_hiding=without_hiding,
    )


def mender_of(
    model: ModelProto,
    names: GraphNames,
    steps: StepInput,
    lengths: NDArray[np.int64],
    masks: Mapping[str, HidingMask],
    *,
    kinds: tuple[type[Mender], type[Writer]] = (Mender, Writer),
    rules: Mapping[str, Rule] = RULES,
) -> Mender:
    """Makes a mender for a prepared graph, which knows the graph's inputs and constants; its node is empty.

    If the graph has no input for lengths, this adds one to it.

    Args:
        model: The graph.
        names: The names of its inputs and outputs.
        steps: What a step of its sequences is.
        lengths: The lengths to follow, ascending without a gap.
        masks: By name, the values of the graph that are masks which hide steps by their values.
        kinds: The classes of the mender and of its writer.
        rules: The rule for each operator type.
    """
    lengths_name = names.lengths or "lengths"
    inputs = {value.name: value for value in model.graph.input}
    lengths_input = inputs.setdefault(
        lengths_name, helper.make_tensor_value_info(lengths_name, TensorProto.INT32, ["rows"])
    )
    mender_kind, writer_kind = kinds
    writer = writer_kind(
        lengths_name,
        names.sequences,
        names.open_axes[1],
        all_names(model.graph) | {lengths_name},
        has_int32_lengths=lengths_input.type.tensor_type.elem_type == TensorProto.INT32,
        table_lengths=lengths,
    )
    mender = mender_kind(
        node=onnx.NodeProto(),
        writer=writer,
        lengths=lengths,
        axes_are_inputs=opset_of(model) >= AXES_ARE_INPUTS,
        hiding_masks=masks,
        used_names=frozenset([*names_in(model.graph.node), *(value.name for value in model.graph.output)]),
        values={},
        rules=rules,
    )
    _set_inputs(mender, names, steps, inputs, lengths_name)
    for tensor in model.graph.initializer:
        mender.values[tensor.name] = mender.known(tensor.name, numpy_helper.to_array(tensor))
    refill(model.graph.input, inputs.values())
    return mender


def replace_nodes(model: ModelProto, mender: Mender, further: Sequence[onnx.ValueInfoProto] = ()) -> None:
    """Puts the nodes that the rules wrote in the place of the graph's nodes, and declares its outputs anew.

    `further` are outputs that the graph gets beside its answers.
    """
    refill(model.graph.output, [*(_output(mender, value) for value in model.graph.output), *further])  # may add nodes
    refill(model.graph.node, mender.writer.nodes)
    refill(model.graph.value_info, ())
    model.graph.initializer.extend(mender.writer.constants)
    model.graph.name = model.graph.name or "mended"
    keep_needed(model.graph)
    onnx.checker.check_model(model)


def prepared(graph: ModelProto) -> ModelProto:
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
        except Exception as error:  # the converter raises exceptions of its own
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
    time = Size(np.broadcast_to(mender.lengths, (ROW_COUNTS, len(mender.lengths))))
    features = () if steps.kind == "tokens" or not names.features_axis else (mender.fixed_size(steps.features or 1),)
    order = (mender.rows, time) if names.open_axes[0] == 0 else (time, mender.rows)
    has_time_last = names.channels_first and features
    sizes = {
        names.mask: order,
        names.sequences: (mender.rows, *features, time) if has_time_last else (*order, *features),
        lengths: (mender.rows,),
    }
    if steps.static is not None:
        sizes[STATIC] = (mender.rows, mender.fixed_size(steps.static.count))
    for name, value in inputs.items():
        if name not in sizes:
            raise UnmendableError(name, _OF_SEVERAL if steps.sequences else _OTHER_INPUT)
        is_steps = name == names.sequences
        mender.values[name] = DataTensor(
            name,
            value.type.tensor_type.elem_type,
            groups_of_one(sizes[name]),
            sources=frozenset(["steps" if is_steps else STATIC if name == STATIC else "lengths"]),
            is_steps=is_steps,
        )


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
    if tensor.name != value.name:  # a value that still has the output's name gets another one
        before = mender.writer.name(f"{value.name}_before")
        for node in mender.writer.nodes:
            for names in (node.input, node.output):
                names[:] = [before if name == value.name else name for name in names]
        mender.writer.nodes.append(helper.make_node("Identity", [tensor.name], [value.name]))
    shape = ["rows" if size.is_rows else "width" if size.is_time else size.fixed for size in tensor.dim_sizes]
    return helper.make_tensor_value_info(value.name, tensor.dtype, shape)


@dataclass(frozen=True, slots=True)
class Mended:
    """A mended graph."""

    graph: onnx.ModelProto  # The graph; it takes the steps and the lengths
    changes: tuple[MendedOperator, ...]  # The operators that it changes, in order of execution
    min_length: int  # The shortest sequence that was asked for, or a longer one, if its kernels or slices need that
    max_length: int  # The longest that was followed; its tables of positions, for example, may allow no longer one
    # The original hides a step if all its values are one of these numbers; the mended graph takes such a step for data
    hiding: tuple[float, ...] = ()
    # The original, changed to take such steps for data, too; None if it hides none
    without_hiding: onnx.ModelProto | None = None
