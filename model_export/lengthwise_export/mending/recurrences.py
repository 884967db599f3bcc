"""A Loop over the steps as a Scan, which says what it takes at each step, and what it carries to the next one.

A Loop says neither: it counts, and its body picks the step with that count from a value outside. What it picks, how
often it turns, and which of its states are only counted or handed on, is found out here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from onnx import GraphProto, NodeProto, ValueInfoProto, helper

from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.values import CROSSES_ROWS, DataTensor, KnownTensor, Table, run_on_tables
from lengthwise_export.onnx_graphs.protos import graphs_in, names_in, nodes_before

_WITHOUT_LIMIT: Final = 2**31 - 1  # A Loop with this limit or a higher one ends by its condition


def as_scan(mender: Mender) -> NodeProto:
    """A Scan with the outputs of a Loop over the steps, except outputs that are inputs of the Loop unchanged."""
    return _Loop(mender).scan()


class _Loop:
    """A Loop, and what its body does with each state: counts turns in it, hands it on, or computes it anew."""

    def __init__(self, mender: Mender) -> None:
        self._mender, self._node = mender, mender.node
        body: GraphProto = mender.attribute("body")
        self._body = body
        self._inputs, self._outputs = [each.name for each in body.input], [each.name for each in body.output]
        self._states = dict(zip(self._inputs[2:], self._outputs[1:], strict=False))
        self._starts = dict(zip(self._inputs[2:], self._node.input[2:], strict=True))
        self._producers = {name: node for node in body.node for name in node.output if name}
        self._counters = {self._inputs[0]: 0}
        self._constant: dict[str, str] = {}
        for name, after in self._states.items():
            if self._origin(after) == name:
                self._constant[name] = self._starts[name]
            elif (first := self._counted(name, after)) is not None:
                self._counters[name] = first

    def scan(self) -> NodeProto:
        """The Scan; refuses a loop that does not turn once for each step."""
        mender = self._mender
        ends: dict[str, str] = {}  # by state, the output of the Loop that is its last value
        collected: dict[str, str] = {}  # by output of the Loop, the value of the body that is kept of each step
        for index, (name, inside) in enumerate(zip(self._node.output, self._outputs[1:], strict=False)):
            if name not in mender.used_names:
                continue
            state = self._inputs[2 + index] if index < len(self._states) else ""
            if state in self._constant:
                mender.values[name] = mender.values[self._constant[state]]
            elif state in self._counters:
                mender.refuse("counts its turns, and the count is used behind it")
            elif state:
                ends[state] = name
            else:
                collected[name] = inside
        nodes, carried, picked = self._needed([*ends, *collected.values()])
        mender.refuse_if(not picked, "takes no step of a value at each of its turns")
        sources = [self._source(node) for node in picked.values()]
        self._require_turns([mender.values[name] for name in sources])
        results = []
        for name in [*(self._states[state] for state in carried), *collected.values()]:
            results.append(mender.writer.name(f"{name}_of_step"))
            nodes.append(helper.make_node("Identity", [name], [results[-1]]))
        scan_inputs = [*(self._starts[state] for state in carried), *sources]
        inputs = [
            helper.make_tensor_value_info(name, mender.values[outside].dtype, None)
            for name, outside in zip([*carried, *picked], scan_inputs, strict=True)
        ]
        body = helper.make_graph(nodes, "steps", inputs, [ValueInfoProto(name=name) for name in results])
        outputs = [*(ends.get(state) or mender.writer.name("loop_end") for state in carried), *collected]
        return helper.make_node(
            "Scan", scan_inputs, outputs, name=self._node.name, body=body, num_scan_inputs=len(sources)
        )

    def _origin(self, name: str) -> str:
        """A value without the Identity that it went through."""
        node = self._producers.get(name)
        return self._origin(node.input[0]) if node is not None and node.op_type == "Identity" else name

    def _counted(self, name: str, after: str) -> int | None:
        """The first number of a state that counts the turns; None if it is another."""
        node = self._producers.get(self._origin(after))
        start = self._mender.values.get(self._starts[name])
        if node is None or node.op_type != "Add" or not isinstance(start, KnownTensor) or not start.is_constant:
            return None
        one, other = (self._origin(each) for each in node.input)
        added = other if one == name else one
        step = self._mender.values.get(self._constant.get(added, added))
        is_one = (
            isinstance(step, KnownTensor)
            and step.table.size == 2 * self._mender.length_count
            and bool((step.table == 1).all())
        )
        if name not in (one, other) or not is_one or start.table[0, 0].size != 1:
            return None
        first: float = start.table[0, 0].item()
        return int(first) if first == int(first) else None

    def _needed(self, values: Iterable[str]) -> tuple[list[NodeProto], list[str], dict[str, NodeProto]]:
        """The nodes that compute these values, the states that they need, and by name the nodes that pick a step."""
        picks = {node.output[0]: node for node in self._body.node if self._picks(node)}
        turn = GraphProto(node=[node for node in self._body.node if node.output[0] not in picks])
        names, before = {*values}, None
        while names != before:  # a state needs what it is next
            before, nodes = names, nodes_before(turn, names)
            names = {*names, *names_in(nodes)}
            carried = [name for name in self._states if name in names and name not in self._constant]
            names.update(self._states[name] for name in carried)
        self._mender.refuse_if(names.intersection(self._counters), "computes with the number of its turn")
        is_nested = any(graph.output for node in nodes for graph in graphs_in(node))
        self._mender.refuse_if(is_nested, "has a graph inside of its own graph")
        for node in nodes:  # they take the values outside instead of states that stay what they are
            node.input[:] = [self._constant.get(name, name) for name in node.input]
        return nodes, carried, {name: node for name, node in picks.items() if name in names}

    def _picks(self, node: NodeProto) -> bool:
        """Whether a node picks the step of this turn from a value outside."""
        if node.op_type != "Gather" or node.input[0] in self._producers:
            return False
        index = node.input[1]
        while (producer := self._producers.get(index)) is not None and producer.op_type in ("Identity", "Cast"):
            index = producer.input[0]
        return self._counters.get(index) == 0

    def _source(self, node: NodeProto) -> str:
        """The name of the value whose first axis a node picks a step of."""
        mender = self._mender
        name = self._constant.get(node.input[0], node.input[0])
        value = mender.values.get(name)
        if not isinstance(value, DataTensor) or value.has_merged_axes or value.has_added_rows:
            mender.refuse("takes its steps from merged axes, or from what is no data")
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0) % value.rank
        if axis == 0:
            return name
        order = [axis, *(at for at in range(value.rank) if at != axis)]
        groups = tuple(value.groups[at] for at in order)
        turned = mender.register(value.with_name(mender.writer.transposed(value.name, order), groups=groups))
        if name in mender.hiding_masks:
            mender.hiding_masks[turned] = mender.hiding_masks[name]
            mender.always_true_masks |= {turned} if name in mender.always_true_masks else set()
        return turned

    def _require_turns(self, sources: Sequence[KnownTensor | DataTensor]) -> None:
        """Refuses a loop that does not turn once for each step, at every length."""
        mender = self._mender
        time, *others = (value.groups[0][0] for value in sources if isinstance(value, DataTensor))
        mender.refuse_if(time.depends_on_rows, f"turns once for each row: {CROSSES_ROWS}")
        mender.refuse_if(
            not time.is_time or any(not other.equals(time) for other in others),
            "takes its steps from axes of different sizes, or not from the steps of a sequence",
        )
        limit, condition = mender.input_value(0), mender.input_value(1)
        if isinstance(limit, DataTensor) or isinstance(condition, DataTensor):
            mender.refuse("turns as often as the data say")
        ends = False
        if limit is not None:
            table = limit.table.reshape(2, -1)
            ends = bool(np.array_equal(table, time.table))
            mender.refuse_if(not ends and not (table >= _WITHOUT_LIMIT).all(), "does not turn once for each step")
        mender.refuse_if(condition is not None and not condition.table.all(), "does not turn at every length")
        last = time.table - 1
        for turn in (np.zeros_like(last), last // 2, last - 1):
            mender.refuse_if(
                not (self._goes_on(np.maximum(turn, 0)) | (turn >= last) | (turn < 0)).all(),
                "ends before the last step",
            )
        mender.refuse_if(not ends and self._goes_on(last).any(), "turns on behind the last step")

    def _goes_on(self, turn: Table) -> Table:
        """`[2, lengths]`: whether the loop goes on after this turn."""
        tables: dict[str, Table] = {self._inputs[1]: np.ones_like(turn, dtype=bool)}
        for name, first in self._counters.items():
            start = self._mender.values.get(self._starts.get(name, ""))
            tables[name] = (turn + first).astype(start.table.dtype if isinstance(start, KnownTensor) else np.int64)
        return self._table(self._outputs[0], tables).reshape(turn.shape).astype(bool)

    def _table(self, name: str, tables: dict[str, Table]) -> Table:
        """A value of the body that sizes and counts alone give, `[2, lengths]`."""
        if name in tables:
            return tables[name]
        node, value = self._producers.get(name), self._mender.values.get(self._constant.get(name, name))
        table = value.table if isinstance(value, KnownTensor) else None
        if node is not None:
            table = run_on_tables(node, [self._table(each, tables) if each else None for each in node.input])
        if table is None:
            self._mender.refuse("turns as often as the data say, or a computation that cannot be followed")
        return tables.setdefault(name, table)
