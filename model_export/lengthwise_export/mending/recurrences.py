"""Loops and scans over the steps, described alike: what they take at each step, and what they carry to the next one.

A Loop says neither: it counts, and its body picks the step with that count from a value outside. What it picks, how
often it turns, and which of its states are only counted or handed on, is found out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from lengthwise_export.mending.mender import CROSSES_ROWS, Mender
from lengthwise_export.mending.values import Numbers, Ragged, Size, Table, Value, evaluated
from lengthwise_export.onnx_graphs.protos import constants_of, graphs_in

_WITHOUT_LIMIT: Final = 2**31 - 1  # A Loop with this limit or a higher one ends by its condition


@dataclass(frozen=True, slots=True)
class CarriedState:
    """What a loop carries from one step to the next."""

    name: str  # Its name inside of the body
    after: str  # The name of its next value
    start: Ragged


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A loop over the steps."""

    nodes: tuple[NodeProto, ...]  # The nodes of its body that compute with data
    steps: Mapping[str, Ragged]  # By the name inside of the body: what it takes a step of at each turn, the steps first
    sources: Mapping[str, str]  # By the name inside of the body: the name of that value in the original
    states: tuple[CarriedState, ...]
    known: Mapping[str, Numbers]  # The constants that the body uses
    initializers: tuple[TensorProto, ...]  # The body's own constants
    time: Size
    finals: Mapping[str, str]  # By output of the node: the name of the state's last value
    collected: Mapping[str, str]  # By output of the node: the name of the body's value that is kept of each step
    handed_on: Mapping[str, Value]  # By output of the node: the value that it had before


def of_scan(mender: Mender) -> Recurrence:
    """The recurrence of a Scan over the first axis, forwards."""
    node = mender.node
    body: GraphProto = mender.attribute("body")
    count = len(node.input) - mender.attribute("num_scan_inputs")
    values = [mender.ragged(place) for place in range(len(node.input))]
    inputs, outputs = [value.name for value in body.input], [value.name for value in body.output]
    return Recurrence(
        tuple(body.node),
        dict(zip(inputs[count:], values[count:], strict=True)),
        dict(zip(inputs[count:], list(node.input)[count:], strict=True)),
        tuple(CarriedState(*names) for names in zip(inputs[:count], outputs[:count], values[:count], strict=True)),
        _known(mender, body, body.node),
        tuple(body.initializer),
        values[count].groups[0][0],
        {name: after for name, after in zip(node.output[:count], outputs[:count], strict=False) if name},
        {name: kept for name, kept in zip(node.output[count:], outputs[count:], strict=False) if name},
        {},
    )


def of_loop(mender: Mender) -> Recurrence:
    """The recurrence of a Loop over the steps; refuses another one."""
    return _Loop(mender).recurrence()


def _known(mender: Mender, body: GraphProto, nodes: Sequence[NodeProto]) -> dict[str, Numbers]:
    """The constants of a body: its own, and those outside that it uses."""
    known = {tensor.name: mender.numbers(tensor.name, numpy_helper.to_array(tensor)) for tensor in body.initializer}
    for node in nodes:
        for name in node.input:
            value = mender.values.get(name)
            if isinstance(value, Numbers) and value.is_constant:
                known[name] = value
    return known


class _Loop:
    def __init__(self, mender: Mender) -> None:
        self._mender, self._node = mender, mender.node
        body: GraphProto = mender.attribute("body")
        self._body = body
        self._inputs, self._outputs = [each.name for each in body.input], [each.name for each in body.output]
        self._states = dict(zip(self._inputs[2:], self._outputs[1:], strict=False))
        self._starts = dict(zip(self._inputs[2:], self._node.input[2:], strict=True))
        self._producers = {name: node for node in body.node for name in node.output if name}
        self._own = {name: numpy_helper.to_array(tensor) for name, tensor in constants_of(body).items()}
        self._counters = {self._inputs[0]: 0}
        self._constant: dict[str, str] = {}
        for name, after in self._states.items():
            if self._origin(after) == name:
                self._constant[name] = self._starts[name]
            elif (first := self._counted(name, after)) is not None:
                self._counters[name] = first

    def recurrence(self) -> Recurrence:
        mender, used = self._mender, self._mender.used
        count = len(self._states)
        names = dict(zip(self._node.output, self._outputs[1:], strict=False))
        wanted = [name for name in names if name in used]
        state_of = dict(zip(self._node.output, self._states, strict=False))
        outside = {name: self._constant[state] for name, state in state_of.items() if state in self._constant}
        handed_on = {name: mender.values[outside[name]] for name in wanted if name in outside}
        wanted = [name for name in wanted if name not in handed_on]
        finals = {name: names[name] for name in wanted if name in list(self._node.output)[:count]}
        collected = {name: names[name] for name in wanted if name not in finals}
        if any(state_of[name] in self._counters for name in finals):
            mender.refuse("counts its turns, and the count is used behind it")
        nodes, carried, picked = self._needed([*(state_of[name] for name in finals), *collected.values()])
        if not picked:
            mender.refuse("takes no step of a value at each of its turns")
        steps = {name: self._picked(node) for name, node in picked.items()}
        time = next(iter(steps.values())).groups[0][0]
        if time.counts_rows:
            mender.refuse(f"turns once for each row: {CROSSES_ROWS}")
        if not time.is_time or any(not value.groups[0][0].same(time) for value in steps.values()):
            mender.refuse("takes its steps from axes of different sizes, or not from the steps of a sequence")
        self._require_turns(time.table)
        starts = [(name, self._states[name], mender.values[self._starts[name]]) for name in carried]
        return Recurrence(
            tuple(nodes),
            steps,
            {name: self._constant.get(node.input[0], node.input[0]) for name, node in picked.items()},
            tuple(CarriedState(name, after, mender.as_ragged(start)) for name, after, start in starts),
            _known(mender, self._body, nodes),
            tuple(self._body.initializer),
            time,
            finals,
            collected,
            handed_on,
        )

    def _origin(self, name: str) -> str:
        """A value without the Identity that it went through."""
        node = self._producers.get(name)
        return self._origin(node.input[0]) if node is not None and node.op_type == "Identity" else name

    def _counted(self, name: str, after: str) -> int | None:
        """The first number of a state that counts the turns; None if it is another."""
        node = self._producers.get(self._origin(after))
        start = self._mender.values.get(self._starts[name])
        if node is None or node.op_type != "Add" or not isinstance(start, Numbers) or not start.is_constant:
            return None
        one, other = (self._origin(each) for each in node.input)
        step = self._number(other if one == name else one)
        is_one = step is not None and step.size == 1 and step.item() == 1
        if name not in (one, other) or not is_one or start.table[0, 0].size != 1:
            return None
        first: float = start.table[0, 0].item()
        return int(first) if first == int(first) else None

    def _number(self, name: str) -> np.ndarray | None:
        if name in self._own:
            return self._own[name]
        value = self._mender.values.get(self._constant.get(name, name))
        return np.asarray(value.table[0, 0]) if isinstance(value, Numbers) and value.is_constant else None

    def _needed(self, wanted: Sequence[str]) -> tuple[list[NodeProto], list[str], dict[str, NodeProto]]:
        """The nodes that compute these values, the states that they need, and by name the nodes that pick a step."""
        left, seen, carried, picked = [*wanted], set(), [], {}
        kept: set[int] = set()
        while left:
            name = left.pop()
            if not name or name in seen:
                continue
            seen.add(name)
            if name in self._counters:
                self._mender.refuse("computes with the number of its turn")
            if name in self._states and name not in self._constant:
                carried.append(name)
                left.append(self._states[name])
            node = self._producers.get(name)
            if node is None:
                continue
            if self._picks(node):
                picked[name] = node
                continue
            if any(graph.output for graph in graphs_in(node)):
                self._mender.refuse("has a graph inside of its own graph")
            kept.add(id(node))
            left += node.input
        nodes = [self._renamed(node) for node in self._body.node if id(node) in kept]
        return nodes, [name for name in self._states if name in carried], picked

    def _renamed(self, node: NodeProto) -> NodeProto:
        """A node that takes the values outside instead of states that stay what they are."""
        copied = deepcopy(node)
        for place, name in enumerate(node.input):
            copied.input[place] = self._constant.get(name, name)
        return copied

    def _picks(self, node: NodeProto) -> bool:
        """Whether a node picks the step of this turn from a value outside."""
        if node.op_type != "Gather" or node.input[0] in self._producers:
            return False
        index = node.input[1]
        while (producer := self._producers.get(index)) is not None and producer.op_type in ("Identity", "Cast"):
            index = producer.input[0]
        return self._counters.get(index) == 0

    def _picked(self, node: NodeProto) -> Ragged:
        mender = self._mender
        name = self._constant.get(node.input[0], node.input[0])
        value = mender.values.get(name)
        if not isinstance(value, Ragged) or value.is_merged or value.row_added:
            mender.refuse("takes its steps from merged axes, or from what is no data")
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0) % value.rank
        if axis == 0:
            return value
        order = [axis, *(at for at in range(value.rank) if at != axis)]
        return value.called(mender.transposed(value.name, order), groups=tuple(value.groups[at] for at in order))

    def _require_turns(self, turns: Table) -> None:
        """Refuses a loop that does not turn as often as it has steps, at every length."""
        mender = self._mender
        limit, condition = mender.value(0), mender.value(1)
        if isinstance(limit, Ragged) or isinstance(condition, Ragged):
            mender.refuse("turns as often as the data say")
        ends = False
        if limit is not None:
            table = limit.table.reshape(2, -1)
            ends = bool(np.array_equal(table, turns))
            if not ends and not (table >= _WITHOUT_LIMIT).all():
                mender.refuse("does not turn once for each step")
        if condition is not None and not condition.table.all():
            mender.refuse("does not turn at every length")
        last = turns - 1
        for turn in (np.zeros_like(last), last // 2, last - 1):
            if not (self._goes_on(np.maximum(turn, 0)) | (turn >= last) | (turn < 0)).all():
                mender.refuse("ends before the last step")
        if not ends and self._goes_on(last).any():
            mender.refuse("turns on behind the last step")

    def _goes_on(self, turn: Table) -> Table:
        """`[2, lengths]`: whether the loop goes on after this turn."""
        starts = {name: self._mender.values[start] for name, start in self._starts.items()}
        tables: dict[str, Table] = {}
        for name, first in self._counters.items():
            start = starts.get(name)
            tables[name] = (turn + first).astype(start.table.dtype if isinstance(start, Numbers) else np.int64)
        tables[self._inputs[1]] = np.ones_like(turn, dtype=bool)
        return self._table(self._outputs[0], tables).reshape(turn.shape).astype(bool)

    def _table(self, name: str, tables: dict[str, Table]) -> Table:
        if name not in tables:
            node, outside = self._producers.get(name), self._constant.get(name, name)
            value = self._mender.values.get(outside)
            array = self._number(name)
            if array is not None:
                tables[name] = np.broadcast_to(array, (2, self._mender.count, *array.shape))
            elif node is not None:
                inputs = [self._table(each, tables) if each else None for each in node.input]
                table = evaluated(node, inputs)
                if table is None:
                    self._mender.refuse("turns as often as a computation says that cannot be followed")
                tables[name] = table
            elif isinstance(value, Numbers):
                tables[name] = value.table
            else:
                self._mender.refuse("turns as often as the data say")
        return tables[name]
