"""What of a graph's run depends on the numbers in a batch, and not only on its shape. Pure.

Two things do not go well with that. The time of a run: the event loop runs batches that are predicted to be short, and
a loop over the steps' values may take any time. And the number of rows of a recurrent layer: onnxruntime's own LSTM and
GRU end the process where they get no row at all (seen in 1.31), so a graph that drops rows by their values, as a
boolean index does, may be ended by a single request.

What is followed for each value of the graph is whether its content, and whether its shape, depends on what a caller
sends. In doubt it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from lengthwise.runtime.onnx_graph import Graph, Node

ENDS_WITHOUT_ROWS: Final = frozenset({"LSTM", "GRU"})
"""Operators of onnxruntime that end the process at zero rows, where the service's own kernels do not run them."""
ENDS_WITHOUT_ROWS_AT_INT8: Final = frozenset({"DynamicQuantizeLSTM"})
"""Likewise; nothing else runs them."""

_CONTROL_FLOW: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_COUNTING: Final = frozenset({"Compress", "NonZero", "NonMaxSuppression", "StringSplit", "Unique"})
"""Operators whose outputs' shapes depend on the content of their inputs."""
_SHAPED_BY: Final[dict[str, tuple[int, ...]]] = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "SequenceAt": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}
"""Operators some of whose inputs say a shape, with the places of these inputs."""
_SHAPED_AS_FIRST: Final = frozenset({"ScatterElements", "ScatterND", "Scatter", "GatherElements"})
"""Operators whose output has the shape of one input, whatever the shapes of the others; see `_same_shape`."""


def has_steady_time(graph: Graph) -> bool:
    """Whether a run's time follows from the batch's shape: nothing in the graph loops, branches or counts."""
    return not any(node.operator in _CONTROL_FLOW | _COUNTING for node in graph.walk())


def recurrent_without_rows(graph: Graph, sequences: str, others: Iterable[str], ending: frozenset[str]) -> str | None:
    """The operator that may get no row at all, by what a caller sends; None where there is none.

    Args:
        graph: The model's.
        sequences: The name of the input with the sequences.
        others: The names of the inputs for lengths and mask. A shape may follow from these, as a width follows from the
            largest length; what they select may be nothing.
        ending: The operators to look for.
    """
    if not any(node.operator in ending for node in graph.walk()):
        return None
    inside = [node for node in graph.walk() if node.operator in ending]
    outside = [node for node in graph.nodes if node.operator in ending]
    if len(inside) > len(outside) or graph.functions:  # in a loop, a branch or a function: not followed there
        return inside[0].operator if any(node.operator in _COUNTING for node in graph.walk()) else None
    known = {name: _Depends(content=name == sequences, selects=True) for name in (sequences, *others)}
    for node in graph.nodes:
        taken = [known.get(name, _NOTHING) for name in node.inputs]
        if node.operator in ending and taken and taken[0].shape:
            return node.operator
        made = _made(node, taken, [known.get(name, _NOTHING) for name in _captured(node)])
        known.update((name, made) for name in node.outputs if name)
    return None


def why_refused(operator: str) -> str:
    """What is said of a graph with such an operator."""
    return (
        f"what a caller sends decides how many rows its {operator} gets, and onnxruntime's own {operator} ends the "
        "process where that is none: keep all rows, and choose among them behind it"
    )


@dataclass(frozen=True, slots=True)
class _Depends:
    """How a value depends on what a caller sends.

    Attributes:
        content: Its numbers follow from the sequences' numbers.
        selects: Its numbers follow from the sequences' numbers, the lengths or the mask.
        shape: How many numbers it has does.
    """

    content: bool = False
    selects: bool = False
    shape: bool = False


_NOTHING: Final = _Depends()


def _made(node: Node, taken: list[_Depends], captured: list[_Depends]) -> _Depends:
    """How a node's outputs depend on what a caller sends."""
    every = [*taken, *captured]
    content = any(one.content for one in every)
    selects = any(one.selects for one in every)
    shape = any(one.shape for one in every)
    if node.operator in ("Shape", "Size"):
        return _Depends(content=shape, selects=shape)
    if node.operator in _COUNTING:
        return _Depends(content, selects, shape or selects)
    if node.operator in _SHAPED_AS_FIRST:
        return _Depends(content or shape, selects or shape, _same_shape(node, taken))
    if node.graphs:
        # What is made may be of any shape where numbers decide how often a loop turns, or which branch is taken.
        decides = {"Scan": False, "If": bool(taken) and taken[0].content}.get(node.operator, content)
        counts = any(inner.operator in _COUNTING for graph in node.graphs for inner in graph.walk())
        return _Depends(content, selects, shape or decides or (counts and selects))
    said = [taken[place] for place in _SHAPED_BY.get(node.operator, ()) if place < len(taken)]
    return _Depends(content, selects, shape or any(one.content for one in said))


def _same_shape(node: Node, taken: list[_Depends]) -> bool:
    """Whether the input that such an operator's output has the shape of has one that depends on what is sent."""
    place = 1 if node.operator == "GatherElements" else 0
    return place < len(taken) and taken[place].shape


def _captured(node: Node) -> Iterator[str]:
    """What the graphs inside a node take; names of the graph around them are among these."""
    for graph in node.graphs:
        for inner in graph.walk():
            yield from inner.inputs
