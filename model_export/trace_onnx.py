"""The recorder for ONNX: every value of a graph made an output, so that onnxruntime gives what each node computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from model_export.adopt import Adopted
from model_export.errors import RunError
from model_export.probing import open_session
from model_export.recording import Answer, Operation, Recording
from service.padding import PaddedBatch
from service.session import feed


class OnnxSubject:
    """A graph under check."""

    def __init__(self, adopted: Adopted) -> None:
        """Takes a graph whose inputs have been read."""
        self.steps = adopted.steps
        self._adopted = adopted
        names = adopted.names
        self._outputs = [names.logits] if names.attention is None else [names.logits, names.attention]
        self._nodes = _reaching(adopted.graph.graph, self._outputs)
        self._session = open_session(adopted.graph)
        self._recorder: onnxruntime.InferenceSession | None = None

    @property
    def sizes(self) -> frozenset[int]:
        """The sizes of its weights."""
        return frozenset(int(size) for weights in self._adopted.graph.graph.initializer for size in weights.dims)

    def answer(self, batch: PaddedBatch) -> Answer:
        """Answers a batch."""
        return self._answer(feed(self._adopted.names, batch))

    def answer_as_shipped(self, batch: PaddedBatch) -> Answer:
        """Answers a batch; onnxruntime has one way."""
        return self.answer(batch)

    def answer_left(self, batch: PaddedBatch) -> Answer:
        """Answers a batch whose sequences stand at the end of their rows."""
        inputs = feed(self._adopted.names, batch)
        mask = self._adopted.names.mask
        if mask is not None:
            steps_axis = 0 if self._adopted.names.time_first else 1
            inputs[mask] = np.ascontiguousarray(np.flip(inputs[mask], axis=steps_axis))
        return self._answer(inputs)

    def record(self, batch: PaddedBatch) -> Recording:
        """Answers a batch, and gives what every node computed on the way."""
        if self._recorder is None:
            self._recorder = _recording_session(self._adopted.graph, self._nodes)
        names = [output.name for output in self._recorder.get_outputs()]
        values = dict(zip(names, self._run(self._recorder, names, feed(self._adopted.names, batch)), strict=True))
        needed = {name for node in self._nodes for name in _inputs(node)}.union(self._outputs)
        operations = [
            Operation(
                operator=node.name or f"{node.op_type} giving {node.output[0]}",
                kind=node.op_type,
                place=None,
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

    def _answer(self, inputs: dict[str, NDArray[Any]]) -> Answer:
        logits, *attention = self._run(self._session, self._outputs, inputs)
        if self._adopted.names.time_first:
            logits = logits.swapaxes(0, 1) if self._adopted.per_step else logits
            attention = [weights.T for weights in attention]
        return Answer(logits, *attention)

    def _run(
        self, session: onnxruntime.InferenceSession, outputs: list[str], inputs: dict[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        try:
            results: list[NDArray[Any]] = session.run(outputs, inputs)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise RunError(str(error).strip().split("\n")[0]) from error
        return results


def _reaching(graph: onnx.GraphProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on, in the order of the graph."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_inputs(node))
    return nodes[::-1]


def _inputs(node: onnx.NodeProto) -> set[str]:
    """What a node takes, the values that its subgraphs take from outside included."""
    taken = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                taken |= _inputs(inner)
    return taken


def _recording_session(graph: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnxruntime.InferenceSession:
    """A session whose outputs are all values, as the nodes that stand in the file compute them."""
    recording = onnx.ModelProto()
    recording.CopyFrom(graph)
    del recording.graph.output[:]
    recording.graph.output.extend(onnx.ValueInfoProto(name=name) for node in nodes for name in node.output if name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_session(recording, options)
