"""Convolutions and pools: zeros beyond each row's length, and the length of what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lengthwise_export.mending.mender import FLOAT, Mender, rule
from lengthwise_export.mending.values import DataTensor, KnownTensor, Size, Table


@dataclass(frozen=True)
class Window:
    """How a kernel moves along one axis."""

    kernel: int  # Its size, with the holes of a dilation
    stride: int  # The distance between two windows
    before: int  # Zeros in front of the axis
    after: int  # Zeros behind it
    rounds_up: bool = False  # Whether a last window that reaches beyond the zeros counts (`ceil_mode`)

    def count(self, size: Table) -> Table:
        """The number of windows for each size of the axis."""
        room = size + self.before + self.after - self.kernel
        count = (-(-room // self.stride) if self.rounds_up else room // self.stride) + 1
        if self.rounds_up:  # the last window begins in the axis, or in the zeros in front
            count = np.where((count - 1) * self.stride >= size + self.before, count - 1, count)
        return np.asarray(np.maximum(count, 0))

    def reads_beyond(self, size: Size) -> bool:
        """Whether the axis is one of time, and a window that counts reads behind it at any length."""
        counts = self.count(size.by_length)
        last_read = (counts - 1) * self.stride - self.before + self.kernel - 1
        return size.is_time and bool((last_read >= size.by_length)[counts > 0].any())


def _windows(
    mender: Mender, kernel: Sequence[int], sizes: Sequence[Size]
) -> tuple[list[Window], dict[int, tuple[Table, Table]]]:
    """The window along each axis, and the zeros around the axes where their number depends on the length.

    Only `auto_pad` SAME with a stride gives such axes. The zeros are `[lengths]` in front and `[lengths]` behind, by
    the index of the axis; the window of such an axis has no padding of its own.
    """
    count = len(kernel)
    strides, dilations, pads = (
        mender.attribute(name) or [neutral] * (count * size)
        for name, neutral, size in (("strides", 1, 1), ("dilations", 1, 1), ("pads", 0, 2))
    )
    auto = mender.attribute("auto_pad", "NOTSET")
    windows = []
    moved: dict[int, tuple[Table, Table]] = {}
    for index in range(count):
        spread = dilations[index] * (kernel[index] - 1) + 1
        before, after = (0, 0) if auto == "VALID" else (pads[index], pads[index + count])
        if auto.startswith("SAME"):
            size = sizes[index].by_length
            total = np.maximum((-(-size // strides[index]) - 1) * strides[index] + spread - size, 0)
            if strides[index] == 1:
                total = np.full_like(total, spread - 1)
            smaller_half, larger_half = total // 2, total - total // 2
            halves = (smaller_half, larger_half) if auto == "SAME_UPPER" else (larger_half, smaller_half)
            before, after = (int(half.max()) for half in halves)
            if (halves[0] != before).any():
                moved[index] = halves
                before = after = 0
        windows.append(Window(spread, strides[index], before, after, bool(mender.attribute("ceil_mode", 0))))
    return windows, moved


def surrounded(
    mender: Mender, value: DataTensor, axis: int, amounts: tuple[Table, Table], fill: float, cause: str
) -> DataTensor:
    """The tensor with a number around each row's own steps, as often as two `[lengths]` say: in front, and behind."""
    value = mender.fill_padding(value, axis, fill, cause)
    dim, size = mender.only_dim(value, axis)
    ends = [int(at == dim) for at in range(len(value.dim_sizes))] * 2
    number = mender.writer.scalar(fill, value.dtype)
    wider = mender.emit("Pad", [value.name, mender.writer.constant(ends), number], mode="constant")
    around, out = Size(size.table + 2), Size(size.table + sum(amounts))
    index = mender.strided_positions(1 - amounts[0], 1, out)
    return mender.take_per_row(value.with_name(wider, groups=value.groups_with(axis, around)), axis, index, out)


def _sizes(mender: Mender, value: DataTensor, rank: int) -> list[Size]:
    """The sizes of the axes behind the channels of a tensor `[rows, channels, ...]`."""
    mender.refuse_if(value.has_added_rows or value.rank != rank, "runs over a single sequence, not over rows")
    return [mender.only_dim(value, axis)[1] for axis in range(2, rank)]


_Run = Callable[[DataTensor, list[Window]], str]  # emits the node for a masked tensor
_BEYOND: Final = "its window reads beyond the last step"


def _convolved(
    mender: Mender,
    kernel: Sequence[int],
    run: _Run,
    *,
    channels: Size | None = None,
    fill: float = 0,
    why: str = _BEYOND,
) -> None:
    """Sets the output to what a kernel makes of the node's tensor, with `fill` beyond each row's length."""
    value = mender.data_input(0)
    sizes = _sizes(mender, value, len(kernel) + 2)
    mender.refuse_rows(sizes, (mender.only_dim(value, 1)[1],))
    mender.refuse_if(
        mender.only_dim(value, 1)[1].is_time,
        "takes the steps for its channels, so its width is fixed: transpose before it",
    )
    moves, moved = _windows(mender, kernel, sizes)
    for index, amounts in moved.items():
        cause = "the zeros in front of the steps are counted for the padded width"
        value = surrounded(mender, value, index + 2, amounts, fill, cause)
        sizes[index] = value.groups[index + 2][0]
    if reading := [value.first_dims()[at + 2] for at, move in enumerate(moves) if move.reads_beyond(sizes[at])]:
        mender.causes.append(why)
        value = mender.masked(value, reading, fill)
    out = [Size(move.count(size.table)) for size, move in zip(sizes, moves, strict=True)]
    for size in out:
        mender.require_lengths(size.by_length >= 1)
    name = mender.unmerge_first_axis(run(value, moves), value.groups[0], value.rank)
    groups = (value.groups[0], (channels or value.groups[1][0],), *((size,) for size in out))
    mender.set_output(DataTensor(name, value.dtype, groups))


def _fixed_pads(moves: Sequence[Window]) -> list[int]:
    """The attribute `pads`: the zeros in front along each axis, then those behind."""
    return [move.before for move in moves] + [move.after for move in moves]


def _as_it_is(mender: Mender, *rest: str) -> _Run:
    """Runs the node itself, with pads of fixed size."""
    return lambda masked, moves: mender.copy_node(
        [mender.in_original_shape(masked), *rest], drop=["auto_pad"], pads=_fixed_pads(moves)
    )[0]


@rule("Conv")
def _conv(mender: Mender) -> None:
    """A convolution: it reads zeros behind a lone sequence, and would read the padding of a row.

    1. A window that counts reads behind the last step: zeros go beyond each row's length, then the node runs.
    2. None does (a kernel of 1, a causal convolution): the node stays.
    3. `auto_pad` at a stride puts more or fewer zeros in front at some lengths: each row gets its own number of them.

    The length behind it follows from kernel, stride and padding. Weights as wide as the sequences are refused.
    """
    weights = mender.required_constant(1)
    mender.refuse_if(weights.ndim < 3, "its weights have no axis of the kernel")
    run, channels = _as_it_is(mender, *mender.further_inputs()), mender.fixed_size(weights.shape[0])
    cause = "its kernel reads beyond the last step, where a lone sequence has zeros"
    _convolved(mender, weights.shape[2:], run, channels=channels, why=cause)


@rule("ConvTranspose")
def _conv_transpose(mender: Mender) -> None:
    """A transposed convolution, which spreads each step over several: zeros go beyond each row's length.

    An output size that is set by hand (`output_shape`, `auto_pad`) is refused: it holds for one width only.
    """
    value, weights = mender.data_input(0), mender.required_constant(1)
    mender.refuse_if(
        mender.attribute("output_shape") or mender.attribute("auto_pad", "NOTSET") != "NOTSET",
        "its output's size is set by hand: give it pads instead of output_shape or auto_pad",
    )
    sizes = _sizes(mender, value, weights.ndim)
    moves, _ = _windows(mender, weights.shape[2:], sizes)
    extra = mender.attribute("output_padding") or [0] * len(moves)
    if times := [value.first_dims()[at + 2] for at, size in enumerate(sizes) if size.is_time]:
        mender.causes.append("its kernel spreads the padding over the last steps")
        value = mender.masked(value, times, 0)
    out = [
        Size(np.maximum((size.table - 1) * move.stride + more + move.kernel - move.before - move.after, 0))
        for size, move, more in zip(sizes, moves, extra, strict=True)
    ]
    (name,) = mender.copy_node([mender.in_original_shape(value), *mender.further_inputs()])
    name = mender.unmerge_first_axis(name, value.groups[0], value.rank)
    channels = mender.fixed_size(weights.shape[1] * mender.attribute("group", 1))
    mender.set_output(DataTensor(name, value.dtype, (value.groups[0], (channels,), *((size,) for size in out))))


@rule("MaxPool", "LpPool")
def _pool(mender: Mender) -> None:
    """The largest value or the norm of each window, as `_conv`.

    Beyond each row's length goes what is never the largest, the smallest finite number, or for a norm what adds
    nothing, 0. The indices of the largest values are refused, because they count the padding.
    """
    value, largest = mender.data_input(0), mender.node.op_type == "MaxPool"
    mender.refuse_if(
        largest and len(mender.node.output) > 1 and mender.node.output[1],
        "gives the indices of the largest values, which count the padding",
    )
    fill = mender.neutral_extreme(value.dtype, finite=True) if largest else 0
    _convolved(mender, mender.attribute("kernel_shape"), _as_it_is(mender), fill=fill)


@rule("AveragePool")
def _average_pool(mender: Mender) -> None:
    """The mean of the steps in each window.

    1. No window reads behind a row's length, or each mean is divided by the kernel's size (there are no zeros around
       the steps, or they count): the node runs on zeros beyond each row's length.
    2. Else AveragePool(steps) / AveragePool(mask): both are divided by the kernel's size, which cancels out, so only
       the row's own steps count.
    3. `auto_pad` at a stride: refused.
    """
    value, kernel = mender.data_input(0), mender.attribute("kernel_shape")
    sizes = _sizes(mender, value, len(kernel) + 2)
    moves, moved = _windows(mender, kernel, sizes)
    mender.refuse_if(moved, "averages with auto_pad at a stride: give it fixed pads")
    counts_zeros = bool(mender.attribute("count_include_pad", 0))
    rounds_up, padded = moves[0].rounds_up, any(move.before or move.after for move in moves)

    def divided_by_mask(masked: DataTensor, moves: list[Window]) -> str:
        """AveragePool(steps) / AveragePool(mask). `masked` are the steps, with zeros at padding."""
        pads = _fixed_pads(moves)
        if counts_zeros:  # the mask is 1 at the zeros around each row's own steps, too, so these become steps
            masked = _with_zeros_around(mender, masked, moves)
            pads = [0] * len(pads)
        mask = mender.masked(_ones_like(mender, masked), masked.time_dims(), 0)
        inputs = [mender.in_original_shape(factor) for factor in (masked, mask)]
        if rounds_up:  # with zeros after the steps, because the divisor of a last window would depend on the width
            after = [min(move.kernel, move.stride) - 1 for move in moves]
            amounts = mender.writer.constant([0] * (len(after) + 4) + after)
            inputs = [mender.emit("Pad", [name, amounts], mode="constant") for name in inputs]
        options: dict[str, Any] = {"name_suffix": "share", "pads": pads, "count_include_pad": 1}
        means = [mender.copy_node([name], drop=["auto_pad", "ceil_mode"], **options)[0] for name in inputs]
        mean = mender.emit("Div", means)
        return _cut_to_windows(mender, mean, sizes, moves) if rounds_up else mean

    reads = any(move.reads_beyond(size) for size, move in zip(sizes, moves, strict=True))
    is_divided = reads and (rounds_up or (padded and not counts_zeros))
    _convolved(mender, kernel, divided_by_mask if is_divided else _as_it_is(mender))


def _with_zeros_around(mender: Mender, value: DataTensor, moves: Sequence[Window]) -> DataTensor:
    """The tensor `[rows, channels, ...]` with the zeros of each window's padding around its other axes."""
    rows_and_channels = [0] * value.first_dims()[2]
    amounts = [
        *rows_and_channels,
        *(move.before for move in moves),
        *rows_and_channels,
        *(move.after for move in moves),
    ]
    wider = mender.emit("Pad", [value.name, mender.writer.constant(amounts)], mode="constant")
    sizes = [Size(size.table + move.before + move.after) for (size,), move in zip(value.groups[2:], moves, strict=True)]
    return value.with_name(wider, groups=(*value.groups[:2], *((size,) for size in sizes)))


def _ones_like(mender: Mender, value: DataTensor) -> DataTensor:
    """A tensor of ones with the axes of another."""
    one = KnownTensor(mender.writer.scalar(1, FLOAT), np.broadcast_to(np.float32(1), (2, mender.length_count)))
    (scalar, _), groups, has_added_rows = mender.align_axes([one, value])
    return DataTensor(
        mender.emit("Expand", [scalar.name, mender.emit("Shape", [value.name])]), FLOAT, groups, has_added_rows
    )


def _cut_to_windows(mender: Mender, name: str, sizes: Sequence[Size], moves: Sequence[Window]) -> str:
    """The result of a pool, cut to the windows that count at the width of the batch."""
    ends = [mender.writer.size_at_width(Size(move.count(size.table))) for size, move in zip(sizes, moves, strict=True)]
    axes = mender.writer.constant([*range(2, 2 + len(ends))])
    starts = mender.writer.constant([0] * len(ends))
    return mender.emit("Slice", [name, starts, mender.emit("Concat", ends, axis=0), axes])


@rule("Resize")
def _resize(mender: Mender) -> None:
    """Another number of steps.

    1. The axes of time keep their size, or each step is repeated a whole number of times (nearest, asymmetric, floor):
       the node runs with scales, so that a row's padding is repeated behind its own steps.
    2. Else steps are interpolated by a ratio of widths, which differs from that of lengths: refused.
    """
    value = mender.data_input(0)
    times = [axis for axis, group in enumerate(value.groups) if any(not size.fixed for size in group)]
    repeats = [1.0] * value.rank
    axes = [axis % value.rank for axis in mender.attribute("axes") or range(value.rank)]
    scales, sizes = mender.input_value(2), mender.input_value(3)
    if isinstance(scales, KnownTensor) and scales.is_constant and scales.table[0, 0].size:
        for axis, scale in zip(axes, scales.table[0, 0].tolist(), strict=True):
            repeats[axis] = scale
    elif isinstance(sizes, KnownTensor):
        for index, axis in enumerate(axes):
            grown = Size(sizes.table[..., index]).divided_by(mender.axis_size(value.groups[axis]))
            repeats[axis] = grown.fixed if grown is not None and grown.fixed is not None else 0.5
    else:
        repeats = [0.5] * value.rank
    plain = mender.attribute("mode", "nearest") == "nearest" and (
        mender.attribute("coordinate_transformation_mode", "half_pixel") == "asymmetric"
        and mender.attribute("nearest_mode", "round_prefer_floor") == "floor"
    )
    if not plain or value.has_merged_axes or value.has_added_rows or any(repeats[axis] % 1 for axis in times):
        how = "only repeating each step (nearest, asymmetric, floor, by a whole number) can be mended"
        mender.refuse(f"resamples the steps to another number of steps: {how}")
    mender.refuse_rows(*(group for axis, group in enumerate(value.groups) if repeats[axis] != 1))
    factors = mender.writer.constant(np.array(repeats, dtype=np.float32))
    (name,) = mender.copy_node([value.name, "", factors], drop=["axes", "keep_aspect_ratio_policy"])
    groups = tuple(
        group if repeats[axis] == 1 else (Size((group[0].table * repeats[axis]).astype(np.int64)),)
        for axis, group in enumerate(value.groups)
    )
    mender.set_output(value.with_name(name, groups=groups))
