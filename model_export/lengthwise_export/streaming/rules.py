"""The rules of streaming: one for each operator that mixes steps; all others are those of mending.

A rule first does to the own steps what mending does to a row, and then adds what the state has of earlier steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

import numpy as np
from onnx import helper

from lengthwise_export.mending.engine import RULES, NodeOutputs, Rule, along, data, rule, values
from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.rules.arithmetic import terms_of_axes
from lengthwise_export.mending.rules.convolution import windows_of
from lengthwise_export.mending.values import (
    BOOL,
    FLOAT,
    DataTensor,
    KnownTensor,
    Size,
    Value,
    constant_of,
)
from lengthwise_export.onnx_graphs.protos import refill
from lengthwise_export.streaming.carried import DOUBLE, StreamingMender

STREAMING: Final[dict[str, Rule]] = dict(RULES)  # by operator type
_streaming = partial(rule, table=STREAMING)

MIXING: Final = frozenset(
    {"LSTM", "GRU", "RNN", "MatMul", "Gemm", "Einsum", "CumSum", "Softmax", "Gather", "GatherND", "GatherElements"}
    | {"ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd", "ReduceMax", "ReduceMin"}
    | {"GlobalAveragePool", "GlobalMaxPool", "Loop", "Scan"}
)
"""The operators whose rules carry a result of several steps; a Loop or Scan may become a recurrent layer."""

_LOOKS_AHEAD: Final = "looks ahead without bound"


def _refuse_over_time(*operators: str, reason: str, takes: Any = data) -> None:
    """Registers rules that refuse these operators along an axis of time, and leave others to mending."""

    def is_apart(_mender: Mender, value: DataTensor, axis: int | None = None) -> bool:
        groups = value.groups if axis is None else value.groups[axis : axis + 1]
        return not any(size.is_time for group in groups for size in group)

    for operator in operators:
        old = RULES[operator]
        takes_value = takes if takes is not data else old.takes
        _streaming(operator, takes=takes_value, requires={reason: is_apart})(
            lambda mender, *_taken, old=old: old.writes(mender, *old.takes(mender))
        )


_refuse_over_time(
    *("InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization", "LpNormalization"),
    reason=f"normalises by all steps of the sequence, so it {_LOOKS_AHEAD}: normalise the features of each step "
    "(LayerNorm), or by the training split (BatchNorm)",
)
_refuse_over_time(
    *("TopK", "ArgMax", "ArgMin", "Hardmax", "LogSoftmax"),
    takes=along(-1),
    reason="chooses among all steps of the sequence, of which a state keeps none: pool them by a mean, a maximum or "
    "attention",
)
_refuse_over_time(
    *("MaxPool", "AveragePool", "LpPool", "ConvTranspose", "Resize"),
    reason="pools or resamples the steps, so a chunk may end within a window: use a causal convolution at stride 1",
)
_refuse_over_time(
    "ReverseSequence", reason=f"reads the steps from the last one, so it {_LOOKS_AHEAD}: read them forward"
)
_refuse_over_time("Tile", reason="repeats the steps behind the sequence: repeat them outside of the model")
_refuse_over_time("Trilu", reason=f"compares each step with every other, so it {_LOOKS_AHEAD}")


# -- recurrent layers -------------------------------------------------------------------------------------------------


@_streaming("LSTM", "GRU", "RNN", requires=RULES["LSTM"].requires)
def _recurrent(mender: StreamingMender, value: DataTensor) -> NodeOutputs:
    """Streams a recurrent layer: its last states are carried, and it begins with them in the next chunk.

    onnxruntime gives zeros as the last states of a row without steps, so such a row keeps the states that it has.
    """
    (time,), rows, _ = value.groups
    if not time.is_time:
        return cast("NodeOutputs", RULES["LSTM"].writes(mender, value))
    mender.refuse_if(
        mender.attribute("direction", "forward") != "forward",
        f"reads the steps from the last one, so it {_LOOKS_AHEAD}: make it read forward only (bidirectional=False; in "
        "a spec, bidirectional = false)",
    )
    mender.times_along(value, [0])
    mender.refuse_if(len(rows) != 1 or not rows[0].is_rows, "runs over merged rows: keep the rows in their own axis")
    hidden = mender.fixed_size(int(mender.attribute("hidden_size")))
    last = DataTensor("", value.dtype, ((mender.size_one,), rows, (hidden,)))
    state_inputs = (5, 6) if mender.node.op_type == "LSTM" else (5,)
    carried = [mender.carried(last, value.dtype, 0) for _ in state_inputs]
    weights = [mender.constant_name(index) for index in (1, 2, 3)]
    begins = [mender.begun(state, index) for state, index in zip(carried, state_inputs, strict=True)]
    peepholes = [mender.constant_name(7)] if len(carried) == 2 else []
    inputs = [value.name, *weights, mender.states.sizes_int32(time), *begins, *peepholes]
    all_steps, *ends = mender.copy_with_all_outputs(inputs, 1 + len(carried))
    has_steps = mender.emit("Greater", [mender.states.own_lengths, mender.writer.constant(np.int64(0))])
    has_steps = mender.writer.unsqueezed(has_steps, [0, 2])  # [1, rows, 1]
    outputs = [DataTensor(all_steps, value.dtype, ((time,), *last.groups), zero_padded=True)]
    for end, state, begin in zip(ends, carried, begins, strict=True):
        kept = mender.emit("Where", [has_steps, end, begin])
        mender.keep(state, kept)
        outputs.append(last.with_name(kept))
    return outputs


# -- sums, means, extremes --------------------------------------------------------------------------------------------

# By the reduction: the operator that reduces the own steps, that which combines this with the earlier steps, and the
# result of no steps
_FOLDS: Final[dict[str, tuple[str, str, float]]] = {
    "ReduceSum": ("ReduceSum", "Add", 0),
    "ReduceMean": ("ReduceSum", "Add", 0),
    "ReduceL1": ("ReduceL1", "Add", 0),
    "ReduceSumSquare": ("ReduceSumSquare", "Add", 0),
    "ReduceL2": ("ReduceSumSquare", "Add", 0),
    "ReduceProd": ("ReduceProd", "Mul", 1),
    "ReduceMax": ("ReduceMax", "Max", -float(np.finfo(np.float32).max)),
    "ReduceMin": ("ReduceMin", "Min", float(np.finfo(np.float32).max)),
}


@_streaming(*_FOLDS)
def _reduction(mender: StreamingMender, value: DataTensor) -> Value:
    """Streams a reduction over axes."""
    axes = mender.axes_of_node(value.rank)
    if not axes and mender.attribute("noop_with_empty_axes", 0):
        return value
    keep = bool(mender.attribute("keepdims", 1))
    return reduced(mender, value, mender.node.op_type, axes or [*range(value.rank)], keep=keep)


@_streaming("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(mender: StreamingMender, value: DataTensor) -> Value:
    """Streams a mean or largest value over all axes after the channels."""
    kind = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}[mender.node.op_type]
    return reduced(mender, value, kind, range(2, value.rank), keep=True)


def reduced(mender: StreamingMender, value: DataTensor, kind: str, axes: Sequence[int], *, keep: bool) -> Value:
    """Reduces a tensor over axes of the whole graph.

    1. None of them is of time: as in mending.
    2. Over time: the own steps are reduced, and combined with a state. A sum is carried in float64: of millions of
       steps, float32 would lose digits.
    """
    over_time = mender.times_along(value, axes)
    if not over_time:
        return cast("Value", RULES[mender.node.op_type].writes(mender, value))
    operator, combine, neutral = _FOLDS[kind]
    value = mender.masked(value, over_time, neutral)
    dims = [dim for axis in axes for dim in value.dims_of(axis)]
    name = mender.states.reduced(operator, value.name, dims, axes_are_inputs=mender.axes_are_inputs)
    own = value.with_name(name, groups=value.without_axes(axes), zero_padded=False)
    is_sum = combine == "Add" and value.dtype == FLOAT
    result = mender.folded(
        own,
        combine,
        neutral,
        DOUBLE if is_sum else value.dtype,
        [mender.squeezed(factor, axes) for factor in mender.rescales_of_input],
    )
    if kind == "ReduceL2":
        result = result.with_name(mender.emit("Sqrt", [result.name]))
    if kind == "ReduceMean":
        count = mender.axis_size(tuple(size for axis in axes for size in value.groups[axis]))
        result = mender.broadcast_node("Div", result, mender.count(count.table, value.dtype))
    return mender.unsqueezed(result, axes) if keep else result


@_streaming("MatMul", "Gemm")
def _summed_product(mender: StreamingMender, left: DataTensor) -> Value:
    """Streams a product of matrices that sums over the steps, such as pooling by weights: the sum is carried."""
    result = cast("DataTensor", RULES[mender.node.op_type].writes(mender, left))
    inputs = [left, mender.data_input(1)]
    if result.time_dims() or not any(value.time_dims() for value in inputs):
        return result
    mender.times_along(left, range(left.rank))
    return mender.folded(result, "Add", 0, DOUBLE, mender.rescales_of_input)


@_streaming("Einsum", takes=values)
def _einsum(mender: StreamingMender, inputs: list[Value]) -> Value:
    """Streams a sum of products by letters that sums over the steps."""
    result = cast("DataTensor", RULES["Einsum"].writes(mender, inputs))
    if result.time_dims() or not any(isinstance(value, DataTensor) and value.time_dims() for value in inputs):
        return result
    rescales = mender.rescales_of_input
    if rescales:
        terms, letters = terms_of_axes(mender, [mender.as_data(value).rank for value in inputs])
        term = next(term for term, name in zip(terms, mender.node.input, strict=True) if name in mender.rescales)
        rescales = tuple(_by_letters(mender, factor, term, letters) for factor in rescales)
    return mender.folded(result, "Add", 0, DOUBLE, rescales)


def _by_letters(mender: StreamingMender, value: DataTensor, term: str, letters: str) -> DataTensor:
    """Turns a tensor whose axes are the letters of `term` to those of `letters`; axes that it lacks have size 1."""
    value = mender.squeezed(value, [axis for axis, letter in enumerate(term) if letter not in letters])
    kept = [letter for letter in term if letter in letters]
    value = mender.transposed(value, [kept.index(letter) for letter in letters if letter in kept])
    return mender.unsqueezed(value, [axis for axis, letter in enumerate(letters) if letter not in kept])


@_streaming("CumSum")
def _cumulative_sum(mender: StreamingMender, value: DataTensor) -> Value:
    """Streams cumulative sums: the sum of all earlier steps is added to those of the chunk."""
    axis = int(mender.constant_input(1).item()) % value.rank
    if not mender.times_along(value, [axis]):
        return cast("Value", RULES["CumSum"].writes(mender, value))
    mender.refuse_if(mender.attribute("reverse", 0), f"sums from the last step, so it {_LOOKS_AHEAD}: sum forward")
    dim = value.first_dims()[axis]
    value = mender.masked(value, [dim], 0)
    sums = mender.keep_node(value, [mender.writer.constant(np.int64(dim))])
    own = mender.states.reduced("ReduceSum", value.name, [dim], axes_are_inputs=mender.axes_are_inputs)
    like = value.with_name(own, groups=value.without_axes([axis]))
    carried = mender.carried(like, value.dtype, 0)
    mender.keep(carried, mender.emit("Add", [carried.value.name, own]))
    return mender.broadcast_node("Add", sums, mender.unsqueezed(carried.value, [axis]))


@_streaming("Softmax", takes=along(-1))
def _softmax(mender: StreamingMender, value: DataTensor, axis: int) -> Value:
    """Streams a softmax over the steps, such as attention weights: its output has the weights within the chunk alone.

    The logarithm of the sum of exponentials (L) is carried, which stays finite. Among all steps so far, the weights of
    the chunk are smaller by the factor `exp(L of the chunk - L of all)`, and those of earlier steps by
    `exp(L before - L of all)`: the rescales. A node that sums weights multiplies its sums by the rescales; weights that
    are an answer are multiplied themselves.
    """
    weights = cast("DataTensor", RULES["Softmax"].writes(mender, value, axis))
    if not mender.times_along(value, [axis]):
        return weights
    dim, lowest = value.first_dims()[axis], mender.neutral_extreme(value.dtype, finite=True)
    value = mender.masked(value, [dim], lowest)
    options: dict[str, Any] = {"keepdims": 1, "axes_are_inputs": mender.axes_are_inputs}
    own = mender.writer.cast(mender.states.reduced("ReduceLogSumExp", value.name, [dim], **options), DOUBLE)
    carried = mender.carried(
        value.with_name("", groups=value.groups_with(axis, mender.size_one), zero_padded=False), DOUBLE, lowest
    )
    parts = mender.emit("Concat", [carried.value.name, own], axis=dim)
    total = mender.states.reduced("ReduceLogSumExp", parts, [dim], **options)
    mender.keep(carried, total)
    shares = mender.emit("Exp", [mender.emit("Sub", [parts, total])])
    halves = mender.writer.emit_outputs("Split", [shares, mender.writer.constant([1, 1])], 2, axis=dim)
    mender.rescales[mender.node.output[0]] = tuple(map(carried.value.with_name, halves))
    return replace(weights, zero_padded=True)


# -- convolutions, and steps before others ----------------------------------------------------------------------------


def with_earlier(mender: StreamingMender, value: DataTensor, axis: int, count: int, fill: float) -> DataTensor:
    """Puts `count` elements of earlier chunks in front of an axis of time: a state, which begins as `fill`."""
    if not count:
        return value
    dim, size = mender.only_dim(value, axis)
    like = value.with_name("", groups=value.groups_with(axis, mender.fixed_size(count)))
    carried = mender.carried(like, value.dtype, fill)
    joined = mender.emit("Concat", [carried.value.name, value.name], axis=dim)
    result = value.with_name(joined, groups=value.groups_with(axis, Size(size.table + count)), zero_padded=False)
    # The next state: the last `count` elements up to the end of the row's committed steps
    own = mender.writer.unsqueezed(mender.states.committed, [1])
    index = mender.emit("Add", [own, mender.writer.constant(np.arange(count)[None])])
    last = Mender.take_per_row(mender, result, axis, index, mender.fixed_size(count), clip=False)
    mender.keep(carried, last.name)
    return result


@_streaming("Conv", requires=RULES["Conv"].requires)
def _conv(mender: StreamingMender, value: DataTensor) -> Value:
    """Streams a convolution at stride 1: the steps that its kernel reads before a step are a state."""
    times = [axis for axis in range(2, value.rank) if mender.only_dim(value, axis)[1].is_time]
    if not times:
        return cast("Value", RULES["Conv"].writes(mender, value))
    _, _, *kernel = mender.constant_input(1).shape
    sizes = [mender.only_dim(value, axis)[1] for axis in range(2, value.rank)]
    windows = windows_of(mender, kernel, sizes)
    window = windows[times[0] - 2]
    mender.refuse_if(window.stride != 1, "takes every few steps only, so a chunk may end within a window: use stride 1")
    value = with_earlier(mender, value, times[0], window.before, 0)
    mender.moved[mender.node.output[0]] = window.kernel - 1 - window.before
    windows[times[0] - 2] = replace(window, before=0)
    pads = [part.before for part in windows] + [part.after for part in windows]
    inner = mender.with_input(0, value)
    kept = [attribute for attribute in inner.node.attribute if attribute.name not in ("pads", "auto_pad")]
    refill(inner.node.attribute, [*kept, helper.make_attribute("pads", pads)])
    return cast("Value", RULES["Conv"].writes(inner, value))


@_streaming("Pad")
def _pad(mender: StreamingMender, value: DataTensor) -> Value:
    """Streams a Pad: what it puts in front of the steps is what a state begins with."""
    amounts = constant_of(mender.sizes_input(1, "its amounts are").table)
    axes = mender.constant_input(3)
    padded_axes = [*range(value.rank)] if axes is None else [int(axis) % value.rank for axis in axes]
    times = [axis for axis in padded_axes if any(size.is_time for size in value.groups[axis])]
    index = padded_axes.index(times[0]) if times else 0
    if not times or (amounts is not None and not amounts[index] and not amounts[index + len(padded_axes)]):
        return cast("Value", RULES["Pad"].writes(mender, value))
    if amounts is None or mender.attribute("mode", "constant") != "constant":
        mender.refuse("adds as many steps as the sequence says, or repeats some: put a fixed number of zeros in front")
    number, before = mender.constant_input(2), int(amounts[index])
    fill = number.reshape(-1)[0].item() if number is not None and number.size else 0.0
    mender.moved[mender.node.output[0]] = -before
    value = with_earlier(mender, value, times[0], max(before, 0), fill)
    rest = amounts.copy()
    rest[index] = min(before, 0)
    inner = mender.with_input(0, value)
    inner.node.input[1] = mender.emit_constant(rest).name
    return cast("Value", RULES["Pad"].writes(inner, value))


@_streaming("Slice")
def _slice(mender: StreamingMender, value: DataTensor) -> Value:
    """Streams a cut. From a fixed first step on, it moves the steps; a few steps at another place are picked.

    A cut that keeps a fixed number of steps, at a place that depends on the length, is that of mending: `take_per_row`.
    """
    result = cast("DataTensor", RULES["Slice"].writes(mender, value))
    starts = mender.sizes_input(1, "its starts are").elements()
    axes = mender.axes_of_node(value.rank, 3) or [*range(len(starts))]
    for axis, start in zip(axes, starts, strict=True):
        (old, *_), (new, *_) = value.groups[axis], result.groups[axis]
        mender.refuse_if(
            new.is_time and not old.is_time,
            "takes as many positions of a table as there are steps: it ends, and a stream does not",
        )
        if not old.is_time or old is new:
            continue
        is_fixed = bool((start == start[0, 0]).all()) and start[0, 0] >= 0
        mender.refuse_if(not new.is_time and is_fixed, "cuts out the first steps: pick them one by one, x[:, i]")
        if new.is_time:
            mender.refuse_if(not is_fixed, "cuts the steps in another place for each length")
            mender.moved[mender.node.output[0]] = int(start[0, 0])
    return result


@_streaming("Concat", takes=values)
def _concat(mender: StreamingMender, inputs: list[Value]) -> Value:
    """Streams a join along another axis than the time."""
    axis = mender.attribute("axis") % inputs[0].rank
    joined = [value.groups[axis] for value in inputs if isinstance(value, DataTensor) and value.groups]
    mender.refuse_if(
        any(size.is_time for group in joined for size in group),
        "joins something to the steps, in front of them or behind: a chunk does not begin or end the sequence. Use a "
        "Pad for zeros in front",
    )
    return cast("Value", RULES["Concat"].writes(mender, inputs))


# -- positions and picks ----------------------------------------------------------------------------------------------


@_streaming("Range", takes=values, requires=RULES["Range"].requires)
def _range(mender: StreamingMender, bounds: list[KnownTensor]) -> Value:
    """Streams positions: the output has those in the chunk, and `totals` those in the whole sequence."""
    own = cast("DataTensor", RULES["Range"].writes(mender, bounds))
    if own.groups[0][0].is_time:
        seen = mender.per_row(mender.states.steps_before, own.dtype)
        mender.totals[mender.node.output[0]] = mender.broadcast_node("Add", own, seen)
    return own


@_streaming("Gather", "GatherND", "GatherElements")
def _pick(mender: StreamingMender, value: DataTensor) -> Value:
    """Streams a pick by an index, the second input: a step of this chunk is picked, an earlier one is in the state.

    1. Not along the time: as in mending.
    2. The position follows from the total (`x[:, -1]`): as in mending, which picks by `take_per_row`.
    3. It is constant: counted from the first step, or, if negative, from the last one.
    4. It is data, such as `lengths - 1`: the original's node picks by the position in the chunk.
    """
    kind, index = mender.node.op_type, mender.inputs()[1]
    columns = index.index_columns if isinstance(index, DataTensor) else ()
    has_rows = kind == "GatherND" and (columns or mender.attribute("batch_dims", 0))
    axis = 1 if has_rows else 0 if kind == "GatherND" else mender.attribute("axis", 0) % value.rank
    is_over_time = axis < value.rank and any(size.is_time for size in value.groups[axis])
    mender.refuse_if(
        not is_over_time and isinstance(index, DataTensor) and mender.is_position,
        "takes a position from a table, which ends, and a stream does not: use positions without a maximum, or none",
    )
    is_table = isinstance(index, KnownTensor) and index.constant is None
    if not is_over_time or is_table or (kind == "Gather" and isinstance(index, DataTensor) and index.has_added_rows):
        return cast("Value", RULES[kind].writes(mender, *RULES[kind].takes(mender)))
    mender.times_along(value, [axis])
    if isinstance(index, KnownTensor):
        return _picked_step(mender, value, axis, index)
    return _picked_by_data(mender, index)


def _picked_by_data(mender: StreamingMender, index: DataTensor) -> Value:
    """Case 4 of `_pick`: picks by positions that are data."""
    kind, columns = mender.node.op_type, index.index_columns
    position = mender.as_data(columns[1] if columns else index)
    mender.refuse_if(
        bool(position.time_dims()) or position.rows_dim is None,
        "gives each step another step, which may be of an earlier chunk",
    )
    own = mender.broadcast_node("Sub", position, mender.per_row(mender.states.steps_before, position.dtype))
    zero = mender.writer.scalar(0, own.dtype)
    is_own = own.with_name(mender.emit("GreaterOrEqual", [own.name, zero]), dtype=BOOL)
    inside = own.with_name(mender.emit("Max", [own.name, zero]))
    inner = mender.with_input(1, replace(index, index_columns=(columns[0], inside)) if columns else inside)
    picked = cast("DataTensor", RULES[kind].writes(inner, *RULES[kind].takes(inner)))
    if kind == "GatherND" and not columns:
        is_own = mender.squeezed(is_own, [-1])
    if is_own.rank < picked.rank:
        is_own = mender.unsqueezed(is_own, range(is_own.rank, picked.rank))
    return mender.new_or_earlier(is_own.name, picked)


def _picked_step(mender: StreamingMender, value: DataTensor, axis: int, index: KnownTensor) -> Value:
    """Case 3 of `_pick`: picks steps at constant positions; negative ones count from the end of the whole sequence.

    The positions are those in the whole sequence: `take_per_row` takes the steps of earlier chunks from the state.
    Lengths at which a sequence does not have all these steps are left out.
    """
    numbers = index.constant
    if numbers is None or numbers.ndim > 1:
        mender.refuse("picks by a table of positions")
    total_size = value.groups[axis][0].by_length
    table = np.broadcast_to(np.reshape(numbers, (1, -1)), (len(mender.lengths), np.size(numbers)))
    positions = np.where(table < 0, table + total_size[:, None], table)
    is_inside = (positions >= 0) & (positions < total_size[:, None])
    mender.require_lengths(np.asarray(is_inside.all(axis=1)))
    names = [mender.writer.per_row_column(column) for column in positions.T]
    indices = mender.emit("Concat", names, axis=1) if len(names) > 1 else names[0]
    picked = mender.take_per_row(value, axis, indices, mender.fixed_size(len(names)))
    return picked if numbers.ndim else mender.squeezed(picked, [axis])
