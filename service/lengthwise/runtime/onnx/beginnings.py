"""The graph of a model that streams, for sequences that begin and end with the call: the same without its states.

Most requests to such a model bring no state and ask for none. Each state then has the number that it begins with, and
what is computed of it is known without running anything: a sum begins with 0, and every row has steps.

    Add (total, 0) ─> total      Where (has_steps, end, state) ─> end      LSTM (steps, ..., 0, 0) ─> LSTM (steps, ...)

Nothing else is changed, so the answers have the same bits; `session` tries that before it uses the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import numpy as np

from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.onnx_graph import Graph, Node
from lengthwise.runtime.onnx.pattern import NotFound, Pattern, require

_LOWEST: Final = -3e38
"""A maximum begins with a number below, and so does the logarithm of a sum of exponentials."""
_LAYERS: Final = ("LSTM", "GRU", "RNN")
_FIRST_STATE: Final = 5
"""The index of the first state among the inputs of a layer."""

Known = Sequence[float | None]
"""Of each input of a node, the number that all its elements are; None where that is not known."""


def _beside(is_neutral: Callable[[float], bool], known: Known) -> int | None:
    """The index of the operand that is the result, because the other one changes nothing."""
    neutral = [index for index, number in enumerate(known) if number is not None and is_neutral(number)]
    return 1 - neutral[0] if neutral and len(known) == 2 else None


_KEEPS: Final = ("Cast", "Clip", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_RULES: Final[dict[str, Callable[[Known], int | float | None]]] = {
    **dict.fromkeys(_KEEPS, lambda known: known[0]),
    "Add": lambda known: _beside(lambda number: number == 0, known),
    "Div": lambda known: 0.0 if known[0] == 0 else None,
    "Equal": lambda known: None if None in known else float(known[0] == known[1]),
    "Max": lambda known: _beside(lambda number: number <= _LOWEST, known),
    "Min": lambda known: _beside(lambda number: number >= -_LOWEST, known),
    "Mul": lambda known: 0.0 if 0 in known else _beside(lambda number: number == 1, known),
    "Sub": lambda known: 0 if known[1] == 0 else None,
    "Where": lambda known: None if known[0] is None else 1 if known[0] else 2,
}
"""By operator, from what is known of the inputs: the number of all elements of the output (a float), or the index of
the input that it equals (an int); None if neither is known."""


def without_states(model: bytes, manifest: Manifest) -> bytes:
    """Returns the graph without the inputs and outputs that are states.

    `NotFound` (`require`) if a node cannot be written anew, or a state is used in a way that is not known here.

    Args:
        model: The ONNX file.
        manifest: Its manifest, which names the states and what they begin with.

    Raises:
        ValueError: The bytes are not a graph.
    """  # noqa: DOC502 - what it calls raises it
    graph = onnx_graph.read(model)
    states = {state.name: state.initial for state in manifest.states}
    graph.remove_ends({*states, *(f"{name}_next" for name in states)})
    beginning = _Beginning(graph, states, manifest.graph.lengths or "")
    for node in graph.nodes:
        beginning.simplify(node)
    beginning.write_numbers()
    return graph.write({})


class _Beginning(Pattern):
    """What is known of the values of a graph where the sequences begin.

    Args:
        graph: The graph, whose nodes are changed.
        states: By the names of values, the number that each of their elements is.
        lengths: The lengths, which are above 0.
    """

    def __init__(self, graph: Graph, states: Mapping[str, float], lengths: str) -> None:
        super().__init__(graph)
        self._numbers = {**states}
        self._positive = {lengths}
        self._same: dict[str, str] = {}  # by the name of a value, another one that it equals

    def simplify(self, node: Node) -> None:
        """Finds out what a node makes, and lets it read the values that its inputs equal."""
        _read(node, [self._same.get(name, name) for name in node.inputs])
        output, made = node.outputs[0], self._made(node)
        if isinstance(made, float):
            self._numbers[output] = made
        elif made is not None and node.inputs[made] in self._numbers:
            self._numbers[output] = self._numbers[node.inputs[made]]
        elif made is not None:
            self._same[output] = node.inputs[made]
            if output in self.graph.outputs:
                _read(node, [node.inputs[made]])
                node.operator, node.attributes, node.content = "Identity", {}, None

    def write_numbers(self) -> None:
        """Lets the nodes that are left read the known numbers as constants."""
        self.graph.nodes = [node for node in self.graph.nodes if self._numbers.keys().isdisjoint(node.outputs)]
        self.graph.remove_unused()
        left = [node for node in self.graph.nodes if not self._numbers.keys().isdisjoint(node.inputs)]
        require(all(node.operator == "Where" for node in left))  # which takes a number for a tensor
        for name in {name for node in left for name in node.inputs if name in self._numbers}:
            self.graph.add_tensor(f"{name}/number", np.array(self._numbers[name], np.float32))
        for node in left:
            _read(node, [f"{name}/number" if name in self._numbers else name for name in node.inputs])

    def _made(self, node: Node) -> int | float | None:
        """What a node makes, as the rules return it."""
        if node.operator in _KEEPS and node.inputs[0] in self._positive:
            self._positive.update(node.outputs)
        if node.operator == "Greater" and node.inputs[0] in self._positive:
            return 1.0 if self.graph.constants.get(node.inputs[1]) == (0,) else None
        if self._numbers.keys().isdisjoint(node.inputs):
            self._shares(node)
            return None
        if node.operator in _LAYERS:
            kept = [name for name in node.inputs if self._numbers.get(name) != 0]
            _read(node, kept if len(kept) == _FIRST_STATE else node.inputs)
        return _RULES[node.operator](list(map(self._number, node.inputs))) if node.operator in _RULES else None

    def _number(self, name: str) -> float | None:
        """The number that all elements of a value are."""
        numbers = {*self.graph.constants.get(name, ()), *({self._numbers[name]} if name in self._numbers else ())}
        return numbers.pop() if len(numbers) == 1 else None

    def _shares(self, node: Node) -> None:
        """Of a sum of exponentials, the shares of earlier steps and of these: `Exp (Concat (earlier, these) - sum)`."""
        with suppress(NotFound, KeyError, ValueError):
            require(node.operator == "Split")
            difference = self.maker(self.maker(node.inputs[0], "Exp").inputs[0], "Sub")
            earlier, _ = self.maker(difference.inputs[0], "Concat").inputs
            require(self.maker(difference.inputs[1], "ReduceLogSumExp").inputs[0] == difference.inputs[0])
            require(self._numbers[earlier] <= _LOWEST)
            self._numbers.update(zip(node.outputs, (0.0, 1.0), strict=True))


def _read(node: Node, inputs: list[str]) -> None:
    """Gives a node other inputs; `NotFound` if it has something that cannot be written."""
    if inputs != node.inputs:
        require(not node.unread and not node.graphs)
        node.inputs, node.content = inputs, None
