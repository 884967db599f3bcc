"""Records an ONNX graph: all inner values are made outputs, so onnxruntime returns the result of every node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch
from lengthwise_export.checking.causes import DEFAULT_NAMES, ArgumentNames
from lengthwise_export.checking.recording import AlternativeReading, ModelOutput, Operation, Recording
from lengthwise_export.errors import RunError
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph
from lengthwise_export.onnx_graphs.probing import inputs_of, open_recording_session, open_session
from lengthwise_export.onnx_graphs.protos import names_in, reaching

if TYPE_CHECKING:
    import onnxruntime


class OnnxSubject:
    """An ONNX graph under check.

    Args:
        one_by_one: Whether each row runs unbatched and unpadded, as the service does with `max_batch_rows: 1`.
    """

    state: Final = None  # a graph has no state

    def __init__(self, graph: ExternalGraph, *, one_by_one: bool = False) -> None:
        self._one_by_one = one_by_one
        self.steps = graph.steps
        self._external = graph
        names = graph.names
        self._outputs = [names.logits] if names.attention is None else [names.logits, names.attention]
        self._nodes = reaching(graph.graph.graph, self._outputs)
        self._session = open_session(graph.graph)
        self._recorder: onnxruntime.InferenceSession | None = None

    @property
    def sizes(self) -> frozenset[int]:
        """The sizes of all axes of its weights."""
        return frozenset(int(size) for weights in self._external.graph.graph.initializer for size in weights.dims)

    @property
    def names(self) -> ArgumentNames:
        """The default names: the module that the graph was exported from is not known."""
        return DEFAULT_NAMES

    def answer(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch."""
        if self._one_by_one:
            return self._answer_each(batch)
        return self._answer(self._inputs(batch))

    def answer_in_float64(self, batch: PaddedBatch) -> ModelOutput | None:
        """None: the types of a graph are its own."""
        return None

    def answer_as_shipped(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch; onnxruntime has no separate fast path."""
        return self.answer(batch)

    def answer_left(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a left-padded batch."""
        inputs = self._inputs(batch)
        mask = self._external.names.mask
        if mask is not None:
            steps_axis = 0 if self._external.names.time_first else 1
            inputs[mask] = np.ascontiguousarray(np.flip(inputs[mask], axis=steps_axis))
        return self._answer(inputs)

    def alternatives(self) -> Iterator[AlternativeReading]:
        """The same graph, with its inputs interpreted in other ways that the user may have meant."""
        names = self._external.names
        if names.mask is not None:
            marks: Literal["valid", "padding"] = "padding" if names.mask_marks == "valid" else "valid"
            second = "padding-mask" if marks == "padding" else "mask"
            where = "padding" if marks == "padding" else "valid steps"
            yield self._read_as(
                {"mask_marks": marks}, f"with a mask that is 1 at {where}: if that is right, pass --second {second}"
            )
        if not names.channels_first and not names.time_first:
            yield self._read_as(
                {"time_first": True}, "with steps as [width, rows, features]: if that is right, pass --time-first"
            )

    def _read_as(self, names: dict[str, Any], runs: str) -> AlternativeReading:
        read = replace(self._external, names=self._external.names.model_copy(update=names))
        return AlternativeReading(OnnxSubject(read, one_by_one=self._one_by_one), runs)

    def record(self, batch: PaddedBatch) -> Recording:
        """Runs a batch and records the output of every node."""
        if self._recorder is None:
            self._recorder = open_recording_session(self._external.graph, self._nodes)
        names = [output.name for output in self._recorder.get_outputs()]
        values = dict(zip(names, self._run(self._recorder, names, self._inputs(batch)), strict=True))
        needed = {*names_in(self._nodes), *self._outputs}
        operations = [
            Operation(
                operator=node.name or f"{node.op_type} giving {node.output[0]}",
                kind=node.op_type,
                location=None,
                inputs=frozenset(hash(name) for name in node.input if name),
                gives=frozenset(hash(name) for name in node.output if name in needed),
                outputs=tuple(
                    (hash(name), values[name])
                    for name in node.output
                    if name in needed and isinstance(values.get(name), np.ndarray)
                ),
            )
            for node in self._nodes
        ]
        return Recording(operations, frozenset(map(hash, self._outputs)))

    def _answer_each(self, batch: PaddedBatch) -> ModelOutput:
        """Runs each row in its own batch without padding, and puts the answers together."""
        answers = [
            self._answer(self._inputs(PaddedBatch(batch.steps[row : row + 1, :length], batch.lengths[row : row + 1])))
            for row, length in enumerate(batch.lengths)
        ]
        logits = [answer.logits[0] for answer in answers]
        attention = [answer.attention[0] for answer in answers if answer.attention is not None]
        return ModelOutput(
            widened(logits, batch.width) if self._external.per_step else np.stack(logits),
            widened(attention, batch.width) if attention else None,
        )

    def _inputs(self, batch: PaddedBatch) -> dict[str, NDArray[Any]]:
        return inputs_of(self._session, self._external.names, batch)

    def _answer(self, inputs: dict[str, NDArray[Any]]) -> ModelOutput:
        logits, *attention = self._run(self._session, self._outputs, inputs)
        if self._external.names.classes_first and self._external.per_step:
            logits = logits.swapaxes(1, 2)
        if self._external.names.time_first:
            logits = logits.swapaxes(0, 1) if self._external.per_step else logits
            attention = [weights.T for weights in attention]
        return ModelOutput(logits, *attention)

    def _run(
        self, session: onnxruntime.InferenceSession, outputs: list[str], inputs: dict[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        try:
            results: list[NDArray[Any]] = session.run(outputs, inputs)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise RunError(str(error).strip().split("\n")[0]) from error
        return results


def widened(rows: Sequence[NDArray[np.float32]], width: int) -> NDArray[np.float32]:
    """Pads rows of `[length, ...]` with zeros to one array `[rows, width, ...]`."""
    wide = np.zeros((len(rows), width, *rows[0].shape[1:]), dtype=np.float32)
    for target, row in zip(wide, rows, strict=True):
        target[: len(row)] = row
    return wide
