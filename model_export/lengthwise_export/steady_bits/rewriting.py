"""Rewrites operators so that a sequence gets the same bits in every batch, as an export does where bits are lost.

A graph that gives the same bits in every batch stays as it is. Otherwise the operators of the table `REWRITES` are
rewritten where their sizes say that bits can be lost, and the graph is measured again; then wherever a rewrite is
possible. If bits are still lost, the graph stays as it is, and `first_loss` names the first operator that loses them.

A rewrite changes answers once, by rounding. Kernels differ between processors, so whether bits are lost, and whether a
rewrite keeps them, is measured on this machine.
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

from lengthwise.padding import PaddedBatch, Steps, pad, step_mask
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.verification.measurement import BatchVariations, Case
from lengthwise.verification.random_sequences import ROUNDING, draw
from lengthwise.wrong_values import first_of
from lengthwise_export.checking.baseline import relative_difference
from lengthwise_export.checking.leaks import FailedTrial, find_leaks
from lengthwise_export.checking.recording import Recording
from lengthwise_export.checking.trace_onnx import OnnxSubject
from lengthwise_export.checking.trials import CheckTrial, Sampler
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph
from lengthwise_export.onnx_graphs.probing import open_session
from lengthwise_export.onnx_graphs.protos import OF_ONNX, opset_of
from lengthwise_export.steady_bits.convolutions import rewritten_convolution
from lengthwise_export.steady_bits.operators import (
    expanded_einsum,
    rewritten_function,
    rewritten_product,
    rewritten_rnn,
    rewritten_sum,
)
from lengthwise_export.steady_bits.replacement import GraphFacts, Replacement, put_into

_SEQUENCES: Final = 220
_LONGEST: Final = 70
_ROWS: Final = 11  # the sequences of `first_loss`, their largest length, and the rows of its batches

_BLOCKED: Final = "com.microsoft.nchwc"
"""The domain of operators whose values have another layout in memory, so that they cannot be compared step by step."""


@dataclass(frozen=True, slots=True)
class LossOfBits:
    """The first operator that gives a sequence other bits batched than unbatched."""

    operator: str
    kind: str  # Its operator type in the graph as onnxruntime optimises it
    difference: float  # The difference of its output, in units of max(1, its largest value)

    def __str__(self) -> str:
        """The operator, for people."""
        return f"{self.operator} ({self.kind})"


def keeps_bits(graph: onnx.ModelProto, manifest: Manifest) -> bool:
    """Whether a sequence gets the same bits batched and unbatched, in every case of the verification."""
    content = graph.SerializeToString()

    def cases() -> Iterator[Case]:
        variations = BatchVariations(Session(content, manifest), manifest, seed=0)
        yield from variations.invariance()
        yield from variations.with_threads(Session(content, manifest, threads=2))

    return all(case.bits for case in cases() if case.is_invariance and not case.extreme)


def first_loss(graph: onnx.ModelProto, manifest: Manifest) -> LossOfBits | None:
    """The first operator whose output differs for a sequence whose answer differs; None if none of them does."""
    session = Session(graph.SerializeToString(), manifest)
    subject: OnnxSubject | None = None
    for together, row, alone in _differing(session, manifest):
        subject = subject or _Optimized(graph, manifest)
        trial = CheckTrial("unbatched", "batch", alone, ((row, 0),))
        for loss in find_leaks(subject, [FailedTrial(together, trial, 0)], tolerance=0.0):
            return LossOfBits(loss.operator, loss.kind, loss.difference)
    return None


def _differing(session: Session, manifest: Manifest) -> Iterator[tuple[PaddedBatch, int, PaddedBatch]]:
    """Batches with a row that gets other bits than unbatched: the batch, the row, and the row unbatched."""
    longest = min(max(_LONGEST, 2 * manifest.min_length), manifest.max_length)
    lengths = np.random.default_rng(0).integers(manifest.min_length, longest + 1, size=_SEQUENCES).tolist()
    sequences: Sequence[Steps] = draw(manifest, lengths, 0)
    for start in range(0, len(sequences), _ROWS):
        members = sequences[start : start + _ROWS]
        together = pad(members, multiple=manifest.width_multiple)
        logits = session.run(together).logits
        for row, steps in enumerate(members):
            alone = pad([steps], multiple=manifest.width_multiple)
            (answer,) = session.run(alone).logits
            valid = slice(len(steps)) if manifest.task == "per-step" else slice(None)
            if answer[valid].tobytes() != logits[row][valid].tobytes():
                yield together, row, alone


class _Optimized(OnnxSubject):
    """The graph as onnxruntime optimises it: operators that it joins are computed by other kernels than each alone."""

    def __init__(self, graph: onnx.ModelProto, manifest: Manifest) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            options = onnxruntime.SessionOptions()
            options.optimized_model_filepath = str(path)
            open_session(graph, options)
            optimized = onnx.load(path)
        per_step = manifest.task == "per-step"
        super().__init__(ExternalGraph(optimized, manifest.input, manifest.graph, manifest.classes, per_step))
        blocked = (node for node in optimized.graph.node if node.domain == _BLOCKED)
        self._blocked = {node.name or f"{node.op_type} giving {node.output[0]}" for node in blocked}

    def record(self, batch: PaddedBatch) -> Recording:
        """As `OnnxSubject.record`, without values that onnxruntime keeps in its blocked layout."""
        recording = super().record(batch)
        parts = ((each, each.operator in self._blocked) for each in recording.operations)
        return Recording([replace(each, outputs=()) if blocked else each for each, blocked in parts], recording.answers)


_EXPANSIONS: Final = frozenset({"Einsum"})  # they become others which have rewrites of their own, so they come first

Rewrite = Callable[[NodeProto, GraphFacts], Replacement | None]
"""The nodes that replace one, whose bits do not depend on the batch; None where it keeps its bits, or must stay."""

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


_LOWEST_OPSET = 13  # the first opset in which Squeeze and Unsqueeze take their axes as an input
_MAX_NAMED = 4  # at most this many operators of a type are named
_LENGTHS = (1, 3, 8, 21, 55)  # lengths of the sequences whose answers before and after are compared


@dataclass(frozen=True, slots=True)
class RewrittenOperator:
    """One operator that was rewritten."""

    operator: str
    kind: str
    into: tuple[str, ...]  # The operator types that replace it, in order of execution


def with_steady_bits(
    graph: onnx.ModelProto, manifest: Manifest, say: Callable[[str], None] = lambda _: None
) -> tuple[onnx.ModelProto, list[RewrittenOperator]]:
    """Rewrites a float32 graph if that makes its bits independent of the batch; says once what was done, or why not."""
    if keeps_bits(graph, manifest):
        say("nothing rewritten: the graph already gives the same bits batched and unbatched")
        return graph, []
    tried: list[RewrittenOperator] = []
    left = graph
    for every in (False, True):
        changed, rewritten = rewrite(graph, manifest, every=every)
        if len(rewritten) <= len(tried):
            continue
        difference = largest_difference(graph, changed, manifest)
        if difference > ROUNDING:
            say(f"nothing rewritten: it would change an answer by {difference:.2g}, more than rounding")
            return graph, []
        if keeps_bits(changed, manifest):
            say(f"rewritten: {_listed(rewritten)}; this changed answers by {difference:.2g}, once")
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
    rewritten: list[RewrittenOperator] = []
    for kinds in (_EXPANSIONS, REWRITES.keys() - _EXPANSIONS):
        if opset_of(graph) < _LOWEST_OPSET or not any(node.op_type in kinds for node in graph.graph.node):
            continue
        changed, replacements = deepcopy(graph), []
        facts = GraphFacts(changed, manifest, every=every)
        for node in changed.graph.node:
            is_known = node.domain in OF_ONNX and node.op_type in kinds
            replacement = REWRITES[node.op_type](node, facts) if is_known else None
            if replacement is not None:
                name = node.name or f"{node.op_type} giving {node.output[0]}"
                into = tuple(new.op_type for new in replacement.nodes)
                rewritten.append(RewrittenOperator(name, node.op_type, into))
                replacements.append(replacement)
        if replacements:
            put_into(changed, replacements)
            graph = changed
    return graph, rewritten


def largest_difference(before: onnx.ModelProto, after: onnx.ModelProto, manifest: Manifest) -> float:
    """The largest difference between the two graphs' answers to sequences of several lengths, batched and unbatched."""
    sessions = [Session(graph.SerializeToString(), manifest) for graph in (before, after)]
    sampler = Sampler(manifest.input, seed=0)
    lengths = [max(min(length, manifest.max_length), manifest.min_length) for length in _LENGTHS]
    sequences = [sampler.sequence(length) for length in lengths]
    unbatched = [[steps] for steps in sequences]
    together = [] if manifest.max_batch_rows == 1 else [sequences]
    differences = []
    for members in (*unbatched, *together):
        batch = pad(members, multiple=manifest.width_multiple)
        answers = [session.run(batch).logits for session in sessions]
        if manifest.task == "per-step":
            answers = [logits[step_mask(batch.lengths, batch.width)] for logits in answers]
        differences.append(relative_difference(*answers))
    return max(differences)


def _listed(rewritten: list[RewrittenOperator]) -> str:
    """The operators by type, as `ReduceSum (pool, mean)`; of many the first few."""
    names = {
        kind: [operator.operator for operator in rewritten if operator.kind == kind]
        for kind in dict.fromkeys(operator.kind for operator in rewritten)
    }
    return ", ".join(f"{kind} ({first_of(operators, _MAX_NAMED)})" for kind, operators in names.items())
