"""What the rules of streaming share: the states, the counts of steps, and what is known of values beside their axes."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from lengthwise.exporter_api.contract import Streaming, StreamState
from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.rules.loops import is_zero
from lengthwise_export.mending.values import DataTensor, KnownTensor, Size, Table
from lengthwise_export.mending.writer import Writer
from lengthwise_export.onnx_graphs.carried_states import NEXT
from lengthwise_export.onnx_graphs.protos import NodeWriter

DOUBLE: Final = TensorProto.DOUBLE
_HIDDEN: Final = -1e30  # a score below this, and finite, has no share of a softmax, and is no maximum
_MOST_STEPS: Final = 2**48  # of a stream; more than a manifest's `max_steps` in practice
MOST_AHEAD: Final = 4096  # steps: with each chunk, at most this many are computed again


@dataclass(frozen=True, slots=True)
class Carried:
    """A state in the form of a tensor of the graph."""

    state: str  # Its name
    value: DataTensor  # What the last chunk gave
    ones: Sequence[int]  # Dims of the tensor that the state lacks, as they are of size 1
    order: Sequence[int]  # The other dims of the tensor in the order of the state: the rows first


class LooksAhead(Exception):
    """A value looks further ahead than was assumed. Argument: how many steps."""


@dataclass(frozen=True, slots=True)
class ChunkWindow:
    """What nodes get in the place of the chunk if a graph looks ahead: the last earlier steps, then the chunk's."""

    steps: str  # the steps
    lengths: str  # `[rows]`, in the type of the graph's input
    before: str  # `[rows]` int64: how many steps the row had before the window
    committed: str  # `[rows]` int64: how many steps of the window are committed (`StreamingWriter`)


class StreamingWriter(Writer):
    """Writes the nodes of a streaming graph.

    A length in a table is the total: `lengths`, and what is looked up by it, is of all steps so far. Masks, positions
    and the lengths of recurrent layers are of the chunk.

    Where the graph looks ahead by some steps, its states lag that many steps behind, and there are two passes over the
    nodes: one for the answer, up to the last step; and one for the states, up to the last *committed* step: no later
    step changes what is computed up to there. Nodes that are the same in both passes are written once.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.commits = True  # whether this pass writes the states; without look-ahead, one pass does all
        self.mixes = False  # whether the node mixes steps
        self._window: ChunkWindow | None = None
        self._states: dict[tuple[str, int], StreamState] = {}  # by stem, and the number among those of this stem
        self._numbers: set[str] = set()  # the names of states that are one number for each row
        self._made: Counter[str] = Counter()  # by stem, how many states this pass has used so far
        self._copies: dict[bytes, list[str]] = {}  # by the content of a copied node: its outputs
        self._names_of_copies: set[str] = set()

    def begin(self, *, commits: bool) -> None:
        """Begins a pass over the nodes, in which they get the states that an earlier pass made for them."""
        self.commits = commits
        self._made.clear()

    def look_back(self, window: ChunkWindow) -> None:
        """From now on, the nodes get a window in the place of the chunk."""
        self._window, self._steps_input, self._lengths_input = window, window.steps, window.lengths

    @property
    def states(self) -> Sequence[StreamState]:
        """The states that were made so far, in order."""
        return [*self._states.values()]

    def new_state(self, shape: Sequence[int], dtype: int, initial: float, stem: str) -> tuple[str, str]:
        """Makes a state of the node, unless an earlier pass did; returns its name, and that of its value.

        The name is that of an input of the graph, the value is `[rows, *shape]`.

        A number for each row is stored as `[rows, 1]`, as Triton's states have an axis.
        """
        self._made[stem] += 1
        key = stem, self._made[stem]
        if key not in self._states:
            kind: Any = str(np.dtype(helper.tensor_dtype_to_np_dtype(dtype)))
            own_name = self.name(re.sub(r"\W", "_", stem))
            self._states[key] = StreamState(name=own_name, shape=tuple(shape) or (1,), dtype=kind, initial=initial)
        name = self._states[key].name
        if not shape:
            self._numbers.add(name)
        return name, name if shape else self.squeezed(name, [1])

    def keep(self, state: str, value: str) -> None:
        """Writes the value that the next chunk gets as a state; nothing, in a pass that does not write the states."""
        if self.commits:
            value = self.unsqueezed(value, [1]) if state in self._numbers else value
            self.nodes.append(helper.make_node("Identity", [value], [state + NEXT], name=self.name(f"{state}_keep")))

    def copy(self, node: NodeProto, inputs: Sequence[str], **options: Any) -> list[str]:
        """As `NodeWriter.copy`; a node with the same inputs and attributes is not written again."""
        scratch = NodeWriter(set(), "")
        scratch.copy(node, inputs, **options | {"name_suffix": ""})
        (content,) = scratch.nodes
        names, content.name = list(content.output), ""
        content.output[:] = ["used" if name else "" for name in names]
        key = content.SerializeToString(deterministic=True)
        if key not in self._copies:
            if not self._names_of_copies.isdisjoint(filter(None, names)):
                options["name_suffix"] = f"{options.get('name_suffix', '')}committed"
            self._copies[key] = super().copy(node, inputs, **options)
            self._names_of_copies.update(self._copies[key])
        return self._copies[key]

    # -- counts -------------------------------------------------------------------------------------------------------

    @property
    def own_lengths(self) -> str:
        """`[rows]` int64: how many steps of the chunk each row has; of those, for states, how many are committed."""
        return self.committed if self.are_committed else super().lengths

    @property
    def are_committed(self) -> bool:
        """Whether only committed steps count: this pass is for states that lag behind, and the node mixes steps."""
        return self._window is not None and self.commits and self.mixes

    @property
    def committed(self) -> str:
        """`[rows]` int64: how many steps of the chunk are committed."""
        return super().lengths if self._window is None else self._window.committed

    @property
    def steps_before(self) -> str:
        """`[rows]` int64: how many steps each row had before the chunk."""
        return self.steps_seen if self._window is None else self._window.before

    @functools.cached_property
    def steps_seen(self) -> str:
        """`[rows]` int64: how many steps each row had in earlier chunks, which is a state.

        A client may have made it up: it is bounded, so that what is computed from it neither overflows nor picks
        outside of a tensor.
        """
        state, made = self.new_state((), TensorProto.INT64, 0, "steps_seen")
        value = self.emit("Clip", [made, self.constant(np.int64(0)), self.constant(np.int64(_MOST_STEPS))])
        self.keep(state, self.emit("Add", [value, super().lengths]))
        return value

    def with_steps_seen(self) -> Sequence[StreamState]:
        """Makes the number of steps seen a state, if it is none yet; returns all states."""
        return self.states if self.steps_seen else ()

    @property
    def lengths(self) -> str:
        """`[rows]` int64: how many steps each row has so far."""
        return self.emit("Add", [self.steps_before, super().lengths])

    def own_size(self, size: Size) -> str:
        """`[rows]` int64: along a dim of time, how many elements of the chunk each row has."""
        return self._emit_lookup(size.by_length, self.own_lengths)

    def sizes_int32(self, size: Size) -> str:
        """`[rows]` int32: along a dim of time, how many elements of the chunk each row has."""
        if np.array_equal(size.by_length, self._table_lengths) and self._has_int32_lengths and self._window is None:
            return self._lengths_input
        return self.cast(self.own_size(size), TensorProto.INT32)

    def mask(self, size: Size) -> str:
        """`[rows, size]` bool: true at each row's own elements along a dim of time."""
        return self.emit("Less", [self.positions(size), self.unsqueezed(self.own_size(size), [1])])

    def reduced(self, kind: str, name: str, dims: Sequence[int], *, keepdims: int = 0, axes_are_inputs: bool) -> str:
        """Writes a reduction of a tensor over dims, which are an input or an attribute, as the opset wants it."""
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

    most_ahead: int = 0  # how many steps the states lag behind
    # Counts and positions: their values counted from the first step, where those in `values` are of the chunk
    totals: dict[str, DataTensor] = field(default_factory=dict)
    # Shares: their rescales, with size 1 along the time, float64. A second one is that of the own steps
    rescales: dict[str, tuple[DataTensor, ...]] = field(default_factory=dict)
    of_the_whole: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)  # depend on all steps, but stay the same after the committed ones
    look_ahead: dict[str, int] = field(default_factory=dict)  # 0 where it is not named; negative: steps back
    moved: dict[str, int] = field(default_factory=dict)  # by output, what its node adds to the look-ahead
    masks: set[str] = field(default_factory=set)  # true at each row's own steps, and nowhere else
    fills: dict[str, float] = field(default_factory=dict)  # by names of the streaming graph: the number at all padding
    shifted: set[str] = field(default_factory=set)  # counts and positions with a number added
    positions: set[str] = field(default_factory=set)  # positions in the whole sequence, and what follows from them

    @property
    def states(self) -> StreamingWriter:
        """The writer, which makes states."""
        assert isinstance(self.writer, StreamingWriter)
        return self.writer

    @property
    def stem(self) -> str:
        """What a state of this node is named after: its output."""
        return f"state_{self.node.output[0] or self.node.op_type.lower()}"

    def carried(self, like: DataTensor, dtype: int, initial: float) -> Carried:
        """Makes a state in the form of a tensor with rows, whose other dims are of fixed size.

        The state lacks the dims of size 1; if all of them are, it has one.
        """
        sizes, rows_dim = [self.rows for _ in like.added_dims] + [*like.dim_sizes], like.rows_dim
        others = [dim for dim in range(len(sizes)) if dim != rows_dim]
        self.refuse_if(
            rows_dim is None or any(sizes[dim].fixed is None for dim in others),
            "would carry a state whose size depends on the steps",
        )
        ones = [dim for dim in others if sizes[dim].fixed == 1]
        ones = ones[len(ones) == len(others) :]
        kept = [dim for dim in range(len(sizes)) if dim not in ones]
        order = [kept.index(rows_dim or 0), *(index for index, dim in enumerate(kept) if dim != rows_dim)]
        shape = [sizes[kept[index]].fixed or 0 for index in order[1:]]
        stored = TensorProto.INT32 if dtype == TensorProto.BOOL else dtype  # a state holds numbers
        state, value = self.states.new_state(shape, stored, initial, self.stem)
        value = self.writer.unsqueezed(self.writer.transposed(value, np.argsort(order).tolist()), ones)
        value = self.in_type(value, stored, dtype)
        return Carried(state, like.with_name(value, dtype=dtype, zero_padded=False), ones, order)

    def keep(self, carried: Carried, value: str) -> None:
        """Writes the value that the next chunk gets as a state; its form is that of the tensor `carried.value`."""
        if carried.value.dtype == TensorProto.BOOL:
            value = self.writer.cast(value, TensorProto.INT32)
        squeezed = self.writer.squeezed(value, carried.ones)
        self.states.keep(carried.state, self.writer.transposed(squeezed, carried.order))

    def masked(self, value: DataTensor, dims: Iterable[int], fill: float, cause: str = "") -> DataTensor:
        """As `Mender.masked`; nothing is written if the graph itself fills the padding with such a number.

        Such a fill does not hide steps that are not committed: where only committed steps count, the mask is written.
        """
        if self.states.are_committed:
            return super().masked(replace(value, zero_padded=False), dims, fill, cause)
        held = self.fills.get(value.name, math.nan)
        hides_as_well = held == fill or -math.inf < max(held, fill) < _HIDDEN
        return value if hides_as_well else super().masked(value, dims, fill, cause)

    def take_per_row(self, value: DataTensor, axis: int, index: str, size: Size, *, clip: bool = True) -> DataTensor:
        """As `Mender.take_per_row`, for positions in the whole sequence: those of earlier chunks are in the state."""
        _, old_size = self.only_dim(value, axis)
        if not old_size.is_time:
            return super().take_per_row(value, axis, index, size, clip=clip)
        self.times_along(value, [axis])
        self.refuse_if(size.fixed is None, "gives each step another step, which may be of an earlier chunk")
        seen = self.writer.unsqueezed(self.states.steps_before, [1])
        own_index = self.emit("Sub", [index, seen])  # [rows, size]
        picked = super().take_per_row(value, axis, own_index, size)
        return self.taken_or_earlier(picked, own_index, axis)

    def taken_or_earlier(self, picked: DataTensor, own_index: str, axis: int) -> DataTensor:
        """What was picked where a position is in this chunk, elsewhere the state; the result is the next state.

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
        return self.new_or_earlier(broad, picked)

    def new_or_earlier(self, condition: str, new: DataTensor) -> DataTensor:
        """The tensor where a condition is true, elsewhere the state; the result is the next state.

        Args:
            condition: Bool, which broadcasts with the tensor.
            new: The tensor, with rows and without time.
        """
        carried = self.carried(new, new.dtype, 0)
        value = self.emit("Where", [condition, new.name, carried.value.name])
        self.keep(carried, value)
        return new.with_name(value)

    def folded(
        self, own: DataTensor, combine: str, initial: float, dtype: int, rescales: Sequence[DataTensor] = ()
    ) -> DataTensor:
        """Combines what a reduction gives for the own steps with a state; returns the result for all steps so far.

        Args:
            own: What it gives for the own steps.
            combine: The operator that combines two parts: `Add`, `Max`, ...
            initial: What it gives for no steps.
            dtype: The element type of the state.
            rescales: Where shares are summed, the factor of the earlier part, and maybe that of the own one.
        """
        carried = self.carried(own, dtype, initial)
        new = own.with_name(self.in_type(own.name, own.dtype, dtype), dtype=dtype)
        pairs = itertools.zip_longest((carried.value, new), rescales)
        parts = [part if factor is None else self.broadcast_node("Mul", part, factor) for part, factor in pairs]
        total = self.emit(combine, [part.name for part in parts])
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

    def with_input(self, index: int, value: DataTensor) -> StreamingMender:
        """A mender for a copy of the node, with another value as the input of this index."""
        node = NodeProto()
        node.CopyFrom(self.node)
        node.input[index] = self.register(value)
        return replace(self, node=node)

    # -- recurrent layers ---------------------------------------------------------------------------------------------

    def constant_name(self, index: int) -> str:
        """The name of an input of the node that has to be constant; empty if the node does not have it."""
        return "" if self.constant_input(index) is None else self.values[self.node.input[index]].name

    def begun(self, carried: Carried, index: int) -> str:
        """What a layer begins with: the state; before the first step, the numbers of an input of the node."""
        begin = self.input_value(index)
        if begin is None or is_zero(self, begin.name):
            return carried.value.name
        self.refuse_if(
            isinstance(begin, DataTensor) and begin.sources,
            "begins with a state that is computed from the steps, or from another layer's end: begin with zeros",
        )
        is_first = self.emit("Equal", [self.states.steps_before, self.writer.constant(np.int64(0))])
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
            UnmendableError: Its steps are not those of the sequence, or look more than `MOST_AHEAD` steps ahead.
            LooksAhead: They look further ahead than the states lag behind.
        """  # noqa: DOC502 - what it calls raises them
        times = value.time_dims()
        along = [dim for axis in axes for dim in value.dims_of(axis) if dim in times]
        self.refuse_if(len(along) > 1, "reduces two axes of the steps at once")
        for dim in along:
            self.refuse_if(
                not np.array_equal(times[dim].by_length, self.lengths),
                "mixes another number of steps than the sequence has: give a convolution before it stride 1, and as "
                "many zeros in front of the steps as its kernel reads before one",
            )
            self.require_look_ahead(max(self.look_ahead.get(name, 0) for name in self.node.input))
        return along

    def require_look_ahead(self, steps: int) -> None:
        """Makes sure that the states lag at least so many steps behind; refuses more than `MOST_AHEAD`.

        Raises:
            LooksAhead: They lag fewer; `stream` begins again with this number.
        """
        self.refuse_if(steps > MOST_AHEAD, f"looks {steps} steps ahead, of which each chunk would compute {MOST_AHEAD}")
        if steps > self.most_ahead:
            raise LooksAhead(steps)

    @property
    def rescales_of_input(self) -> tuple[DataTensor, ...]:
        """The rescales of that input of the node which is a share; empty if none is."""
        return next((self.rescales[name] for name in self.node.input if name in self.rescales), ())


def described(states: Sequence[StreamState]) -> Streaming:
    """What the manifest says of the states, without a promise."""
    sizes = [math.prod(state.shape) * np.dtype(state.dtype).itemsize for state in states]
    return Streaming(states=tuple(states), state_bytes=sum(sizes))
