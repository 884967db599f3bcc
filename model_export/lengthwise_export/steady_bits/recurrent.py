"""RNN, whose products of one row are computed by another kernel than those of several."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from lengthwise_export.steady_bits.graph_facts import GraphFacts
from lengthwise_export.steady_bits.replacement import Replacement

_ROWS: Final = {0: 1, 4: 0, 5: 1}
"""The inputs of an RNN that have an axis of rows (X, sequence_lens, initial_h), and which axis that is."""
_ROWS_OF_OUTPUT: Final = (2, 1)
"""The axis of rows of the outputs Y and Y_h."""


def rewritten_rnn(node: ir.Node, facts: GraphFacts, *, every: bool) -> Replacement | None:
    """An RNN over one more row, a copy of the first, so that it never runs with one row only."""
    if node.attributes.get_int("layout", 0):
        return None
    new = Replacement(node)
    zero, one, last = new.constant([0]), new.constant([1]), new.constant([-1])
    inputs = list(node.inputs)
    for place, axis in _ROWS.items():
        value = inputs[place] if place < len(inputs) else None
        if value is not None:
            first = new.add("Slice", value, zero, one, new.constant([axis]))
            inputs[place] = new.add("Concat", value, first, axis=axis)
    outputs = new.add_outputs("RNN", inputs, len(node.outputs))
    new.nodes[-1].attributes.update(node.attributes)
    kept = [
        new.add("Slice", output, zero, last, new.constant([axis]))
        for output, axis in zip(outputs, _ROWS_OF_OUTPUT, strict=False)
    ]
    return new.gives(*kept)
