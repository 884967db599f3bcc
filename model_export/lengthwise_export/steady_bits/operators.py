"""The table of rewrites: which operators have one, found by measuring each operator alone and in batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import onnx_ir as ir

from lengthwise_export.steady_bits.convolutions import rewritten_convolution
from lengthwise_export.steady_bits.einsum import expanded_einsum
from lengthwise_export.steady_bits.elementwise import rewritten_function
from lengthwise_export.steady_bits.graph_facts import GraphFacts
from lengthwise_export.steady_bits.products import rewritten_product
from lengthwise_export.steady_bits.recurrent import rewritten_rnn
from lengthwise_export.steady_bits.replacement import Replacement
from lengthwise_export.steady_bits.sums import rewritten_sum

EXPANSIONS: Final = frozenset({"Einsum"})
"""Operator types that become others which have rewrites of their own, so they come first."""


class Rewrite(Protocol):
    """Replaces one node by nodes whose bits do not depend on the batch."""

    def __call__(self, node: ir.Node, facts: GraphFacts, *, every: bool) -> Replacement | None:
        """The replacement; None where the node keeps its bits, or cannot be replaced.

        With `every` it is replaced at sizes too where the operator was not seen to lose bits.
        """


REWRITES: Final[Mapping[str, Rewrite]] = {
    "Einsum": expanded_einsum,
    "ReduceSum": rewritten_sum,
    "ReduceMean": rewritten_sum,
    "MatMul": rewritten_product,
    "Conv": rewritten_convolution,
    "RNN": rewritten_rnn,
    "Log": rewritten_function,
    "Softplus": rewritten_function,
    "Mish": rewritten_function,
    "Sin": rewritten_function,
    "Cos": rewritten_function,
    "Asin": rewritten_function,
    "Acos": rewritten_function,
    "Atan": rewritten_function,
}
"""The rewrite of each operator type.

These were seen to keep their bits at every size, and have none: Gemm and MatMul with a constant right side, LSTM, GRU,
Softmax, LogSoftmax, LayerNormalization, BatchNormalization, CumSum, pools, maxima and minima, ReduceL1, ReduceL2,
ReduceSumSquare, ReduceLogSum, ReduceLogSumExp, ReduceProd, Exp, Erf, Gelu, Tanh, Sigmoid, Sqrt, Pow and other functions
of single numbers.
"""
