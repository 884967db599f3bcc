"""Records an ONNX graph: all inner values are made outputs, so onnxruntime returns the result of every node.

The key of a tensor in a recording is the hash of its name.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from lengthwise.exporter_api.contract import ULPS, PaddedBatch
from lengthwise_export.checking.recording import DEFAULT_NAMES, AlternativeCall, ModelOutput, Operation, Recording
from lengthwise_export.errors import RunError
from lengthwise_export.layouts import StepLayout
from lengthwise_export.onnx_graphs.beside import alone
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph
from lengthwise_export.onnx_graphs.probing import inputs_of, open_recording_session, open_session
from lengthwise_export.onnx_graphs.protos import constants_of, name_of, names_in, nodes_before

if TYPE_CHECKING:
    import onnxruntime


_ROUNDINGS: Final = 3  # runs with weights that are rounded in another way, to see how much that changes an answer


class OnnxSubject:
    """An ONNX graph under check. With `one_by_one`, each row runs alone, as in a service with `max_batch_rows: 1`."""

    state: Final = None  # a graph has no state
    in_training: Final = False
    names: Final = DEFAULT_NAMES  # those of the module that it was exported from are not known

    def __init__(self, graph: ExternalGraph, *, one_by_one: bool = False, layout: StepLayout | None = None) -> None:
        """Opens a session of the graph; `layout` says how it gets the steps, None for that of the graph."""
        self._one_by_one = one_by_one
        self.layout = layout or graph.layout
        self.steps = graph.steps
        self.sizes = frozenset(int(size) for weights in graph.graph.graph.initializer for size in weights.dims)
        self._external = graph
        names = graph.names
        self._outputs = [names.logits] if names.attention is None else [names.logits, names.attention]
        self._nodes = nodes_before(graph.graph.graph, self._outputs)
        self._session = open_session(graph.graph)
        self._recorder: onnxruntime.InferenceSession | None = None  # opened at the first recording

    def answer(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch."""
        if not self._one_by_one:
            return self._answer(batch)
        answers = [self._answer(alone(batch, row)) for row in range(batch.rows)]
        logits = [answer.logits[0] for answer in answers]
        attention = [answer.attention[0] for answer in answers if answer.attention is not None]
        return ModelOutput(
            widened(logits, batch.width) if self._external.per_step else np.stack(logits),
            widened(attention, batch.width) if attention else None,
        )

    def answer_in_float64(self, batch: PaddedBatch) -> ModelOutput | None:
        """None: the types of a graph are fixed, so it cannot run in float64."""
        return None

    def answers_of_rounded_weights(self, batch: PaddedBatch) -> Iterator[ModelOutput]:
        """Yields the answers of copies of the graph whose weights are a few ulps larger or smaller, at random."""
        for seed in range(_ROUNDINGS):
            graph, generator = copy.deepcopy(self._external.graph), np.random.default_rng(seed)
            for tensor in constants_of(graph.graph).values():
                weights = numpy_helper.to_array(tensor)
                if weights.dtype == np.float32 and weights.ndim:  # a single number may be an exponent or a size
                    ulps = generator.choice([-ULPS, ULPS], weights.shape) * np.spacing(np.abs(weights))
                    rounded = np.where(np.isfinite(weights), weights + ulps, weights).astype(np.float32)
                    tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
            with contextlib.suppress(RunError):
                yield self._with_graph(replace(self._external, graph=graph)).answer(batch)

    def answer_as_shipped(self, batch: PaddedBatch) -> ModelOutput:
        """The same as `answer`: layers of torch have fast paths, which a check turns off; a graph has none."""
        return self.answer(batch)

    def output_form(self, batch: PaddedBatch) -> tuple[tuple[int, ...], int]:
        """The shape of the answer as the graph gives it, and the number of its outputs."""
        logits, *_ = self._run(self._session, self._outputs, self._inputs(batch))
        return logits.shape, len(self._external.graph.graph.output)

    def with_layout(self, layout: StepLayout) -> OnnxSubject:
        """The same graph, which gets the steps of a batch in another layout."""
        subject = copy.copy(self)
        subject.layout = layout
        return subject

    def alternatives(self) -> Iterator[AlternativeCall]:
        """Yields the same graph, with its inputs interpreted in other ways that the user may have meant."""
        if self.layout.packed is not None:
            return
        names = self._external.names
        if names.mask is not None:
            is_valid = names.mask_marks == "valid"
            option, marked = ("padding-mask", "padding") if is_valid else ("mask", "valid steps")
            sentence_end = f"with a mask that is 1 at {marked}: if that is right, pass --second {option}"
            yield self._alternative(sentence_end, mask_marks="padding" if is_valid else "valid")
        if not names.channels_first and not names.time_first:
            sentence_end = "with steps as [width, rows, features]: if that is right, pass --time-first"
            yield self._alternative(sentence_end, time_first=True)

    def _alternative(self, sentence_end: str, **names: Any) -> AlternativeCall:
        """The graph with other fields of its `GraphNames`; `sentence_end` is that of the alternative."""
        graph = replace(self._external, names=self._external.names.model_copy(update=names))
        return AlternativeCall(self._with_graph(graph), sentence_end)

    def _with_graph(self, graph: ExternalGraph) -> OnnxSubject:
        """The subject of another graph, or of another reading of it, that runs in the same way."""
        return OnnxSubject(graph, one_by_one=self._one_by_one, layout=self.layout)

    def record(self, batch: PaddedBatch) -> Recording:
        """Runs a batch and records the outputs of every node that the answer depends on."""
        if self._recorder is None:
            self._recorder = open_recording_session(self._external.graph, self._nodes)
        names = [output.name for output in self._recorder.get_outputs()]
        values = dict(zip(names, self._run(self._recorder, names, self._inputs(batch)), strict=True))
        needed = {*names_in(self._nodes), *self._outputs}
        types = {name: value.dtype.name for name, value in values.items() if isinstance(value, np.ndarray)}
        operations = []
        for node in self._nodes:
            outputs = [name for name in node.output if name in needed]
            recorded = [(hash(name), values[name]) for name in outputs if isinstance(values.get(name), np.ndarray)]
            operations.append(
                Operation(
                    operator=name_of(node),
                    kind=node.op_type,
                    location=None,
                    input_keys=frozenset(hash(name) for name in node.input if name),
                    output_keys=frozenset(map(hash, filter(None, outputs))),
                    outputs=tuple(recorded),
                    input_type=types.get(node.input[0], "") if node.input else "",
                )
            )
        return Recording(operations, frozenset(map(hash, self._outputs)))

    def _inputs(self, batch: PaddedBatch) -> dict[str, NDArray[Any]]:
        """The inputs of the graph, by name, for a batch."""
        graph = self._external
        return inputs_of(self._session, graph.names, graph.steps, batch, self.layout, graph.further_inputs)

    def _answer(self, batch: PaddedBatch) -> ModelOutput:
        """Runs all rows of a batch at once; the axes of the answer are put into the usual order."""
        logits, *attention = self._run(self._session, self._outputs, self._inputs(batch))
        if self._external.names.classes_first and self._external.per_step:
            logits = logits.swapaxes(1, 2)
        if self._external.names.time_first:
            logits = logits.swapaxes(0, 1) if self._external.per_step else logits
            attention = [weights.T for weights in attention]
        return ModelOutput(logits, *attention).restored(self.layout, batch)

    def _run(
        self, session: onnxruntime.InferenceSession, outputs: list[str], inputs: dict[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Runs a session, and returns the outputs with these names.

        Raises:
            RunError: onnxruntime raises; the message is the first line of its error.
        """
        try:
            results: list[NDArray[Any]] = session.run(outputs, inputs)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise RunError(str(error).strip().split("\n")[0]) from error
        return results


def widened(rows: Sequence[NDArray[np.float32]], width: int) -> NDArray[np.float32]:
    """Pads rows of `[length, ...]` with zeros to one array `[rows, width, ...]`."""
    padded = np.zeros((len(rows), width, *rows[0].shape[1:]), dtype=np.float32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
