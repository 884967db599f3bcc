"""Finds what in a graph's run depends on the values in a batch.

It only reads the graph, for two questions:

- Does the time of a run depend on values (`has_steady_time`)? The event loop runs batches that are predicted to be
  short, and a loop over values may take long.
- Does the number of rows of a recurrent layer depend on them (`recurrent_without_rows`)? onnxruntime's own LSTM and GRU
  crash the process if they get no rows (seen in 1.31). So one request could crash a graph that drops rows by their
  values, as a boolean index does.

For the second question it follows from node to node how each value of the graph *depends* on what a client sends (a
`_Depends`). Where that is unknown, the value depends on it:

| field | is true if |
|---|---|
| `content` | the value's numbers depend on the numbers in the sequences |
| `selects` | the value's numbers depend on these, or on the lengths or the mask: as an index, they may select no row |
| `shape` | the value's shape depends on the numbers in the sequences, or on how many rows were selected |

A *counting* operator (`_COUNTING`), such as NonZero, has an output whose shape depends on its input's numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from lengthwise.runtime.onnx.onnx_graph import Graph, Node

ENDS_WITHOUT_ROWS: Final = frozenset({"LSTM", "GRU"})
"""Operators that crash the process with zero rows, if onnxruntime's kernels run them and not the service's."""
ENDS_WITHOUT_ROWS_AT_INT8: Final = frozenset({"DynamicQuantizeLSTM"})
"""The same, for int8 graphs; only onnxruntime has kernels for these."""

_CONTROL_FLOW: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_COUNTING: Final = frozenset({"Compress", "NonZero", "NonMaxSuppression", "StringSplit", "Unique"})
"""Operators whose outputs' shapes depend on the content of their inputs."""
_REDUCTIONS: Final = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_SHAPED_BY_SECOND: Final = (
    *("CenterCropPad", "Expand", "OneHot", "Reshape", "SequenceAt", "Split", "SplitToSequence", "Squeeze", "Tile"),
    *("TopK", "Unsqueeze", *(f"Reduce{name}" for name in _REDUCTIONS)),
)
_SHAPED_BY: Final[dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(_SHAPED_BY_SECOND, (1,)),
    **{"ConstantOfShape": (0,), "Pad": (1, 3), "Range": (0, 1, 2), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4)},
}
"""Operators with inputs that determine the output's shape: the indexes of these inputs."""
_SHAPED_AS_FIRST: Final = frozenset({"ScatterElements", "ScatterND", "Scatter", "GatherElements"})
"""Operators whose output has the shape of one input: the second of GatherElements, the first of the others."""


def has_steady_time(graph: Graph) -> bool:
    """Whether the time of a run follows from the shape of its batch: the graph has no loop, branch or counting."""
    return not any(node.operator in _CONTROL_FLOW | _COUNTING for node in graph.walk())


def recurrent_without_rows(
    graph: Graph, sequences: str, lengths: Iterable[str], operators: frozenset[str], states: Sequence[str] = ()
) -> str | None:
    """Finds a recurrent layer in a graph that may get a batch without rows; returns its operator, or None.

    Args:
        graph: The graph.
        sequences: The name of its input with the sequences.
        lengths: The names of its inputs with the lengths and the mask. A shape may depend on these, as a width does on
            the largest length. But if they select rows, there may be no row.
        operators: The operators of the layers: `ENDS_WITHOUT_ROWS`, `ENDS_WITHOUT_ROWS_AT_INT8` or both.
        states: The names of its inputs that are states, which a client sends as well.
    """
    # 1. Values are not followed into loops, branches and functions: there, any counting operator may drop rows.
    all_layers = [node for node in graph.walk() if node.operator in operators]
    outer_layers = [node for node in graph.nodes if node.operator in operators]
    if not all_layers:
        return None
    if len(all_layers) > len(outer_layers) or graph.functions:
        return all_layers[0].operator if any(node.operator in _COUNTING for node in graph.walk()) else None
    # 2. In the outermost graph, from node to node
    content = {sequences, *states}
    dependences = {name: _Depends(content=name in content, selects=True) for name in (*content, *lengths)}
    for node in graph.nodes:
        inputs = [dependences.get(name, _NOTHING) for name in node.inputs]
        if node.operator in operators and inputs and inputs[0].shape:
            return node.operator
        inner_nodes = [inner for inner_graph in node.graphs for inner in inner_graph.walk()]
        # Some inputs of the inner nodes are values of this outer graph.
        captured = [dependences.get(name, _NOTHING) for inner in inner_nodes for name in inner.inputs]
        counts = any(inner.operator in _COUNTING for inner in inner_nodes)
        outputs = _dependence_of_outputs(node, inputs, captured, counts=counts)
        dependences.update((name, outputs) for name in node.outputs if name)
    return None


def why_refused(operator: str) -> str:
    """The error text for a graph that is refused because of an operator that `recurrent_without_rows` returned."""
    return (
        f"what a caller sends decides how many rows its {operator} gets, and onnxruntime's own {operator} ends the "
        "process where that is none: keep all rows, and choose among them behind it"
    )


@dataclass(frozen=True, slots=True)
class _Depends:
    """How a value of the graph depends on what a client sends; the module's table explains the fields."""

    content: bool = False
    selects: bool = False
    shape: bool = False


_NOTHING: Final = _Depends()


def _dependence_of_outputs(node: Node, inputs: list[_Depends], captured: list[_Depends], *, counts: bool) -> _Depends:
    """Says how the outputs of a node depend on what a client sends: as its inputs do, unless the operator says more.

    Args:
        node: The node.
        inputs: The dependences of its inputs.
        captured: The dependences of values around the node that the graphs inside it use.
        counts: Whether a graph inside it has a counting operator.
    """
    values = [*inputs, *captured]
    content = any(value.content for value in values)
    selects = any(value.selects for value in values)
    shape = any(value.shape for value in values)
    # The numbers of the output are the shape of the input.
    if node.operator in ("Shape", "Size"):
        return _Depends(content=shape, selects=shape)
    # The shape of the output follows from the numbers of the input.
    if node.operator in _COUNTING:
        return _Depends(content, selects, shape or selects)
    # The output has the shape of one input, whatever the shapes of the others.
    if node.operator in _SHAPED_AS_FIRST:
        index = 1 if node.operator == "GatherElements" else 0
        return _Depends(content or shape, selects or shape, index < len(inputs) and inputs[index].shape)
    # Control flow: the outputs may have any shape if values decide how often a loop runs, or which branch runs.
    if node.graphs:
        decides = {"Scan": False, "If": bool(inputs) and inputs[0].content}.get(node.operator, content)
        return _Depends(content, selects, shape or decides or (counts and selects))
    # Any other operator; some have inputs whose numbers are the shape of the output.
    shapes = [inputs[index] for index in _SHAPED_BY.get(node.operator, ()) if index < len(inputs)]
    return _Depends(content, selects, shape or any(value.content for value in shapes))
