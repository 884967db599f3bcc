"""A Loop over the steps as a Scan, which says what it takes at each step, and what it carries to the next one.

A Loop says neither. Its body gets the number of the iteration, and picks the step with this number from a tensor
outside (a Gather). What it picks, how often it iterates, and which of its states are only counted or passed on, is
worked out here.

    Loop(limit, condition, h) with body            Scan(h, x) with body
        step = Gather(x, iteration)                    step: an input
        h' = f(step, h)                                h' = f(step, h)
        condition' = iteration + 1 < length            none: a Scan ends with its steps

The body's inputs are the iteration's number, the condition and the states; its outputs are the next condition, the
next states, and what the Loop collects from each iteration. A state is one of three kinds:

    invariant    passed on unchanged: the same as the Loop's input (`_invariants`)
    counter      increased by 1 in each iteration (`_counters`)
    carried      anything else: the Scan carries it, too
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from onnx import GraphProto, NodeProto, ValueInfoProto, helper

from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.patterns import NotFound, pattern_of, require, source_of_copy
from lengthwise_export.mending.values import (
    CROSSES_ROWS,
    DataTensor,
    KnownTensor,
    Table,
    Value,
    constant_in,
    run_on_tables,
)
from lengthwise_export.onnx_graphs.protos import attributes_of, graphs_in, names_in, nodes_before

_NO_LIMIT: Final = 2**31 - 1  # iterations: a Loop with this limit or a higher one ends by its condition


class LoopOverSteps:
    """A Loop, with what its body does with each state: passes it on, counts with it, or computes a new one."""

    def __init__(self, mender: Mender) -> None:
        """Reads the Loop `mender.node`, and finds out which of its states are invariant or counters."""
        self._mender, self._node = mender, mender.node
        self._body: GraphProto = mender.attribute("body")
        self._inputs, self._outputs = ([value.name for value in side] for side in (self._body.input, self._body.output))
        self._next = dict(zip(self._inputs[2:], self._outputs[1:], strict=False))  # by state, its next value
        self._starts = dict(zip(self._inputs[2:], self._node.input[2:], strict=True))  # by state, the Loop's input
        self._pattern = pattern_of(self._body)
        self._counters = {self._inputs[0]: 0}  # by counter, its value in the first iteration
        self._invariants: dict[str, str] = {}  # by invariant state, the Loop's input
        for state, next_value in self._next.items():
            if source_of_copy(self._pattern, next_value, "Identity") == state:
                self._invariants[state] = self._starts[state]
            elif (start := self._start_of_counter(state, next_value)) is not None:
                self._counters[state] = start

    def scan(self) -> tuple[NodeProto, dict[str, Value]]:
        """The Loop as a Scan; refuses a Loop that does not iterate once for each step.

        Returns:
            1. The Scan. Its outputs have the names of the Loop's outputs, but it lacks those that are invariant states.
            2. What is known of the outputs that are invariant states, by their names.
        """
        mender = self._mender
        # 1. The Loop's outputs that are used: last values of states, and what is collected from each iteration. `used`
        #    has for each the state (empty for what is collected), its own name, and the name of the body's output.
        states = itertools.chain(self._next, itertools.repeat(""))
        outputs = zip(states, self._node.output, self._outputs[1:], strict=False)
        used = [(state, name, value) for state, name, value in outputs if name in mender.used_names]
        is_counted = any(state in self._counters for state, _, _ in used)
        mender.refuse_if(is_counted, "counts its turns, and the count is used behind it")
        invariants = {
            name: mender.values[self._invariants[state]] for state, name, _ in used if state in self._invariants
        }
        last_values = {state: name for state, name, _ in used if state and state not in self._invariants}
        collected = {name: value for state, name, value in used if not state}
        # 2. The tensors that the Scan takes its steps from
        nodes, carried, picks = self._needed([*last_values, *collected.values()])
        mender.refuse_if(not picks, "takes no step of a value at each of its turns")
        sources = [self._source(node) for node in picks.values()]
        self._require_iteration_per_step([mender.values[name] for name in sources])
        # 3. The Scan's body: it takes the states, and a step of each source; it gives the next states, and what is
        #    collected. Both get new names, because one value may be given twice.
        values = [*(self._next[state] for state in carried), *collected.values()]
        body_outputs = [mender.writer.name(f"{name}_of_step") for name in values]
        nodes += [helper.make_node("Identity", [name], [new]) for name, new in zip(values, body_outputs, strict=True)]
        scan_inputs = [*(self._starts[state] for state in carried), *sources]
        body_inputs = [
            helper.make_tensor_value_info(name, mender.values[scan_input].dtype, None)
            for name, scan_input in zip([*carried, *picks], scan_inputs, strict=True)
        ]
        body = helper.make_graph(nodes, "steps", body_inputs, [ValueInfoProto(name=name) for name in body_outputs])
        # 4. The Scan, with an output for the last value of each state; an output that nobody uses gets a new name
        ends = [last_values.get(state) or mender.writer.name("loop_end") for state in carried]
        outputs_of_scan, name = [*ends, *collected], self._node.name
        scan = helper.make_node("Scan", scan_inputs, outputs_of_scan, name, body=body, num_scan_inputs=len(sources))
        return scan, invariants

    def _start_of_counter(self, state: str, next_value: str) -> int | None:
        """The value of a state in the first iteration, if it is a counter: it starts as a whole number, and gets +1.

        None if it is no counter.
        """
        start, step = constant_in(self._mender.values.get(self._starts[state])), None
        with contextlib.suppress(NotFound):
            operands = self._pattern.maker(source_of_copy(self._pattern, next_value, "Identity"), "Add").inputs
            sources = [source_of_copy(self._pattern, name, "Identity") for name in operands]
            require(state in sources)
            (other,) = [name for index, name in enumerate(sources) if index != sources.index(state)]
            step = self._mender.values.get(self._invariants.get(other, other))
        if start is None or start.size != 1 or not isinstance(step, KnownTensor) or step.table[0, 0].size != 1:
            return None
        return int(start.item()) if (step.table == 1).all() and start.item() == int(start.item()) else None

    def _needed(self, values: Iterable[str]) -> tuple[list[NodeProto], list[str], dict[str, NodeProto]]:
        """What the Scan needs of the body to compute these values.

        Refuses a body that computes with the number of the iteration, or has a graph inside.

        Args:
            values: The names of values of the body.

        Returns:
            1. The nodes of the body that compute them. They take the Loop's inputs in the place of invariant states.
            2. The carried states.
            3. The nodes that pick a step (a Gather each), by the name of the step; these are not among the nodes above.
        """
        picks = {node.output[0]: node for node in self._body.node if self._picks_step(node)}
        body = GraphProto(node=[node for node in self._body.node if node.output[0] not in picks])
        # The next value of a needed state is needed, too, and its nodes may need further states. So the names of all
        # values that are needed are collected until none is added.
        names, names_before = {*values}, None
        while names != names_before:
            names_before, nodes = names, nodes_before(body, names)
            names = {*names, *names_in(nodes)}
            carried = [state for state in self._next if state in names and state not in self._invariants]
            names.update(self._next[state] for state in carried)
        self._mender.refuse_if(names.intersection(self._counters), "computes with the number of its turn")
        is_nested = any(graph.output for node in nodes for graph in graphs_in(node))
        self._mender.refuse_if(is_nested, "has a graph inside of its own graph")
        for node in nodes:
            node.input[:] = [self._invariants.get(name, name) for name in node.input]
        return nodes, carried, {name: node for name, node in picks.items() if name in names}

    def _picks_step(self, node: NodeProto) -> bool:
        """Whether a node picks the step of the iteration: a Gather from a value outside, by a counter from 0."""
        if node.op_type != "Gather" or node.input[0] in self._pattern.makers:
            return False
        return self._counters.get(source_of_copy(self._pattern, node.input[1], "Identity", "Cast")) == 0

    def _source(self, node: NodeProto) -> str:
        """The name of the value that a Gather picks its steps from; transposed, if the steps are not its first axis."""
        mender = self._mender
        name = self._invariants.get(node.input[0], node.input[0])
        value = mender.values.get(name)
        if not isinstance(value, DataTensor) or not value.has_original_axes:
            mender.refuse("takes its steps from merged axes, or from what is no data")
        axis = attributes_of(node).get("axis", 0) % value.rank
        if axis == 0:
            return name
        order = [axis, *(index for index in range(value.rank) if index != axis)]
        return mender.register(mender.transposed(value, order))

    def _require_iteration_per_step(self, sources: Sequence[KnownTensor | DataTensor]) -> None:
        """Refuses a Loop that does not iterate once for each step of these tensors, at every length.

        A Loop ends with its limit, or when its condition is false. Both are followed for each length; reasons call an
        iteration a turn.
        """
        mender = self._mender
        # 1. All sources have the same number of steps, `time`.
        time, *times = (value.groups[0][0] for value in sources if isinstance(value, DataTensor))
        mender.refuse_if(time.depends_on_rows, f"turns once for each row: {CROSSES_ROWS}")
        mender.refuse_if(
            not time.is_time or any(not size.equals(time) for size in times),
            "takes its steps from axes of different sizes, or not from the steps of a sequence",
        )
        # 2. The limit is that number, or there is none.
        limit, condition = mender.input_value(0), mender.input_value(1)
        if isinstance(limit, DataTensor) or isinstance(condition, DataTensor):
            mender.refuse("turns as often as the data say")
        ends_by_limit = limit is not None and np.array_equal(limit.table.reshape(2, -1), time.table)
        has_other_limit = limit is not None and not ends_by_limit and bool((limit.table < _NO_LIMIT).any())
        mender.refuse_if(has_other_limit, "does not turn once for each step")
        # 3. The condition is true before the first iteration, and until the last one. That is tried after the first, a
        #    middle and the last but one iteration, at those lengths where these come before the last.
        mender.refuse_if(condition is not None and not condition.table.all(), "does not turn at every length")
        last = time.table - 1
        for iteration in (np.zeros_like(last), last // 2, last - 1):
            continues = self._condition_after(np.maximum(iteration, 0))
            mender.refuse_if(not continues[(iteration >= 0) & (iteration < last)].all(), "ends before the last step")
        mender.refuse_if(not ends_by_limit and self._condition_after(last).any(), "turns on behind the last step")

    def _condition_after(self, iteration: Table) -> Table:
        """`[2, lengths]` bool: the Loop's condition after an iteration, whose number is `[2, lengths]`, from 0."""
        tables: dict[str, Table] = {self._inputs[1]: np.ones_like(iteration, dtype=bool)}
        for name, first in self._counters.items():
            start = self._mender.values.get(self._starts.get(name, ""))
            tables[name] = (iteration + first).astype(start.table.dtype if isinstance(start, KnownTensor) else np.int64)
        return self._table(self._outputs[0], tables).reshape(iteration.shape).astype(bool)

    def _table(self, name: str, tables: dict[str, Table]) -> Table:
        """The table of a value of the body, which has to follow from sizes, constants and the values in `tables`.

        It is added to `tables`, and so is each value that it is computed from.
        """
        if name in tables:
            return tables[name]
        node = next((node for node in self._body.node if name in node.output), None)
        value = self._mender.values.get(self._invariants.get(name, name))
        table = value.table if isinstance(value, KnownTensor) else None
        if node is not None:
            table = run_on_tables(node, [self._table(operand, tables) if operand else None for operand in node.input])
        if table is None:
            self._mender.refuse("turns as often as the data say, or a computation that cannot be followed")
        return tables.setdefault(name, table)
