"""What the rules of streaming share: the states, the counts of steps, and what is known of values beside their axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from lengthwise.runtime.manifest import Streaming, StreamState
from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.rules.loops import is_zero
from lengthwise_export.mending.values import DataTensor, KnownTensor, Size, Table
from lengthwise_export.mending.writer import Writer

DOUBLE: Final = TensorProto.DOUBLE
NEXT: Final = "_next"  # what the output of a state is named, after its input


@dataclass(frozen=True, slots=True)
class StateInput:
    """A state while its graph is written."""

    name: str  # the graph's input, `[rows, *shape]`
    shape: tuple[int, ...]  # without the rows
    dtype: int  # a number of `onnx.TensorProto`
    initial: float  # the value that all numbers have before the first step


@dataclass(frozen=True, slots=True)
class Carried:
    """A state in the form of a tensor of the graph."""

    state: str  # Its name
    value: DataTensor  # What the last chunk gave
    ones: Sequence[int]  # Dims of the tensor that the state lacks, as they are of size 1
    order: Sequence[int]  # The other dims of the tensor in the order of the state: the rows first


class StreamingWriter(Writer):
    """Writes the nodes of a streaming graph.

    A length in a table is the total: `lengths`, and what is looked up by it, is of all steps so far. Masks, positions
    and the lengths of recurrent layers are of the chunk.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._states: list[StateInput] = []
        self._numbers: set[str] = set()  # the states that are one number for each row
        self._steps_seen = ""

    @property
    def states(self) -> Sequence[StateInput]:
        """The states that were made so far, in order."""
        return self._states

    def new_state(self, shape: Sequence[int], dtype: int, initial: float, stem: str) -> tuple[str, str]:
        """A new state: its name, an input of the graph, and the value `[rows, *shape]` that it has.

        A number for each row is stored as `[rows, 1]`, as Triton's states have an axis.
        """
        name = self.name(stem)
        self._states.append(StateInput(name, tuple(shape) or (1,), dtype, initial))
        return name, name if shape else self._number_of(name)

    def _number_of(self, state: str) -> str:
        """`[rows]`: the number that a state `[rows, 1]` has for each row."""
        self._numbers.add(state)
        return self.squeezed(state, [1])

    def keep(self, state: str, value: str) -> None:
        """Makes a value what the next chunk gets as a state."""
        value = self.unsqueezed(value, [1]) if state in self._numbers else value
        self.nodes.append(helper.make_node("Identity", [value], [state + NEXT], name=self.name(f"{state}_keep")))

    @property
    def own_lengths(self) -> str:
        """`[rows]` int64: how many steps of the chunk each row has."""
        return super().lengths

    @property
    def steps_seen(self) -> str:
        """`[rows]` int64: how many steps each row had before this chunk."""
        if not self._steps_seen:
            state, self._steps_seen = self.new_state((), TensorProto.INT64, 0, "steps_seen")
            self.keep(state, self.lengths)
        return self._steps_seen

    @property
    def lengths(self) -> str:
        """`[rows]` int64: how many steps each row has so far."""
        return self.emit("Add", [self.steps_seen, self.own_lengths])

    def own_size(self, size: Size) -> str:
        """`[rows]` int64: along a dim of time, how many elements of the chunk each row has."""
        return self._emit_lookup(size.by_length, self.own_lengths)

    def sizes_int32(self, size: Size) -> str:
        """`[rows]` int32: along a dim of time, how many elements of the chunk each row has."""
        if np.array_equal(size.by_length, self._table_lengths) and self._has_int32_lengths:
            return self._lengths_input
        return self.cast(self.own_size(size), TensorProto.INT32)

    def mask(self, size: Size) -> str:
        """`[rows, size]` bool: true at each row's own elements along a dim of time."""
        return self.emit("Less", [self.positions(size), self.unsqueezed(self.own_size(size), [1])])

    def reduced(self, kind: str, name: str, dims: Sequence[int], *, keepdims: int = 0, axes_are_inputs: bool) -> str:
        """A tensor reduced over dims by an operator, whose axes are an input or an attribute by the opset."""
        if kind == "ReduceSum" or axes_are_inputs:
            return self.emit(kind, [name, self.constant(list(dims))], keepdims=keepdims)
        return self.emit(kind, [name], axes=list(dims), keepdims=keepdims)

    def _emit_lookup(self, table: Table, lengths: str) -> str:
        is_one_for_all = bool((table == table[0]).all())
        is_line = table.ndim == 1 and bool((np.diff(table, n=2) == 0).all())
        if not is_one_for_all and not is_line:
            raise UnmendableError("", "follows a table by length, which ends, and a stream does not")
        if is_one_for_all and lengths != self.width:
            shape = self.emit("Concat", [self.rows, self.constant(np.array(table.shape[1:], np.int64))], axis=0)
            return self.emit("Expand", [self.constant(table[:1]), shape])
        return super()._emit_lookup(table, lengths)


@dataclass(frozen=True)
class StreamingMender(Mender):
    """Writes the streaming form of one node. All fields but those of `Mender` are by names of the whole graph."""

    # Counts and positions: their values counted from the first step, where those in `values` are of the chunk
    totals: dict[str, DataTensor] = field(default_factory=dict)
    # Shares: their rescales, with size 1 along the time, float64
    rescales: dict[str, DataTensor] = field(default_factory=dict)
    of_the_whole: set[str] = field(default_factory=set)
    look_ahead: dict[str, int] = field(default_factory=dict)  # 0 where it is not named; negative: steps back
    moved: dict[str, int] = field(default_factory=dict)  # by output, what its node adds to the look-ahead
    positions: set[str] = field(default_factory=set)  # positions in the whole sequence, and what follows from them

    @property
    def states(self) -> StreamingWriter:
        """The writer, which makes states."""
        assert isinstance(self.writer, StreamingWriter)
        return self.writer

    @property
    def stem(self) -> str:
        """What a state of this node is named after: its output."""
        return f"state_{self.node.output[0]}"

    def carried(self, like: DataTensor, dtype: int, initial: float) -> Carried:
        """A new state in the form of a tensor with rows, whose other dims are of fixed size.

        The state has no dims of size 1, but for one if there is no other.
        """
        sizes, rows_dim = [self.rows for _ in like.added_dims] + [*like.dim_sizes], like.rows_dim
        others = [dim for dim in range(len(sizes)) if dim != rows_dim]
        self.refuse_if(
            rows_dim is None or any(sizes[dim].fixed is None for dim in others),
            "would carry a state whose size depends on the steps",
        )
        ones = [dim for dim in others if sizes[dim].fixed == 1]
        kept = [dim for dim in range(len(sizes)) if dim not in ones]
        order = [kept.index(rows_dim or 0), *(index for index, dim in enumerate(kept) if dim != rows_dim)]
        shape = [sizes[kept[index]].fixed or 0 for index in order[1:]]
        stored = TensorProto.INT32 if dtype == TensorProto.BOOL else dtype  # a state holds numbers
        state, value = self.states.new_state(shape, stored, initial, self.stem)
        value = self.writer.unsqueezed(self.writer.transposed(value, np.argsort(order).tolist()), ones)
        value = self.in_type(value, stored, dtype)
        return Carried(state, like.with_name(value, dtype=dtype, zero_padded=False), ones, order)

    def keep(self, carried: Carried, value: str) -> None:
        """Makes a value, in the form of the tensor that a state was made for, what the next chunk gets."""
        if carried.value.dtype == TensorProto.BOOL:
            value = self.writer.cast(value, TensorProto.INT32)
        squeezed = self.writer.squeezed(value, carried.ones)
        self.states.keep(carried.state, self.writer.transposed(squeezed, carried.order))

    def take_per_row(self, value: DataTensor, axis: int, index: str, size: Size, *, clip: bool = True) -> DataTensor:
        """As `Mender.take_per_row`, for positions in the whole sequence: those of earlier chunks are in the state."""
        _, old_size = self.only_dim(value, axis)
        if not old_size.is_time:
            return super().take_per_row(value, axis, index, size, clip=clip)
        self.times_along(value, [axis])
        self.refuse_if(size.fixed is None, "gives each step another step, which may be of an earlier chunk")
        seen = self.writer.unsqueezed(self.states.steps_seen, [1])
        own_index = self.emit("Sub", [index, seen])  # [rows, size]
        picked = super().take_per_row(value, axis, own_index, size)
        return self.picked_or_kept(picked, own_index, axis)

    def picked_or_kept(self, picked: DataTensor, own_index: str, axis: int) -> DataTensor:
        """What was picked where a position is of this chunk, else what the state has.

        Args:
            picked: What was picked, with the axis of the positions.
            own_index: `[rows, size]` int64: the positions, counted from the first step of the chunk.
            axis: The axis of the positions.
        """
        zero, end = self.writer.constant(np.int64(0)), self.writer.unsqueezed(self.states.own_lengths, [1])
        is_own = self.emit("And", [self.emit("GreaterOrEqual", [own_index, zero]), self.emit("Less", [own_index, end])])
        rows_dim, dim = picked.rows_dim or 0, picked.first_dims()[axis]
        order = (1, 0) if dim < rows_dim else (0, 1)
        broad = self.writer.unsqueezed(
            self.writer.transposed(is_own, order),
            [index for index in range(picked.dim_count) if index not in (dim, rows_dim)],
        )
        return self.kept_unless(broad, picked)

    def kept_unless(self, condition: str, new: DataTensor) -> DataTensor:
        """A tensor where a condition is true, else the state of it from the last chunk; the result is the next state.

        Args:
            condition: Bool, which broadcasts with the tensor.
            new: The tensor, with rows and without time.
        """
        carried = self.carried(new, new.dtype, 0)
        value = self.emit("Where", [condition, new.name, carried.value.name])
        self.keep(carried, value)
        return new.with_name(value)

    def folded(
        self, own: DataTensor, combine: str, initial: float, dtype: int, rescale: DataTensor | None = None
    ) -> DataTensor:
        """What a reduction gives for all steps so far, from what it gives for the own steps and a state.

        Args:
            own: What it gives for the own steps.
            combine: The operator that combines two parts: `Add`, `Max`, ...
            initial: What it gives for no steps.
            dtype: The element type of the state.
            rescale: The factor of the earlier part, where shares are summed.
        """
        carried = self.carried(own, dtype, initial)
        kept = carried.value if rescale is None else self.broadcast_node("Mul", carried.value, rescale)
        total = self.emit(combine, [kept.name, self.in_type(own.name, own.dtype, dtype)])
        self.keep(carried, total)
        return own.with_name(self.in_type(total, dtype, own.dtype), zero_padded=False)

    def in_type(self, name: str, dtype: int, to: int) -> str:
        """A tensor in another element type, by a Cast if it differs."""
        return name if dtype == to else self.writer.cast(name, to)

    def count(self, table: NDArray[Any], dtype: int) -> DataTensor:
        """A number for each row that follows from its total: `table` `[2, lengths]` has it at each length."""
        return self.as_data(KnownTensor("", np.asarray(table, helper.tensor_dtype_to_np_dtype(dtype))))

    def per_row(self, name: str, dtype: int) -> DataTensor:
        """An int64 tensor `[rows]`, in an element type, as a number for each row that broadcasts with any tensor."""
        return DataTensor(self.in_type(name, TensorProto.INT64, dtype), dtype, (), has_added_rows=True)

    def with_node(self, index: int, value: DataTensor) -> StreamingMender:
        """A mender of the same node with another input, by its index."""
        node = NodeProto()
        node.CopyFrom(self.node)
        node.input[index] = self.register(value)
        return replace(self, node=node)

    # -- recurrent layers ---------------------------------------------------------------------------------------------

    def constant_name(self, index: int) -> str:
        """The name of an input of the node that has to be constant; empty if the node does not have it."""
        return "" if self.constant_input(index) is None else self.values[self.node.input[index]].name

    def begun(self, carried: Carried, index: int) -> str:
        """What a layer begins with: the state, or before the first step the numbers that an input of the node has."""
        begin = self.input_value(index)
        if begin is None or is_zero(self, begin.name):
            return carried.value.name
        self.refuse_if(
            not isinstance(begin, KnownTensor) or begin.constant is None,
            "begins with a state that is computed from the steps, or from another layer's end: begin with zeros",
        )
        is_first = self.emit("Equal", [self.states.steps_seen, self.writer.constant(np.int64(0))])
        return self.emit("Where", [self.writer.unsqueezed(is_first, [0, 2]), begin.name, carried.value.name])

    def copy_with_all_outputs(self, inputs: Sequence[str], count: int) -> list[str]:
        """Writes a copy of the node with other inputs, whose outputs after the first one all have names."""
        node = NodeProto()
        node.CopyFrom(self.node)
        names = [*self.node.output, *[""] * count][:count]
        node.output[:] = [names[0], *(name or self.writer.name(f"{self.node.op_type}_end") for name in names[1:])]
        return replace(self, node=node).copy_node(inputs)

    # -- what mixes steps ---------------------------------------------------------------------------------------------

    @property
    def is_position(self) -> bool:
        """Whether an input of the node is a position in the whole sequence."""
        return any(name in self.positions for name in self.node.input)

    def times_along(self, value: DataTensor, axes: Sequence[int]) -> list[int]:
        """The dim of time among axes, in a list, for a node that mixes the steps; an empty list if there is none.

        Raises:
            UnmendableError: Its steps are not those of the sequence, or depend on later ones.
        """  # noqa: DOC502 - `refuse_if` raises it
        times = value.time_dims()
        along = [dim for axis in axes for dim in value.dims_of(axis) if dim in times]
        self.refuse_if(len(along) > 1, "reduces two axes of the steps at once")
        for dim in along:
            self.refuse_if(
                not np.array_equal(times[dim].by_length, self.lengths),
                "mixes another number of steps than the sequence has: give a convolution before it stride 1, and as "
                "many zeros in front of the steps as its kernel reads before one",
            )
            reach = max(self.look_ahead.get(name, 0) for name in self.node.input)
            self.refuse_if(
                reach > 0,
                f"mixes values that look {reach} steps ahead: put all zeros of a convolution in front of the steps "
                "(causal)",
            )
        return along

    @property
    def rescale_of_input(self) -> DataTensor | None:
        """The rescale of the input of the node that is a share; None if none is."""
        return next((self.rescales[name] for name in self.node.input if name in self.rescales), None)


def described(states: Sequence[StateInput]) -> Streaming:
    """The states as the manifest has them."""
    types = [np.dtype(helper.tensor_dtype_to_np_dtype(state.dtype)) for state in states]
    described = tuple(
        StreamState(name=state.name, shape=state.shape, dtype=str(dtype), initial=state.initial)  # type: ignore[arg-type]
        for state, dtype in zip(states, types, strict=True)
    )
    sizes = [math.prod(state.shape) * dtype.itemsize for state, dtype in zip(states, types, strict=True)]
    return Streaming(states=described, state_bytes=sum(sizes))
