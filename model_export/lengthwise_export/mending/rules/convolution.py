"""Rules for convolutions, pools and Resize: zeros at the padding, and the number of steps of the output.

Words: an *axis* is one of the original's tensor, a *dim* one of the mended graph's; the *group* of an axis has the
sizes of its dims. A size is a table of its values at each length. A row's *own size* along a dim of time is what the
original has for this sequence alone; after it is padding. *The node stays*: the mended graph has the same operator.
*Spatial axes* are those after the rows and the channels of `[rows, channels, ...]`; here they are mostly the steps. A
*lone* sequence is a batch of one row without padding. A *cause* is a text in `mender.causes`, which says how padding
would reach the node's output. A node that is *refused* ends the mend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from lengthwise_export.mending.mender import FLOAT, Mender, rule
from lengthwise_export.mending.values import DataTensor, KnownTensor, Size, Table, groups_of_one


@dataclass(frozen=True)
class Window:
    """How a kernel moves along one spatial axis."""

    kernel: int  # Its size in steps, with the holes of a dilation
    stride: int  # The distance between two windows in steps
    before: int  # Zeros in front of the axis
    after: int  # Zeros after it
    rounds_up: bool = False  # Whether a last window that reaches beyond the zeros counts (`ceil_mode`)

    def count(self, size: Table) -> Table:
        """The number of windows, which is the size of the output, for each size of the axis."""
        room = size + self.before + self.after - self.kernel
        count = (-(-room // self.stride) if self.rounds_up else room // self.stride) + 1
        if self.rounds_up:  # a window that would begin in the zeros after the axis does not count
            count = np.where((count - 1) * self.stride >= size + self.before, count - 1, count)
        return np.asarray(np.maximum(count, 0))

    def reads_beyond(self, size: Size) -> bool:
        """Whether a window reads beyond the last step at any length; never along an axis of fixed size."""
        counts = self.count(size.by_length)
        last_read = (counts - 1) * self.stride - self.before + self.kernel - 1
        return size.is_time and bool((last_read >= size.by_length)[counts > 0].any())


def _windows(
    mender: Mender, kernel: Sequence[int], sizes: Sequence[Size]
) -> tuple[list[Window], dict[int, tuple[Table, Table]]]:
    """The window along each spatial axis, from the attributes of the node.

    Args:
        mender: The mender, whose node is a convolution or a pool.
        kernel: The kernel's size along each spatial axis, without a dilation.
        sizes: The sizes of the spatial axes.

    Returns:
        1. The windows.
        2. By the index of a spatial axis around which the number of zeros depends on the length: the zeros in front of
           it and after it, `[lengths]` each. Only `auto_pad` SAME with a stride has such axes; their windows have no
           zeros.
    """
    count = len(kernel)
    strides, dilations, pads = (
        mender.attribute(name) or [default] * (count * numbers_per_axis)
        for name, default, numbers_per_axis in (("strides", 1, 1), ("dilations", 1, 1), ("pads", 0, 2))
    )
    auto_pad = mender.attribute("auto_pad", "NOTSET")
    windows = []
    zeros_by_length: dict[int, tuple[Table, Table]] = {}
    for index, stride in enumerate(strides):
        dilated = dilations[index] * (kernel[index] - 1) + 1
        before, after = (0, 0) if auto_pad == "VALID" else (pads[index], pads[index + count])
        if auto_pad.startswith("SAME"):
            # ONNX: as many zeros as it takes for one window at every `stride` steps, half of them on each side; UPPER
            # and LOWER say on which side an odd one goes.
            size = sizes[index].by_length
            zeros = np.maximum((-(-size // stride) - 1) * stride + dilated - size, 0)
            if stride == 1:
                zeros = np.full_like(zeros, dilated - 1)
            smaller_half, larger_half = zeros // 2, zeros - zeros // 2
            halves = (smaller_half, larger_half) if auto_pad == "SAME_UPPER" else (larger_half, smaller_half)
            before, after = (int(half.max()) for half in halves)
            if (halves[0] != before).any():
                zeros_by_length[index] = halves
                before = after = 0
        windows.append(Window(dilated, stride, before, after, bool(mender.attribute("ceil_mode", 0))))
    return windows, zeros_by_length


def surrounded(
    mender: Mender, value: DataTensor, axis: int, amounts: tuple[Table, Table], fill: float, cause: str
) -> DataTensor:
    """The tensor with the number `fill` in front of and after each row's own steps, as many times as its length says.

    One step of `fill` is put in front of the whole width, and one after it. Each row then picks its own steps, and for
    the positions around them the step of `fill`.

    Args:
        mender: The mender.
        value: The tensor.
        axis: The axis of time.
        amounts: How many steps are added in front, and after: `[lengths]` each.
        fill: The number that they have.
        cause: What is noted as the cause of the change.
    """
    value = mender.fill_padding(value, axis, fill, cause)
    dim, size = mender.only_dim(value, axis)
    pads = [int(index == dim) for index in range(value.dim_count)] * 2
    number = mender.writer.scalar(fill, value.dtype)
    wider = mender.emit("Pad", [value.name, mender.writer.constant(pads), number], mode="constant")
    wider_size, new_size = Size(size.table + 2), Size(size.table + sum(amounts))
    index = mender.strided_positions(1 - amounts[0], 1, new_size)
    return mender.take_per_row(
        value.with_name(wider, groups=value.groups_with(axis, wider_size)), axis, index, new_size
    )


def _spatial_sizes(mender: Mender, value: DataTensor, rank: int) -> list[Size]:
    """The sizes of the spatial axes of a tensor `[rows, channels, ...]` of `rank` axes; refuses another tensor."""
    mender.refuse_if(value.has_added_rows or value.rank != rank, "runs over a single sequence, not over rows")
    return [mender.only_dim(value, axis)[1] for axis in range(2, rank)]


_Emit = Callable[[DataTensor, list[Window]], str]  # writes the node for a masked tensor, returns its output's name


def _mend_windows(
    mender: Mender,
    kernel: Sequence[int],
    emit: _Emit,
    *,
    channels: Size | None = None,
    fill: float = 0,
    cause: str = "its window reads beyond the last step",
) -> DataTensor:
    """Mends a convolution or a pool: puts `fill` at the padding that a window reads, then writes the node.

    Args:
        mender: The mender; the node's first input is `[rows, channels, ...]`.
        kernel: The kernel's size along each spatial axis, without a dilation.
        emit: Writes the node for the filled tensor and its windows; returns the name of the output.
        channels: The number of channels of the output; None for that of the input.
        fill: The number at the padding that does not change the output of a window.
        cause: What is noted as the cause, if a window reads padding.

    Returns:
        The output. Lengths at which it has no step are left out.
    """
    value = mender.data_input(0)
    sizes = _spatial_sizes(mender, value, len(kernel) + 2)
    _, input_channels = mender.only_dim(value, 1)
    mender.refuse_rows(sizes, (input_channels,))
    mender.refuse_if(
        input_channels.is_time, "takes the steps for its channels, so its width is fixed: transpose before it"
    )
    windows, zeros_by_length = _windows(mender, kernel, sizes)
    for index, amounts in zeros_by_length.items():
        zeros_cause = "the zeros in front of the steps are counted for the padded width"
        value = surrounded(mender, value, index + 2, amounts, fill, zeros_cause)
        sizes[index] = value.groups[index + 2][0]
    dims = [value.first_dims()[index + 2] for index, window in enumerate(windows) if window.reads_beyond(sizes[index])]
    if dims:
        mender.causes.append(cause)
        value = mender.masked(value, dims, fill)
    new_sizes = [Size(window.count(size.table)) for size, window in zip(sizes, windows, strict=True)]
    for size in new_sizes:  # the original raises at lengths without a window
        mender.require_lengths(size.by_length >= 1)
    name = mender.unmerge_first_axis(emit(value, windows), value.groups[0], value.rank)
    groups = (value.groups[0], (channels or input_channels,), *groups_of_one(new_sizes))
    return DataTensor(name, value.dtype, groups)


def _pads(windows: Sequence[Window]) -> list[int]:
    """The attribute `pads` of ONNX: the zeros in front along each spatial axis, then those after."""
    return [window.before for window in windows] + [window.after for window in windows]


def _with_own_pads(mender: Mender, *further_inputs: str) -> _Emit:
    """The `emit` of `_mend_windows` for a node that stays: the node with the `pads` of its windows, without `auto_pad`.

    `further_inputs` are the names of its inputs after the first one.
    """
    return lambda masked, windows: mender.copy_node(
        [mender.in_original_shape(masked), *further_inputs], drop=["auto_pad"], pads=_pads(windows)
    )[0]


@rule("Conv")
def _conv(mender: Mender) -> DataTensor:
    """Mends a convolution: it reads zeros after a lone sequence, and would read the padding of a row.

    1. A window reads beyond the last step: the padding gets zeros, then the node runs.
    2. None does (a kernel of 1, a causal convolution): the node stays.
    3. `auto_pad` with a stride puts more or fewer zeros in front at some lengths: each row gets its own number of them.

    Weights as wide as the sequences accept one length only, so they are refused.
    """
    weights = mender.required_constant(1)
    mender.refuse_if(weights.ndim < 3, "its weights have no axis of the kernel")
    emit, channels = _with_own_pads(mender, *mender.further_inputs()), mender.fixed_size(weights.shape[0])
    cause = "its kernel reads beyond the last step, where a lone sequence has zeros"
    return _mend_windows(mender, weights.shape[2:], emit, channels=channels, cause=cause)


@rule("ConvTranspose")
def _conv_transpose(mender: Mender) -> DataTensor:
    """Mends a transposed convolution, which spreads each step over several: the padding gets zeros.

    An output size that is set by hand (`output_shape`, `auto_pad`) is refused: it holds for one width only.
    """
    value, weights = mender.data_input(0), mender.required_constant(1)
    mender.refuse_if(
        mender.attribute("output_shape") or mender.attribute("auto_pad", "NOTSET") != "NOTSET",
        "its output's size is set by hand: give it pads instead of output_shape or auto_pad",
    )
    sizes = _spatial_sizes(mender, value, weights.ndim)
    windows, _ = _windows(mender, weights.shape[2:], sizes)
    output_padding = mender.attribute("output_padding") or [0] * len(windows)
    if dims := [value.first_dims()[index + 2] for index, size in enumerate(sizes) if size.is_time]:
        mender.causes.append("its kernel spreads the padding over the last steps")
        value = mender.masked(value, dims, 0)
    new_sizes = [
        Size(np.maximum((size.table - 1) * window.stride + more + window.kernel - window.before - window.after, 0))
        for size, window, more in zip(sizes, windows, output_padding, strict=True)
    ]
    (name,) = mender.copy_node([mender.in_original_shape(value), *mender.further_inputs()])
    name = mender.unmerge_first_axis(name, value.groups[0], value.rank)
    channels = mender.fixed_size(weights.shape[1] * mender.attribute("group", 1))
    return DataTensor(name, value.dtype, (value.groups[0], (channels,), *groups_of_one(new_sizes)))


@rule("MaxPool", "LpPool")
def _pool(mender: Mender) -> DataTensor:
    """Mends the largest value (MaxPool) or the norm (LpPool) of each window.

    Padding that a window reads gets a number that does not count there: for MaxPool the smallest finite number, for
    LpPool 0. The indices of the largest values are refused, because they count the padding.
    """
    value, is_max = mender.data_input(0), mender.node.op_type == "MaxPool"
    mender.refuse_if(
        is_max and len(mender.node.output) > 1 and mender.node.output[1],
        "gives the indices of the largest values, which count the padding",
    )
    fill = mender.neutral_extreme(value.dtype, finite=True) if is_max else 0
    return _mend_windows(mender, mender.attribute("kernel_shape"), _with_own_pads(mender), fill=fill)


@rule("AveragePool")
def _average_pool(mender: Mender) -> DataTensor:
    """Mends the mean of each window.

    1. No window reads beyond a row's own steps, or each mean is divided by the kernel's size (there are no zeros around
       the steps, or they count): the node runs on zeros at the padding.
    2. Else AveragePool(steps) / AveragePool(mask): both are divided by the kernel's size, which cancels out, so only
       the row's own steps count (`_divided_by_mask`).
    3. `auto_pad` with a stride: refused.
    """
    kernel = mender.attribute("kernel_shape")
    sizes = _spatial_sizes(mender, mender.data_input(0), len(kernel) + 2)
    windows, zeros_by_length = _windows(mender, kernel, sizes)
    mender.refuse_if(zeros_by_length, "averages with auto_pad at a stride: give it fixed pads")
    has_zeros = any(window.before or window.after for window in windows)
    is_divided_by_kernel = not has_zeros or mender.attribute("count_include_pad", 0)
    reads_padding = any(window.reads_beyond(size) for size, window in zip(sizes, windows, strict=True))
    is_case_2 = reads_padding and (windows[0].rounds_up or not is_divided_by_kernel)
    return _mend_windows(mender, kernel, partial(_divided_by_mask, mender) if is_case_2 else _with_own_pads(mender))


def _divided_by_mask(mender: Mender, masked: DataTensor, windows: list[Window]) -> str:
    """The `emit` of `_mend_windows` for an AveragePool: the mean of the steps, divided by the mean of their mask.

    Zeros around the steps that count (`count_include_pad`) are written as steps before, and have a mask of 1. Where the
    last window may reach beyond the steps (`ceil_mode`), its divisor would depend on the width: so many zeros follow
    that no window reaches beyond them, and windows that are too many are cut off.

    Args:
        mender: The mender, whose node is the AveragePool.
        masked: The steps, with zeros at the padding.
        windows: The window along each spatial axis.

    Returns:
        The name of the output.
    """
    rounds_up, pads = windows[0].rounds_up, _pads(windows)
    sizes = [size for (size,) in masked.groups[2:]]
    if mender.attribute("count_include_pad", 0):
        masked = _with_zeros_around(mender, masked, windows)
        pads = [0] * len(pads)
    mask = mender.masked(_ones_like(mender, masked), masked.time_dims(), 0)
    inputs = [mender.in_original_shape(factor) for factor in (masked, mask)]
    if rounds_up:
        after = [min(window.kernel, window.stride) - 1 for window in windows]
        amounts = mender.writer.constant([0] * (len(after) + 4) + after)
        inputs = [mender.emit("Pad", [name, amounts], mode="constant") for name in inputs]
    options: dict[str, Any] = {"name_suffix": "share", "pads": pads, "count_include_pad": 1}
    means = [mender.copy_node([name], drop=["auto_pad", "ceil_mode"], **options)[0] for name in inputs]
    mean = mender.emit("Div", means)
    return _cut_to_windows(mender, mean, sizes, windows) if rounds_up else mean


def _with_zeros_around(mender: Mender, value: DataTensor, windows: Sequence[Window]) -> DataTensor:
    """The tensor `[rows, channels, ...]` with the zeros of each window around its spatial axes, written as a Pad."""
    rows_and_channels = [0] * value.first_dims()[2]
    before, after = [window.before for window in windows], [window.after for window in windows]
    amounts = mender.writer.constant([*rows_and_channels, *before, *rows_and_channels, *after])
    wider = mender.emit("Pad", [value.name, amounts], mode="constant")
    sizes = [
        Size(size.table + window.before + window.after)
        for (size,), window in zip(value.groups[2:], windows, strict=True)
    ]
    return value.with_name(wider, groups=(*value.groups[:2], *groups_of_one(sizes)))


def _ones_like(mender: Mender, value: DataTensor) -> DataTensor:
    """A float32 tensor of ones with the axes of another tensor."""
    one = mender.constant_tensor(mender.writer.scalar(1, FLOAT), np.ones((), np.float32))
    (scalar, _), result = mender.align_axes([one, value])
    return result.with_name(mender.emit("Expand", [scalar.name, mender.emit("Shape", [value.name])]))


def _cut_to_windows(mender: Mender, name: str, sizes: Sequence[Size], windows: Sequence[Window]) -> str:
    """The output of a pool with only the windows that it has at the width of the batch, cut along its spatial axes.

    Args:
        mender: The mender.
        name: The output, in the original's shape.
        sizes: The sizes of the input's spatial axes.
        windows: The window along each of them.
    """
    new_sizes = [Size(window.count(size.table)) for size, window in zip(sizes, windows, strict=True)]
    ends = mender.emit("Concat", [mender.writer.size_at_width(size) for size in new_sizes], axis=0)
    starts = mender.writer.constant([0] * len(new_sizes))
    return mender.emit("Slice", [name, starts, ends, mender.writer.constant([*range(2, 2 + len(new_sizes))])])


_UNKNOWN: Final = 0.5  # the factor of a Resize that is not constant: no whole number, so `_resize` refuses it


@rule("Resize")
def _resize(mender: Mender) -> DataTensor:
    """Mends a change of the number of steps by a factor.

    1. The axes of time keep their size, or each step is repeated a whole number of times (nearest, asymmetric, floor):
       the node runs with scales in the place of sizes, so that a row's padding is repeated after its own steps.
    2. Else steps are interpolated by a ratio of widths, which differs from that of lengths: refused.
    """
    value = mender.data_input(0)
    factors = _resize_factors(mender, value)
    times = [axis for axis, group in enumerate(value.groups) if any(not size.fixed for size in group)]
    repeats_steps = mender.attribute("mode", "nearest") == "nearest" and (
        mender.attribute("coordinate_transformation_mode", "half_pixel") == "asymmetric"
        and mender.attribute("nearest_mode", "round_prefer_floor") == "floor"
    )
    if not repeats_steps or not value.has_original_axes or any(factors[axis] % 1 for axis in times):
        supported = "only repeating each step (nearest, asymmetric, floor, by a whole number) can be mended"
        mender.refuse(f"resamples the steps to another number of steps: {supported}")
    mender.refuse_rows(*(group for axis, group in enumerate(value.groups) if factors[axis] != 1))
    scales = mender.writer.constant(np.array(factors, dtype=np.float32))
    (name,) = mender.copy_node([value.name, "", scales], drop=["axes", "keep_aspect_ratio_policy"])
    groups = tuple(
        group if factors[axis] == 1 else (Size((group[0].table * factors[axis]).astype(np.int64)),)
        for axis, group in enumerate(value.groups)
    )
    return value.with_name(name, groups=groups)


def _resize_factors(mender: Mender, value: DataTensor) -> list[float]:
    """The factor by which a Resize multiplies the size of each axis of a tensor; `_UNKNOWN` where it is not constant.

    A node has either factors (its third input) or the new sizes (its fourth one), for the axes of its attribute `axes`;
    without that, for all axes.
    """
    axes = [axis % value.rank for axis in mender.attribute("axes") or range(value.rank)]
    scales, sizes = mender.input_value(2), mender.input_value(3)
    if isinstance(scales, KnownTensor) and scales.is_constant and scales.table[0, 0].size:
        factors = scales.table[0, 0].tolist()
    elif isinstance(sizes, KnownTensor):
        axis_sizes = [mender.axis_size(value.groups[axis]) for axis in axes]
        quotients = [Size(table).divided_by(size) for table, size in zip(sizes.elements(), axis_sizes, strict=True)]
        factors = [_UNKNOWN if quotient is None or quotient.fixed is None else quotient.fixed for quotient in quotients]
    else:
        return [_UNKNOWN] * value.rank
    by_axis = dict(zip(axes, factors, strict=True))
    return [by_axis.get(axis, 1.0) for axis in range(value.rank)]
