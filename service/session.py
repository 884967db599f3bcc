"""A graph, ready to run: the only module that knows onnxruntime.

A `Session` takes padded batches and gives outputs. It builds whichever the graph wants of lengths and mask, checks at
load that the graph's inputs are what the manifest says, and may be run from several threads at once: `run` releases the
interpreter lock while onnxruntime computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.errors import ManifestError, ModelError
from service.manifest import GRAPH_FILE, GraphNames, Manifest
from service.padding import PaddedBatch, step_mask

Output = Literal["logits", "attention"]

CPU = "CPUExecutionProvider"
RUNTIME_VERSION: str = onnxruntime.__version__

onnxruntime.disable_telemetry_events()  # a service says nothing of its users to anybody, unless they ask it to

_ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a graph answers for one padded batch.

    Attributes:
        logits: `[rows, classes]` float32; of a per-step head `[rows, width, classes]`.
        attention: `[rows, width]` float32, or None where it was not asked for.
    """

    logits: NDArray[np.float32]
    attention: NDArray[np.float32] | None = None


class Session:
    """One graph on one provider.

    Args:
        graph: The file, or the graph's bytes.
        manifest: What the graph's inputs and outputs mean.
        threads: Threads inside one run. Serving uses 1 and runs several batches at once instead.

    Raises:
        ModelError: onnxruntime cannot load the graph.
        ManifestError: The graph's inputs or outputs are not what the manifest says.
    """

    def __init__(self, graph: Path | bytes, manifest: Manifest, *, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A runner that waits must not burn the core that the event loop needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = graph if isinstance(graph, bytes) else str(graph)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=[CPU])
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise ModelError(f"{manifest.key}: onnxruntime cannot load the graph: {error}") from error
        self._names = manifest.graph
        self._check(manifest)
        self._outputs: dict[Output, str] = {"logits": manifest.graph.logits}
        if manifest.graph.attention is not None:
            self._outputs["attention"] = manifest.graph.attention
        # Only these have a time axis, and come with it first where the graph takes its steps so.
        self._along_steps: frozenset[Output] = frozenset(
            {"attention", "logits"} if manifest.task == "per-step" else {"attention"}
        )
        self.provider = CPU

    @classmethod
    def load(cls, directory: Path, manifest: Manifest, *, threads: int = 1) -> Session:
        """The session of a model directory's graph."""
        return cls(directory / GRAPH_FILE, manifest, threads=threads)

    @property
    def outputs(self) -> frozenset[Output]:
        """Which outputs the graph has."""
        return frozenset(self._outputs)

    def run(self, batch: PaddedBatch, outputs: Sequence[Output] = ("logits",)) -> Outputs:
        """Runs the graph once.

        Args:
            batch: `steps [rows, width, features]` or `[rows, width]`, with `lengths [rows]`.
            outputs: Which to compute; an output that the graph does not have is left out.
        """
        wanted = [output for output in outputs if output in self._outputs]
        results = self._session.run([self._outputs[output] for output in wanted], feed(self._names, batch))
        if self._names.time_first:
            results = [
                np.ascontiguousarray(result.swapaxes(0, 1)) if output in self._along_steps else result
                for output, result in zip(wanted, results, strict=True)
            ]
        return Outputs(**dict(zip(wanted, results, strict=True)))

    def _check(self, manifest: Manifest) -> None:
        """Holds the graph's inputs and outputs against the manifest."""
        names = manifest.graph
        tokens = manifest.input.kind == "tokens"
        expected = {names.sequences: ("int64" if tokens else "float32", 2 if tokens else 3)}
        if names.lengths is not None:
            expected[names.lengths] = (names.lengths_type, 1)
        if names.mask is not None:
            expected[names.mask] = (names.mask_type, 2)
        found = {
            node.name: (_ELEMENTS.get(node.type, node.type), len(node.shape)) for node in self._session.get_inputs()
        }
        if found != expected:
            raise ManifestError(
                f"{manifest.key}: the graph's inputs are {_said(found)}, the manifest says {_said(expected)}"
            )
        steps = self._session.get_inputs()[[*found].index(names.sequences)]
        if any(isinstance(size, int) for size in steps.shape[:2]):
            raise ManifestError(f"{manifest.key}: rows and width of {names.sequences} are frozen at {steps.shape[:2]}")
        if not tokens and isinstance(steps.shape[2], int) and steps.shape[2] != manifest.input.features:
            raise ManifestError(
                f"{manifest.key}: the graph wants {steps.shape[2]} features a step, the manifest says "
                f"{manifest.input.features}"
            )
        named = {names.logits} | ({names.attention} if names.attention else set())
        missing = named - {node.name for node in self._session.get_outputs()}
        if missing:
            raise ManifestError(f"{manifest.key}: the graph has no output {', '.join(sorted(missing))}")


def feed(names: GraphNames, batch: PaddedBatch) -> dict[str, NDArray[Any]]:
    """The graph's inputs for a batch, under the graph's own names and in its own forms."""
    steps: NDArray[Any] = batch.steps
    inputs: dict[str, NDArray[Any]] = {}
    if names.mask is not None:
        mask = step_mask(batch.lengths, batch.width).astype(names.mask_type, copy=False)
        inputs[names.mask] = np.ascontiguousarray(mask.T) if names.time_first else mask
    if names.lengths is not None:
        inputs[names.lengths] = batch.lengths.astype(names.lengths_type, copy=False)
    inputs[names.sequences] = np.ascontiguousarray(steps.swapaxes(0, 1)) if names.time_first else steps
    return inputs


def _said(inputs: dict[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({kind}, rank {rank})" for name, (kind, rank) in sorted(inputs.items()))
