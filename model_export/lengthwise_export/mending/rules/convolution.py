"""Rules for convolutions, pools and Resize: zeros at the padding, and the number of steps of the output.

*Spatial axes* are those after the rows and the channels of `[rows, channels, ...]`; here they are mostly the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from lengthwise_export.mending.engine import rule
from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.values import (
    DataTensor,
    KnownTensor,
    Size,
    Table,
    constant_in,
    groups_of_one,
)


@dataclass(frozen=True)
class Window:
    """How a kernel moves along one spatial axis."""

    kernel: int  # Its size in steps, with the holes of a dilation
    stride: int  # The distance between two windows in steps
    before: int  # Zeros in front of the axis
    after: int  # Zeros after it
    rounds_up: bool = False  # Whether a last window that reaches beyond the zeros counts (`ceil_mode`)
    # Where the zeros depend on the length: those in front and after, `[lengths]` each; they are written as steps, so
    # `before` and `after` are 0. Only `auto_pad` SAME with a stride has such zeros.
    own_zeros: tuple[Table, Table] | None = None

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


def windows_of(mender: Mender, kernel: Sequence[int], sizes: Sequence[Size]) -> list[Window]:
    """The window along each spatial axis, from the attributes of the node.

    Args:
        mender: The mender, whose node is a convolution or a pool.
        kernel: The kernel's size along each spatial axis, without a dilation.
        sizes: The sizes of the spatial axes.
    """
    count, auto_pad = len(kernel), mender.attribute("auto_pad", "NOTSET")
    strides, dilations, pads = (
        mender.attribute(name) or [default] * (count * numbers_per_axis)
        for name, default, numbers_per_axis in (("strides", 1, 1), ("dilations", 1, 1), ("pads", 0, 2))
    )
    windows = []
    for index, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        dilated, own_zeros = dilations[index] * (kernel[index] - 1) + 1, None
        before, after = (0, 0) if auto_pad == "VALID" else (pads[index], pads[index + count])
        if auto_pad.startswith("SAME"):
            halves = _same_zeros(size.by_length, dilated, stride, more_after=auto_pad == "SAME_UPPER")
            before, after = (int(half.max()) for half in halves)
            if (halves[0] != before).any():
                before, after, own_zeros = 0, 0, halves
        windows.append(Window(dilated, stride, before, after, bool(mender.attribute("ceil_mode", 0)), own_zeros))
    return windows


def _same_zeros(size: Table, kernel: int, stride: int, *, more_after: bool) -> tuple[Table, Table]:
    """The zeros that `auto_pad` SAME puts in front of an axis, and after it, for each of its sizes.

    ONNX puts the number of zeros that gives one window for every `stride` steps, half of them on each side. Of an odd
    number, the larger half goes after the axis if `more_after`, else in front.
    """
    zeros = np.maximum((-(-size // stride) - 1) * stride + kernel - size, 0)
    smaller_half, larger_half = zeros // 2, zeros - zeros // 2
    return (smaller_half, larger_half) if more_after else (larger_half, smaller_half)


def surrounded(
    mender: Mender, value: DataTensor, axis: int, amounts: tuple[Table, Table], fill: float, cause: str
) -> DataTensor:
    """Puts steps of the number `fill` in front of and after each row's own steps; how many depends on its length.

    One step of `fill` is put in front of the whole width, and one after it. Each row then picks its own steps, and for
    the positions around them the step of `fill`.

    Args:
        mender: The mender.
        value: The tensor.
        axis: The axis of time.
        amounts: How many steps are added in front, and after: `[lengths]` each.
        fill: The number that they have.
        cause: The cause that the result gets.
    """
    value = mender.fill_padding(value, axis, fill, cause)
    new_size = Size(mender.only_dim(value, axis)[1].table + sum(amounts))
    # In the tensor with the two steps of `fill`, a row's own steps begin at 1. Positions outside of the tensor are
    # taken for its first or last step, which are `fill`; what lies behind a row's own steps was filled above.
    index = mender.strided_positions(1 - amounts[0], 1, new_size)
    return mender.take_per_row(mender.padded(value, {axis: (1, 1)}, fill=fill), axis, index, new_size)


def _spatial_sizes(mender: Mender, value: DataTensor, rank: int) -> list[Size]:
    """The sizes of the spatial axes of a tensor `[rows, channels, ...]` of `rank` axes; refuses another tensor."""
    mender.refuse_if(value.has_added_rows or value.rank != rank, "runs over a single sequence, not over rows")
    return [mender.only_dim(value, axis)[1] for axis in range(2, rank)]


_Emit = Callable[[DataTensor, list[Window]], str]  # writes the node for a masked tensor, returns its output's name


def _mend_windows(
    mender: Mender,
    value: DataTensor,
    kernel: Sequence[int],
    emit: _Emit,
    *,
    channels: Size | None = None,
    fill: float = 0,
    cause: str = "its window reads beyond the last step",
) -> DataTensor:
    """Mends a convolution or a pool: puts `fill` at the padding that a window reads, then writes the node.

    Args:
        mender: The mender.
        value: The node's first input, `[rows, channels, ...]`.
        kernel: The kernel's size along each spatial axis, without a dilation.
        emit: Writes the node for the filled tensor and its windows; returns the name of the output.
        channels: The number of channels of the output; None for that of the input.
        fill: The number at the padding that does not change the output of a window.
        cause: The cause, if a window reads padding.

    Returns:
        The output. Lengths at which it has no step are left out.
    """
    sizes = _spatial_sizes(mender, value, len(kernel) + 2)
    _, input_channels = mender.only_dim(value, 1)
    mender.refuse_rows(sizes, (input_channels,))
    mender.refuse_if(
        input_channels.is_time, "takes the steps for its channels, so its width is fixed: transpose before it"
    )
    windows = windows_of(mender, kernel, sizes)
    for index, window in enumerate(windows):
        if window.own_zeros is not None:
            zeros_cause = "the zeros in front of the steps are counted for the padded width"
            value = surrounded(mender, value, index + 2, window.own_zeros, fill, zeros_cause)
            (sizes[index],) = value.groups[index + 2]
    dims = [value.first_dims()[index + 2] for index, window in enumerate(windows) if window.reads_beyond(sizes[index])]
    value = mender.masked(value, dims, fill, cause)
    new_sizes = [Size(window.count(size.table)) for size, window in zip(sizes, windows, strict=True)]
    for size in new_sizes:  # the original raises at lengths without a window
        mender.require_lengths(size.by_length >= 1)
    return _with_channels(mender, value, emit(value, windows), channels or input_channels, new_sizes)


def _with_channels(
    mender: Mender, value: DataTensor, name: str, channels: Size, spatial_sizes: Sequence[Size]
) -> DataTensor:
    """Describes the output of a node for a tensor `[rows, channels, ...]`; if its rows are merged, splits them again.

    Args:
        mender: The mender.
        value: The tensor.
        name: The name of the output; its rows are one dim, also if those of the tensor are merged.
        channels: The number of channels of the output.
        spatial_sizes: The sizes of its spatial axes.
    """
    name = mender.unmerge_first_axis(name, value.groups[0], value.rank)
    groups = (value.groups[0], (channels,), *groups_of_one(spatial_sizes))
    return DataTensor(name, value.dtype, groups, cause=value.cause)


def _pads(windows: Sequence[Window]) -> list[int]:
    """The attribute `pads` of ONNX: how many positions are added in front along each spatial axis, then behind."""
    return [window.before for window in windows] + [window.after for window in windows]


def _emitter_with_pads(mender: Mender, *further_inputs: str) -> _Emit:
    """Returns a function for the argument `emit` of `_mend_windows`: it writes the node again, with explicit `pads`.

    These say how many positions its windows read in front of the first step and behind the last; `auto_pad` goes.
    `further_inputs` are the names of the node's inputs after the first one.
    """
    return lambda masked, windows: mender.copy_node(
        [mender.in_original_shape(masked), *further_inputs], drop=["auto_pad"], pads=_pads(windows)
    )[0]


@rule("Conv", requires={"its weights have no axis of the kernel": lambda mender, _: mender.constant_input(1).ndim > 2})
def _conv(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a convolution: it reads zeros after a lone sequence, and would read the padding of a row.

    1. A window reads beyond the last step: the padding gets zeros, then the node runs.
    2. None does (a kernel of 1, a causal convolution): the node stays.
    3. `auto_pad` with a stride puts more or fewer zeros in front at some lengths: each row gets its own number of them.

    Weights as wide as the sequences accept one length only, so they are refused.
    """
    emit, (channels, _, *kernel) = _emitter_with_pads(mender, *mender.further_inputs()), mender.constant_input(1).shape
    cause = "its kernel reads beyond the last step, where a lone sequence has zeros"
    return _mend_windows(mender, value, kernel, emit, channels=mender.fixed_size(channels), cause=cause)


@rule(
    "ConvTranspose",
    requires={
        "its output's size is set by hand: give it pads instead of output_shape or auto_pad": (
            lambda mender, _: (
                not mender.attribute("output_shape") and mender.attribute("auto_pad", "NOTSET") == "NOTSET"
            )
        )
    },
)
def _conv_transpose(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a transposed convolution, which spreads each step over several: the padding gets zeros.

    An output size that is set by hand (`output_shape`, `auto_pad`) is refused: it holds for one width only.
    """
    _, channels, *kernel = mender.constant_input(1).shape
    sizes = _spatial_sizes(mender, value, len(kernel) + 2)
    windows = windows_of(mender, kernel, sizes)
    output_padding = mender.attribute("output_padding") or [0] * len(windows)
    dims = [value.first_dims()[index + 2] for index, size in enumerate(sizes) if size.is_time]
    value = mender.masked(value, dims, 0, "its kernel spreads the padding over the last steps")
    new_sizes = [
        Size(np.maximum((size.table - 1) * window.stride + more + window.kernel - window.before - window.after, 0))
        for size, window, more in zip(sizes, windows, output_padding, strict=True)
    ]
    (name,) = mender.copy_node([mender.in_original_shape(value), *mender.further_inputs()])
    return _with_channels(mender, value, name, mender.fixed_size(channels * mender.attribute("group", 1)), new_sizes)


@rule(
    "MaxPool",
    "LpPool",
    requires={
        "gives the indices of the largest values, which count the padding": lambda mender, _: mender.output_count == 1
    },
)
def _pool(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends the largest value (MaxPool) or the norm (LpPool) of each window.

    Padding that a window reads gets a number that does not count there: for MaxPool the smallest finite number, for
    LpPool 0. The indices of the largest values are refused, because they count the padding.
    """
    fill = mender.neutral_extreme(value.dtype, finite=True) if mender.node.op_type == "MaxPool" else 0
    return _mend_windows(mender, value, mender.attribute("kernel_shape"), _emitter_with_pads(mender), fill=fill)


def _has_fixed_pads(mender: Mender, value: DataTensor) -> bool:
    """Whether the number of zeros around the spatial axes of a pool is the same at all lengths."""
    kernel = mender.attribute("kernel_shape")
    windows = windows_of(mender, kernel, _spatial_sizes(mender, value, len(kernel) + 2))
    return all(window.own_zeros is None for window in windows)


@rule("AveragePool", requires={"averages with auto_pad at a stride: give it fixed pads": _has_fixed_pads})
def _average_pool(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends the mean of each window, by `_averaged`."""
    return _mend_windows(mender, value, mender.attribute("kernel_shape"), partial(_averaged, mender))


def _averaged(mender: Mender, masked: DataTensor, windows: list[Window]) -> str:
    """The `emit` of `_mend_windows` for an AveragePool.

    1. No window reads beyond a row's own steps; or, without `ceil_mode`, each mean is divided by the kernel's size
       (there are no zeros around the steps, or they count): the node runs on zeros at the padding.
    2. Else AveragePool(steps) / AveragePool(mask): both are divided by the kernel's size, which cancels out, so only
       the row's own steps count. If the zeros around the steps count (`count_include_pad`), they become steps first,
       with a mask of 1. Where the last window may reach beyond the steps (`ceil_mode`), its divisor would depend on the
       width: zeros are added until no window reaches beyond them, and the windows that are too many are cut off.

    Args:
        mender: The mender, whose node is the AveragePool.
        masked: The steps, with zeros at the padding.
        windows: The window along each spatial axis.

    Returns:
        The name of the output.
    """
    # Case 1
    is_divided_by_kernel = not any(_pads(windows)) or mender.attribute("count_include_pad", 0)
    reads_padding = any(window.reads_beyond(size) for (size,), window in zip(masked.groups[2:], windows, strict=True))
    if not reads_padding or (is_divided_by_kernel and not windows[0].rounds_up):
        return _emitter_with_pads(mender)(masked, windows)
    # Case 2
    rounds_up, pads = windows[0].rounds_up, _pads(windows)
    sizes = [size for (size,) in masked.groups[2:]]
    if mender.attribute("count_include_pad", 0):
        around = {axis: (window.before, window.after) for axis, window in enumerate(windows, start=2)}
        masked, pads = mender.padded(masked, around), [0] * len(pads)
    # The mask: a 1 for each element of the steps, 0 at the padding
    (one, _), ones = mender.align_axes([mender.emit_constant(np.ones((), np.float32)), masked])
    ones = ones.with_name(mender.emit("Expand", [one.name, mender.emit("Shape", [masked.name])]))
    mask = mender.masked(ones, masked.time_dims(), 0)
    inputs = [mender.in_original_shape(factor) for factor in (masked, mask)]
    if rounds_up:
        after = [min(window.kernel, window.stride) - 1 for window in windows]
        amounts = mender.writer.constant([0] * (len(after) + 4) + after)
        inputs = [mender.emit("Pad", [name, amounts], mode="constant") for name in inputs]
    options: dict[str, Any] = {"name_suffix": "share", "pads": pads, "count_include_pad": 1}
    means = [mender.copy_node([name], drop=["auto_pad", "ceil_mode"], **options)[0] for name in inputs]
    mean = mender.emit("Div", means)
    if not rounds_up:
        return mean
    # Only the windows that the pool has at the width of the batch
    new_sizes = [Size(window.count(size.table)) for size, window in zip(sizes, windows, strict=True)]
    ends = mender.emit("Concat", [mender.writer.size_at_width(size) for size in new_sizes], axis=0)
    axes = [*range(2, 2 + len(new_sizes))]
    return mender.emit("Slice", [mean, mender.writer.constant([0] * len(axes)), ends, mender.writer.constant(axes)])


_UNKNOWN: Final = 0.5  # the factor of a Resize that is not constant: no whole number, so `_resize` refuses it

_REPEATING: Final = frozenset(
    {
        ("asymmetric", "floor"),  # F.interpolate(mode="nearest")
        ("half_pixel", "round_prefer_floor"),  # mode="nearest-exact", and an Upsample of opset 9
        ("half_pixel", "round_prefer_ceil"),
    }
)
"""How a Resize to a whole multiple finds the step that it repeats: by transformation and rounding.

With half_pixel, the position in the input is never in the middle between two steps, so both ways to round are the same.
"""


@rule("Resize")
def _resize(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a change of the number of steps by a factor.

    1. Each step is repeated a whole number of times, once or more, as `_REPEATING` says: the node runs with scales in
       the place of sizes, so that a row's padding is repeated after its own steps.
    2. Else steps may be interpolated by a ratio of widths, which differs from that of lengths: refused, and so are
       merged axes and added rows.
    """
    factors = _resize_factors(mender, value)
    times = [axis for axis, group in enumerate(value.groups) if any(not size.fixed for size in group)]
    how = (
        mender.attribute("coordinate_transformation_mode", "half_pixel"),
        mender.attribute("nearest_mode", "round_prefer_floor"),
    )
    repeats_steps = mender.attribute("mode", "nearest") == "nearest" and how in _REPEATING
    if not repeats_steps or not value.has_original_axes or any(factors[axis] % 1 for axis in times):
        supported = "only repeating each step (nearest, by a whole number) can be mended"
        mender.refuse(f"resamples the steps to another number of steps: {supported}")
    mender.refuse_rows(*(group for axis, group in enumerate(value.groups) if factors[axis] != 1))
    scales = mender.writer.constant(np.array(factors, dtype=np.float32))
    kept = mender.keep_node(value, ["", scales], drop=["axes", "keep_aspect_ratio_policy"])
    groups = tuple(
        group if factors[axis] == 1 else (Size((group[0].table * factors[axis]).astype(np.int64)),)
        for axis, group in enumerate(value.groups)
    )
    return replace(kept, groups=groups, zero_padded=value.zero_padded)


def _resize_factors(mender: Mender, value: DataTensor) -> list[float]:
    """The factor by which a Resize multiplies the size of each axis of a tensor; `_UNKNOWN` where it is not constant.

    A node has either factors (its third input) or the new sizes (its fourth one), for the axes of its attribute `axes`;
    without that, for all axes.
    """
    axes = [axis % value.rank for axis in mender.attribute("axes") or range(value.rank)]
    scales, sizes = constant_in(mender.input_value(2)), mender.input_value(3)
    if scales is not None and scales.size:
        factors = scales.tolist()
    elif isinstance(sizes, KnownTensor):
        axis_sizes = [mender.axis_size(value.groups[axis]) for axis in axes]
        quotients = [Size(table).divided_by(size) for table, size in zip(sizes.elements(), axis_sizes, strict=True)]
        factors = [_UNKNOWN if quotient is None or quotient.fixed is None else quotient.fixed for quotient in quotients]
    else:
        return [_UNKNOWN] * value.rank
    by_axis = dict(zip(axes, factors, strict=True))
    return [by_axis.get(axis, 1.0) for axis in range(value.rank)]
