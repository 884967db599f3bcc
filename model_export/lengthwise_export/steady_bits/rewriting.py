"""Rewrites operators so that a sequence gets the same bits in every batch; an export does so where bits are lost.

A graph that gives the same bits in every batch stays as it is. Otherwise the operators of the table `REWRITES` are
rewritten where their sizes say that bits can be lost, and the graph is measured again. If bits are still lost, they are
rewritten wherever a rewrite is possible. If that does not help either, the graph stays as it is, and `first_loss` names
the first operator that loses bits.

A rewrite changes answers once, by rounding. Kernels differ between processors, so whether bits are lost, and whether a
rewrite keeps them, is measured on this machine. *Unbatched* is a batch of one row, padded only to the model's
`width_multiple`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto

from lengthwise.exporter_api.contract import ROUNDING, Manifest, PaddedBatch, RowInput, draw, pad, step_mask
from lengthwise.exporter_api.verification import BatchVariations, Case, Session
from lengthwise_export.checking.baseline import relative_difference
from lengthwise_export.checking.leaks import FailedTrial, find_leaks
from lengthwise_export.checking.recording import Recording
from lengthwise_export.checking.trace_onnx import OnnxSubject
from lengthwise_export.checking.trials import CheckTrial, Sampler
from lengthwise_export.errors import first_of
from lengthwise_export.onnx_graphs.beside import completed
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph
from lengthwise_export.onnx_graphs.probing import open_session
from lengthwise_export.onnx_graphs.protos import OF_ONNX, name_of, opset_of
from lengthwise_export.steady_bits.convolutions import rewritten_convolution
from lengthwise_export.steady_bits.operators import (
    expanded_einsum,
    rewritten_function,
    rewritten_product,
    rewritten_rnn,
    rewritten_sum,
)
from lengthwise_export.steady_bits.replacement import GraphFacts, Replacement, put_into

# Of `first_loss`:
_SEQUENCES: Final = 220  # sequences that are tried
_LONGEST: Final = 70  # steps of the longest one
_ROWS: Final = 11  # rows of a batch

_BLOCKED_DOMAIN: Final = "com.microsoft.nchwc"
"""The domain of operators whose outputs have another layout in memory, so that they cannot be compared step by step."""


@dataclass(frozen=True, slots=True)
class LossOfBits:
    """The first operator that gives a sequence other bits batched than unbatched."""

    operator: str  # Its name
    kind: str  # Its operator type in the graph as onnxruntime optimises it
    difference: float  # The difference of its output, in units of max(1, its largest value)

    def __str__(self) -> str:
        """The operator, for people."""
        return f"{self.operator} ({self.kind})"


def keeps_bits(graph: onnx.ModelProto, manifest: Manifest) -> bool:
    """Whether a sequence gets the same bits batched and unbatched, in every case of the verification.

    Cases with extreme values in the padding are left out: the service never pads with these.
    """
    content = graph.SerializeToString()

    def cases() -> Iterator[Case]:
        variations = BatchVariations(Session(content, manifest), manifest, seed=0)
        yield from variations.invariance()
        yield from variations.with_threads(Session(content, manifest, threads=2))

    return all(case.bits for case in cases() if case.is_invariance and not case.extreme)


def first_loss(graph: onnx.ModelProto, manifest: Manifest) -> LossOfBits | None:
    """The first operator whose output differs between a batch and unbatched, for a sequence whose answer differs.

    Returns:
        The operator; None if no answer differs, or no operator can be named.
    """
    session = Session(graph.SerializeToString(), manifest)
    subject: OnnxSubject | None = None  # made only if an answer differs
    for batch, row, unbatched in _differing_rows(session, manifest):
        subject = subject or _OptimizedSubject(graph, manifest)
        trial = CheckTrial("unbatched", "batch", unbatched, ((row, 0),))
        for leak in find_leaks(subject, [FailedTrial(batch, trial, 0)], tolerance=0.0):
            return LossOfBits(leak.operator, leak.kind, leak.difference)
    return None


def _differing_rows(session: Session, manifest: Manifest) -> Iterator[tuple[PaddedBatch, int, PaddedBatch]]:
    """The sequences that get other bits batched than unbatched, of some random ones.

    Yields:
        The batch, the row of the sequence in it, and the sequence unbatched.
    """
    longest = min(max(_LONGEST, 2 * manifest.min_length), manifest.max_length)
    lengths = np.random.default_rng(0).integers(manifest.min_length, longest + 1, size=_SEQUENCES).tolist()
    sequences: Sequence[RowInput] = draw(manifest, lengths, 0)
    for start in range(0, len(sequences), _ROWS):
        members = sequences[start : start + _ROWS]
        batch = pad(members, multiple=manifest.width_multiple)
        logits = session.run(batch).logits
        for row, steps in enumerate(members):
            unbatched = pad([steps], multiple=manifest.width_multiple)
            (answer,) = session.run(unbatched).logits
            valid = slice(len(steps)) if manifest.task == "per-step" else slice(None)
            if answer[valid].tobytes() != logits[row][valid].tobytes():
                yield batch, row, unbatched


class _OptimizedSubject(OnnxSubject):
    """The graph as onnxruntime optimises it: operators that it fuses are computed by other kernels than each alone."""

    def __init__(self, graph: onnx.ModelProto, manifest: Manifest) -> None:
        """Lets onnxruntime optimise a graph, and reads what it writes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            options = onnxruntime.SessionOptions()
            options.optimized_model_filepath = str(path)
            open_session(graph, options)
            optimized = onnx.load(path)
        per_step = manifest.task == "per-step"
        super().__init__(ExternalGraph(optimized, manifest.input, manifest.graph, manifest.classes, per_step))
        # The names of operators of the blocked layout
        self._blocked = {name_of(node) for node in optimized.graph.node if node.domain == _BLOCKED_DOMAIN}

    def record(self, batch: PaddedBatch) -> Recording:
        """Runs a batch and records the outputs of all operators but those of the blocked layout."""
        recording = super().record(batch)
        operations = [
            replace(operation, outputs=()) if operation.operator in self._blocked else operation
            for operation in recording.operations
        ]
        return Recording(operations, recording.answers)


_EXPANSIONS: Final = frozenset({"Einsum"})  # rewritten first: they become operators that have rewrites of their own

Rewrite = Callable[[NodeProto, GraphFacts], Replacement | None]
"""Returns nodes that replace a node, and whose bits do not depend on the batch; None if the node stays, because it
keeps its bits, or because no way is known."""

REWRITES: Final[Mapping[str, Rewrite]] = {
    "Einsum": expanded_einsum,
    "ReduceSum": rewritten_sum,
    "ReduceMean": rewritten_sum,
    "MatMul": rewritten_product,
    "Conv": rewritten_convolution,
    "RNN": rewritten_rnn,
    **dict.fromkeys(("Log", "Softplus", "Mish", "Sin", "Cos", "Asin", "Acos", "Atan"), rewritten_function),
    **dict.fromkeys(("Elu", "Selu", "Celu"), rewritten_function),
}
"""The rewrite of each operator type.

These operators were seen to keep their bits at every size, and have no rewrite: Gemm and MatMul with a constant right
side, LSTM, GRU, Softmax, LogSoftmax, LayerNormalization, BatchNormalization, CumSum, pools, maxima and minima,
ReduceL1, ReduceL2, ReduceSumSquare, ReduceLogSum, ReduceLogSumExp, ReduceProd, Exp, Erf, Gelu, Tanh, Sigmoid, Sqrt,
Pow, and the elementwise functions that are not in the table.
"""


_LOWEST_OPSET = 13  # the first opset in which Squeeze and Unsqueeze take their axes as an input
_MAX_NAMED = 4  # at most this many operators of a type are named
_LENGTHS = (1, 3, 8, 21, 55)  # lengths of the sequences whose answers before and after are compared


@dataclass(frozen=True, slots=True)
class RewrittenOperator:
    """One operator that was rewritten."""

    operator: str  # Its name
    kind: str  # Its operator type
    into: tuple[str, ...]  # The operator types that replace it, in order of execution


def with_steady_bits(
    graph: onnx.ModelProto, manifest: Manifest, say: Callable[[str], None] = lambda _: None
) -> tuple[onnx.ModelProto, list[RewrittenOperator]]:
    """Rewrites a float32 graph, if that makes its bits independent of the batch.

    Args:
        graph: The graph, which stays as it is.
        manifest: Its manifest.
        say: Is called once with a text that says what was rewritten, or why nothing was.

    Returns:
        The rewritten graph, and the operators that were rewritten; or the same graph, and no operators.
    """
    if keeps_bits(graph, manifest):
        say("nothing rewritten: the graph already gives the same bits batched and unbatched")
        return graph, []
    # First at the sizes that were seen to lose bits, then at all sizes.
    last_graph, last_rewritten = graph, list[RewrittenOperator]()
    for at_all_sizes in (False, True):
        changed, rewritten = rewrite(graph, manifest, at_all_sizes=at_all_sizes)
        if len(rewritten) <= len(last_rewritten):
            continue
        difference = largest_difference(graph, changed, manifest)
        if difference > ROUNDING:
            say(f"nothing rewritten: it would change an answer by {difference:.2g}, more than rounding")
            return graph, []
        if keeps_bits(changed, manifest):
            say(f"rewritten: {_listed(rewritten)}; this changed answers by {difference:.2g}, once")
            return changed, rewritten
        last_graph, last_rewritten = changed, rewritten
    loss = first_loss(last_graph, manifest)
    where = "" if loss is None else f", first at {loss}"
    after = f"with {_listed(last_rewritten)} rewritten, bits still depend" if last_rewritten else "bits depend"
    say(f"nothing rewritten: {after} on the batch{where}, and no rewrite is known for that")
    return graph, []


def rewrite(
    graph: onnx.ModelProto, manifest: Manifest, *, at_all_sizes: bool = False
) -> tuple[onnx.ModelProto, list[RewrittenOperator]]:
    """Replaces the operators of `REWRITES`, without measuring whether that keeps bits.

    Args:
        graph: The graph, which stays as it is.
        manifest: Its manifest.
        at_all_sizes: Whether operators are also rewritten at sizes at which they were not seen to lose bits.

    Returns:
        The rewritten graph, and the operators that were rewritten; the same graph if there are none.
    """
    rewritten: list[RewrittenOperator] = []
    for kinds in (_EXPANSIONS, REWRITES.keys() - _EXPANSIONS):
        if opset_of(graph) < _LOWEST_OPSET or not any(node.op_type in kinds for node in graph.graph.node):
            continue
        changed, replacements = deepcopy(graph), []
        facts = GraphFacts(changed, manifest, at_all_sizes=at_all_sizes)
        for node in changed.graph.node:
            has_rewrite = node.domain in OF_ONNX and node.op_type in kinds
            replacement = REWRITES[node.op_type](node, facts) if has_rewrite else None
            if replacement is not None:
                into = tuple(new_node.op_type for new_node in replacement.nodes)
                rewritten.append(RewrittenOperator(name_of(node), node.op_type, into))
                replacements.append(replacement)
        if replacements:
            put_into(changed, replacements)
            graph = changed
    return graph, rewritten


def largest_difference(before: onnx.ModelProto, after: onnx.ModelProto, manifest: Manifest) -> float:
    """The largest difference between the answers of two graphs, to sequences of several lengths batched and unbatched.

    It is in units of max(1, the largest logit).
    """
    sessions = [Session(graph.SerializeToString(), manifest) for graph in (before, after)]
    sampler = Sampler(manifest.input, seed=0)
    lengths = [max(min(length, manifest.max_length), manifest.min_length) for length in _LENGTHS]
    sequences = [sampler.sequence(length) for length in lengths]
    batches = [[steps] for steps in sequences]
    if manifest.max_batch_rows != 1:
        batches.append(sequences)
    differences = []
    for members in batches:
        batch = completed(pad(members, multiple=manifest.width_multiple), manifest.input)
        answers = [session.run(batch).logits for session in sessions]
        if manifest.task == "per-step":
            answers = [logits[step_mask(batch.lengths, batch.width)] for logits in answers]
        differences.append(relative_difference(*answers))
    return max(differences)


def _listed(rewritten: list[RewrittenOperator]) -> str:
    """The operators by type, such as `ReduceSum (pool, mean)`; of many the first few."""
    names_by_kind = {
        kind: [operator.operator for operator in rewritten if operator.kind == kind]
        for kind in dict.fromkeys(operator.kind for operator in rewritten)
    }
    return ", ".join(f"{kind} ({first_of(names, _MAX_NAMED)})" for kind, names in names_by_kind.items())
