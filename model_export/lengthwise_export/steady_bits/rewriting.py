"""Rewrites operators so that a sequence gets the same bits in every batch, as an export does where bits are lost.

A rewrite changes answers once, by rounding. Kernels differ between processors, so whether bits are lost, and whether a
rewrite keeps them, is measured on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Final, Protocol

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lengthwise.padding import pad, step_mask
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.verification.random_sequences import ROUNDING
from lengthwise_export.checking import axes
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.steady_bits.convolutions import rewritten_convolution
from lengthwise_export.steady_bits.einsum import expanded_einsum
from lengthwise_export.steady_bits.elementwise import rewritten_function
from lengthwise_export.steady_bits.graph_facts import GraphFacts
from lengthwise_export.steady_bits.losses import first_loss, keeps_bits
from lengthwise_export.steady_bits.products import rewritten_product, rewritten_rnn
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
    **dict.fromkeys(("Log", "Softplus", "Mish", "Sin", "Cos", "Asin", "Acos", "Atan"), rewritten_function),
}
"""The rewrite of each operator type.

These were seen to keep their bits at every size, and have none: Gemm and MatMul with a constant right side, LSTM, GRU,
Softmax, LogSoftmax, LayerNormalization, BatchNormalization, CumSum, pools, maxima and minima, ReduceL1, ReduceL2,
ReduceSumSquare, ReduceLogSum, ReduceLogSumExp, ReduceProd, Exp, Erf, Gelu, Tanh, Sigmoid, Sqrt, Pow and other functions
of single numbers.
"""


LOWEST_OPSET = 13  # the first opset in which Squeeze and Unsqueeze take their axes as an input
_MAX_NAMED = 4  # at most this many operators of a type are named
_LENGTHS = (1, 3, 8, 21, 55)  # lengths of the sequences whose answers before and after are compared


@dataclass(frozen=True, slots=True)
class RewrittenOperator:
    """One operator that was rewritten."""

    operator: str
    kind: str
    into: tuple[str, ...]  # The operator types that stand in its place, in order of execution


def with_steady_bits(
    graph: onnx.ModelProto, manifest: Manifest, say: Callable[[str], None] = lambda _: None
) -> tuple[onnx.ModelProto, list[RewrittenOperator]]:
    """Rewrites a float32 graph if that makes its bits independent of the batch; else gives the graph, and nothing.

    `say` is called once with what was done, or why nothing was rewritten.
    """
    if keeps_bits(graph, manifest):
        say("nothing rewritten: the graph already gives the same bits batched and unbatched")
        return graph, []
    tried: list[RewrittenOperator] = []
    left = graph
    for every in (False, True):
        changed, rewritten = rewrite(graph, manifest, every=every)
        if len(rewritten) <= len(tried):
            continue
        moved = largest_difference(graph, changed, manifest)
        if moved > ROUNDING:
            say(f"nothing rewritten: it would change an answer by {moved:.2g}, more than rounding")
            return graph, []
        if keeps_bits(changed, manifest):
            say(f"rewritten: {_listed(rewritten)}; this changed answers by {moved:.2g}, once")
            return changed, rewritten
        tried, left = rewritten, changed
    loss = first_loss(left, manifest)
    where = "" if loss is None else f", first at {loss}"
    after = f"with {_listed(tried)} rewritten, bits still depend" if tried else "bits depend"
    say(f"nothing rewritten: {after} on the batch{where}, and no rewrite is known for that")
    return graph, []


def rewrite(
    graph: onnx.ModelProto, manifest: Manifest, *, every: bool = False
) -> tuple[onnx.ModelProto, list[RewrittenOperator]]:
    """Replaces the operators of `REWRITES` without measuring; `every` also at sizes that were not seen to lose bits."""
    expanded, first = _replaced(graph, manifest, EXPANSIONS, every=every)
    changed, then = _replaced(expanded, manifest, REWRITES.keys() - EXPANSIONS, every=every)
    return changed, first + then


def _replaced(
    graph: onnx.ModelProto, manifest: Manifest, kinds: Set[str], *, every: bool
) -> tuple[onnx.ModelProto, list[RewrittenOperator]]:
    if not any(node.op_type in kinds for node in graph.graph.node):
        return graph, []
    facts = GraphFacts(graph, manifest)
    if facts.opset < LOWEST_OPSET:
        return graph, []
    rewritten = []
    for node in list(facts.model.graph):
        if node.domain not in ("", "ai.onnx") or node.op_type not in kinds or node.graph is None:
            continue
        replacement = REWRITES[node.op_type](node, facts, every=every)
        if replacement is not None:
            name = node.name or f"{node.op_type} giving {node.outputs[0].name}"
            into = (new.op_type for new in replacement.nodes if new.op_type != "Constant")
            rewritten.append(RewrittenOperator(name, node.op_type, tuple(into)))
            replacement.put_into(facts.model.graph)
    RemoveUnusedNodesPass()(facts.model)
    return (ir.to_proto(facts.model) if rewritten else graph), rewritten


def largest_difference(before: onnx.ModelProto, after: onnx.ModelProto, manifest: Manifest) -> float:
    """The largest difference between the two graphs' answers to sequences of several lengths, batched and unbatched."""
    sessions = [Session(graph.SerializeToString(), manifest) for graph in (before, after)]
    sampler = Sampler(manifest.input, seed=0)
    lengths = [max(min(length, manifest.max_length), manifest.min_length) for length in _LENGTHS]
    sequences = [sampler.sequence(length) for length in lengths]
    unbatched = [[steps] for steps in sequences]
    together = [] if manifest.max_batch_rows == 1 else [sequences]
    apart = []
    for members in (*unbatched, *together):
        batch = pad(members, multiple=manifest.width_multiple)
        answers = [session.run(batch).logits for session in sessions]
        if manifest.task == "per-step":
            answers = [logits[step_mask(batch.lengths, batch.width)] for logits in answers]
        apart.append(axes.gap(*answers))
    return max(apart)


def _listed(rewritten: list[RewrittenOperator]) -> str:
    """The operators by type, as `ReduceSum (pool, mean)`; of many the first few."""
    parts = []
    for kind in dict.fromkeys(one.kind for one in rewritten):
        names = [one.operator for one in rewritten if one.kind == kind]
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        parts.append(f"{kind} ({', '.join(names[:_MAX_NAMED])}{more})")
    return ", ".join(parts)
