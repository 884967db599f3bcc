"""Where bits are lost: measures whether a graph keeps its bits, and finds the first operator that does not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime

from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.verification.case import Case
from lengthwise.verification.measurement import BatchVariations
from lengthwise.verification.random_sequences import draw
from lengthwise_export.checking.leaks import FailedTrial, find_leaks
from lengthwise_export.checking.recording import Recording
from lengthwise_export.checking.trace_onnx import OnnxSubject
from lengthwise_export.checking.trials import CheckTrial
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph
from lengthwise_export.onnx_graphs.probing import open_session

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
    """The first operator whose output differs for a sequence whose answer differs; None if none of them does.

    The values of the graph are compared as onnxruntime optimises it, because operators that it joins are computed by
    other kernels than each alone.
    """
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
    """The graph as onnxruntime optimises it, to be recorded operator by operator."""

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
        """As the base class, without the values of another layout."""
        recording = super().record(batch)
        parts = ((each, each.operator in self._blocked) for each in recording.operations)
        return Recording([replace(each, outputs=()) if blocked else each for each, blocked in parts], recording.answers)
