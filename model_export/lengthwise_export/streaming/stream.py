"""Makes a graph stream: each operator that mixes steps gets states. Read this file first.

    whole graph -> prepare -> follow each node, with a rule for its operator -> streaming graph

The rules see the whole graph as those of mending do: the meaning of each axis is followed, and sizes are tables by the
length. A graph streams as a whole or is refused, by the operator and the line that looks ahead without bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from lengthwise.exporter_api.contract import GraphNames, Manifest, Streaming, StreamState
from lengthwise_export.errors import UnmendableError, VerificationError
from lengthwise_export.mending.mend import mender_of, prepared, replace_nodes
from lengthwise_export.mending.mender import LengthsRestricted, Mender
from lengthwise_export.mending.values import DataTensor, Size
from lengthwise_export.onnx_graphs.carried_states import NEXT
from lengthwise_export.onnx_graphs.protos import keep_needed, names_in, nodes_before, refill
from lengthwise_export.streaming.carried import (
    ChunkWindow,
    LooksAhead,
    StreamingMender,
    StreamingWriter,
    described,
)
from lengthwise_export.streaming.following import follow
from lengthwise_export.streaming.rules import MIXING, STREAMING, with_earlier

_MISSING: Final = float(np.finfo(np.float32).min)  # stands for a missing value in a state, whose numbers are finite
_MIN_LENGTHS: Final = 64  # at least so many lengths are followed, so that no two sizes agree by chance


def stream(graph: ModelProto, manifest: Manifest) -> tuple[ModelProto, Streaming]:
    """Rewrites a whole graph to one that answers chunks; `proof` shows whether it does.

    Args:
        graph: The whole graph, which stays as it is.
        manifest: Its manifest.

    Returns:
        1. The streaming graph.
        2. What the manifest says of its states, without a promise.

    Raises:
        VerificationError: An operator cannot stream; the error names it and its line, with the cure. Or the model takes
            several sequences.
    """
    if manifest.input.sequences:
        raise VerificationError(
            f"{manifest.key} cannot stream: it takes several sequences, whose chunks come at times of their own: stream"
            " a model of each, or join their features step by step"
        )
    shortest, longest = manifest.min_length, max(manifest.max_length, manifest.min_length + _MIN_LENGTHS)
    look_ahead = 0
    while True:
        try:
            return _streaming(graph, manifest, np.arange(shortest, longest + 1, dtype=np.int64), look_ahead)
        except LengthsRestricted as restriction:
            shortest, longest = restriction.args
        except LooksAhead as further:
            (look_ahead,) = further.args
        except UnmendableError as error:
            raise VerificationError(f"{manifest.key} cannot stream: {error}") from error


def _streaming(
    graph: ModelProto, manifest: Manifest, lengths: NDArray[np.int64], look_ahead: int
) -> tuple[ModelProto, Streaming]:
    """Tries to make a graph stream, followed at a range of lengths.

    Raises:
        LengthsRestricted: It accepts fewer lengths; `stream` begins again with these.
        LooksAhead: It looks further ahead; `stream` begins again with that.
        UnmendableError: An operator cannot stream.
    """  # noqa: DOC502 - the rules raise them
    model, names = prepared(graph), manifest.graph
    answers = [value.name for value in model.graph.output]
    kinds = StreamingMender, StreamingWriter
    mender = mender_of(model, names, manifest.input, lengths, {}, kinds=kinds, rules=STREAMING)
    assert isinstance(mender, StreamingMender)
    mender, lengths_name = replace(mender, most_ahead=look_ahead), names.lengths or "lengths"
    if names.lengths is None:
        _count_mask(mender, names, lengths_name)
        model.graph.input.remove(next(value for value in model.graph.input if value.name == lengths_name))
    of_chunk = _look_back(mender, manifest, lengths_name) if look_ahead else ""
    answering = _followed(mender, model, names, commits=not look_ahead)
    for name in answers:
        answering.require_look_ahead(answering.look_ahead.get(name, 0))
    for name in answering.rescales.keys() & {*answers}:
        answering.values[name] = _among_all(answering, name)
    if look_ahead:
        _followed(mender, model, names, commits=True)
        for name in answers:
            answering.values[name] = _of_chunk(answering, name, of_chunk)
    states = mender.states.states or mender.states.with_steps_seen()
    model.graph.input.extend(_declared(state.name, state) for state in states)
    further = [_declared(state.name + NEXT, state) for state in states]
    if names.clipped is not None:
        further.append(_clipped(answering, model, names.clipped))
    replace_nodes(model, answering, further)
    used = _drop_unused_states(model, answers)
    onnx.checker.check_model(model)
    streaming = described([state for state in states if state.name in used])
    return model, streaming.model_copy(update={"look_ahead_steps": look_ahead})


def _followed(mender: StreamingMender, model: ModelProto, names: GraphNames, *, commits: bool) -> StreamingMender:
    """Follows all nodes of a graph, and returns the mender that knows their outputs.

    Args:
        mender: The mender, which knows the graph's inputs and constants.
        model: The graph.
        names: The names of its inputs.
        commits: Whether the states are written.
    """
    lengths = names.lengths or "lengths"
    facts: dict[str, Any] = {name: {} for name in ("totals", "rescales", "look_ahead", "moved", "fills")}
    facts |= {name: set() for name in ("of_the_whole", "settled", "masks", "shifted", "positions")}
    mender = replace(mender, values=dict(mender.values), **facts)
    mender.of_the_whole.add(lengths)
    if names.mask is not None and names.mask_marks == "valid":
        mender.masks.add(names.mask)
    mender.states.begin(commits=commits)
    own = mender.values[lengths]
    assert isinstance(own, DataTensor)
    mender.totals[lengths] = own.with_name(mender.writer.cast(mender.writer.lengths, own.dtype))
    for node in model.graph.node:
        mender.states.mixes = node.op_type in MIXING
        follow(mender, node)
    mender.states.mixes = False
    return mender


def _look_back(mender: StreamingMender, manifest: Manifest, lengths_name: str) -> str:
    """Puts a window in the place of the chunk, for a graph that looks ahead: the last earlier steps, then the chunk.

    Returns:
        The name of `[rows, width]` int64: where the steps of the chunk are in the window.
    """
    writer, count, names = mender.states, mender.most_ahead, manifest.graph
    steps = mender.values[names.sequences]
    assert isinstance(steps, DataTensor)
    lowest, has_missing = "", manifest.missing != "refuse" and steps.dtype == TensorProto.FLOAT
    if has_missing:
        lowest = writer.scalar(_MISSING, steps.dtype)
        is_missing = mender.emit("IsNaN", [steps.name])
        steps = steps.with_name(mender.emit("Where", [is_missing, lowest, steps.name]))
    axis = next(axis for axis, (size,) in enumerate(steps.groups) if size.is_time)
    (time,) = steps.groups[axis]
    maker = replace(mender, node=NodeProto(output=["last_steps"]))
    own, seen, width = writer.own_lengths, writer.steps_seen, writer.width
    joined = with_earlier(maker, steps, axis, count, 0)
    kept = mender.emit("Min", [seen, writer.constant(np.int64(count))])  # `[rows]`: steps that were there before
    wider = mender.emit("ReduceMax", [kept], keepdims=1)
    skipped = mender.emit("Sub", [writer.constant(np.int64(count)), kept])
    index = _shifted(mender, mender.emit("Add", [width, wider]), skipped)
    window = Mender.take_per_row(maker, joined, axis, index, time)
    if has_missing:
        is_missing, nan = mender.emit("Equal", [window.name, lowest]), writer.scalar(math.nan, steps.dtype)
        window = window.with_name(mender.emit("Where", [is_missing, nan, window.name]))
    before = mender.emit("Sub", [seen, kept])
    end = mender.emit("Sub", [mender.emit("Add", [seen, own]), writer.constant(np.int64(count))])
    committed = mender.emit("Sub", [mender.emit("Max", [end, writer.constant(np.int64(0))]), before])
    own_lengths = mender.values[lengths_name]
    assert isinstance(own_lengths, DataTensor)
    lengths = writer.cast(mender.emit("Add", [own, kept]), own_lengths.dtype)
    of_chunk = _shifted(mender, width, kept)
    writer.look_back(ChunkWindow(window.name, lengths, before, committed))
    mender.values[names.sequences] = steps.with_name(window.name)
    mender.values[lengths_name] = own_lengths.with_name(lengths)
    if names.mask is not None:
        mender.values[names.mask] = _mask_of_window(mender, names, time)
    return of_chunk


def _shifted(mender: StreamingMender, count: str, start: str) -> str:
    """`[rows, count]` int64: count numbers from `start` `[rows]` on, for each row."""
    zero, one = (mender.writer.constant(np.int64(number)) for number in (0, 1))
    numbers = mender.emit("Range", [zero, mender.writer.squeezed(count, [0]), one])
    return mender.emit("Add", [numbers, mender.writer.unsqueezed(start, [1])])


def _mask_of_window(mender: StreamingMender, names: GraphNames, time: Size) -> DataTensor:
    """Writes the mask of a window, in the form in which the graph takes a mask."""
    mask = mender.values[names.mask or ""]
    assert isinstance(mask, DataTensor)
    name = mender.writer.mask(time)
    name = name if names.mask_marks == "valid" else mender.emit("Not", [name])
    name = mender.writer.transposed(name, (1, 0) if names.time_first else (0, 1))
    return mask.with_name(mender.in_type(name, TensorProto.BOOL, mask.dtype))


def _of_chunk(mender: StreamingMender, name: str, of_chunk: str) -> DataTensor:
    """Cuts an answer from the steps of the window to those of the chunk; without an axis of time, it stays."""
    answer = mender.values[name]
    assert isinstance(answer, DataTensor)
    times = [axis for axis, group in enumerate(answer.groups) if group[0].is_time]
    if not times:
        return answer
    return Mender.take_per_row(mender, answer, times[0], of_chunk, answer.groups[times[0]][0])


def _among_all(mender: StreamingMender, name: str) -> DataTensor:
    """Rescales an answer that is a share among the steps of the chunk to one among all steps so far."""
    answer, (_, *of_own_steps) = mender.values[name], mender.rescales[name]
    for factor in of_own_steps:
        as_answer = factor.with_name(mender.writer.cast(factor.name, answer.dtype), dtype=answer.dtype)
        answer = mender.broadcast_node("Mul", answer, as_answer)
    assert isinstance(answer, DataTensor)
    return answer


def _clipped(mender: StreamingMender, model: ModelProto, name: str) -> onnx.ValueInfoProto:
    """Gives the number of clipped values its name; takes it out of the graph's outputs, and returns its declaration."""
    declared = next(value for value in model.graph.output if value.name == name)
    model.graph.output.remove(declared)
    value = mender.values[name]
    if value.name != name:
        mender.writer.nodes.append(helper.make_node("Identity", [value.name], [name]))
    return declared


def _count_mask(mender: StreamingMender, names: GraphNames, lengths: str) -> None:
    """Writes nodes that count the steps of a graph that takes a mask alone: the lengths, `[rows]` int32."""
    assert names.mask is not None
    valid = mender.writer.cast(names.mask, TensorProto.BOOL)
    if names.mask_marks == "padding":
        valid = mender.emit("Not", [valid])
    axis = mender.writer.constant([names.open_axes[1] if names.time_first else 1])
    counted = [mender.writer.cast(valid, TensorProto.INT32), axis]
    mender.writer.nodes.append(helper.make_node("ReduceSum", counted, [lengths], keepdims=0))


def _declared(name: str, state: StreamState) -> onnx.ValueInfoProto:
    """The declaration of an input or output of the graph that is a state."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(state.dtype))
    return helper.make_tensor_value_info(name, kind, ["rows", *state.shape])


def _drop_unused_states(model: ModelProto, answers: Sequence[str]) -> set[str]:
    """Removes from a graph, in place, the states that no answer depends on; returns the names of the states left.

    One state is always left, as a stream needs one.
    """
    inputs = {value.name for value in model.graph.input}
    states = {value.name.removesuffix(NEXT) for value in model.graph.output if value.name not in answers} & inputs
    kept: set[str] = set()
    while True:
        nodes = nodes_before(model.graph, [*answers, *(name + NEXT for name in kept)])
        needed = states.intersection(names_in(nodes))
        if needed <= kept:
            break
        kept |= needed
    kept = kept or {min(states)}  # each step is answered alone: no answer depends on a state
    dropped = states - kept
    refill(model.graph.input, [value for value in model.graph.input if value.name not in dropped])
    refill(
        model.graph.output,
        [value for value in model.graph.output if value.name.removesuffix(NEXT) not in dropped],
    )
    keep_needed(model.graph)
    return kept
