"""The output tensors of the Open Inference Protocol: the answer to a call whose sequences came as tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.json_body import is_decided, next_state
from lengthwise.protocols.tensor_specs import DECIDED, ELEMENTS, OFFSET, STATE, outputs_of
from lengthwise.protocols.tensors import TensorCall
from lengthwise.runtime.answers import Answer

_ROWS: Final[Mapping[str, Callable[[Answer, NDArray[Any], float], Any]]] = {
    # `...` keeps an array: from bytes NumPy would cut zeros off.
    "label": lambda answer, labels, _: labels[answer.best, ...],
    "score": lambda answer, *_: answer.probabilities[answer.best],
    "assigned": lambda answer, _, threshold: answer.probabilities >= threshold,
    "step_labels": lambda answer, labels, _: labels[answer.probabilities.argmax(axis=1)],
    "step_scores": lambda answer, *_: answer.probabilities.max(axis=1),
    "attention": lambda answer, *_: answer.attention,
    **dict.fromkeys(("probabilities", "values"), lambda answer, *_: answer.probabilities),
}
"""By output tensor: computes a row of it, without padding, from (answer, labels as bytes, multi-label threshold)."""


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """An output tensor of an answer."""

    name: str
    datatype: str  # the protocol's
    values: NDArray[Any]  # elements; those of `BYTES` are Python's `bytes`
    binary: bool  # whether it is sent as raw bytes

    def raw(self) -> bytes:
        """The elements as raw bytes: row-major, little-endian; each text after its length as 4 bytes."""
        if self.datatype == "BYTES":
            return b"".join(len(text).to_bytes(4, "little") + text for text in self.values.flat)
        return self.values.astype(ELEMENTS[self.datatype], copy=False).tobytes()


def answer(tensor_call: TensorCall, answers: Sequence[Answer]) -> list[EncodedTensor]:
    """Encodes the answers of a call as the output tensors that it asks for, in the requested order.

    An output that is asked for as classifications has these as bytes, in place of the probabilities.
    """
    manifest = tensor_call.call.model.manifest
    forms = {form.name: form for form in outputs_of(manifest)}
    labels = _as_bytes(manifest.labels)
    outputs = []
    of_stream = _of_stream(tensor_call, answers)
    for name, binary, classes in tensor_call.outputs:
        datatype = forms[name].datatypes[0]
        if name in of_stream:
            outputs.append(EncodedTensor(name, datatype, of_stream[name], bool(binary)))
            continue
        rows = [np.asarray(_ROWS[name](row_answer, labels, manifest.threshold)) for row_answer in answers]
        if classes is not None:
            rows = [classified(row, classes, manifest.labels) for row in rows]
            datatype = "BYTES"
        # Rows with a time axis are padded; others have equal shapes.
        if forms[name].shape[1:2] == (-1,):
            values = _padded(rows, tensor_call)
        else:
            values = rows[0][np.newaxis] if len(rows) == 1 else np.stack(rows)
        outputs.append(EncodedTensor(name, datatype, values, bool(binary)))
    return outputs


def _of_stream(tensor_call: TensorCall, answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
    """The tensors of what a call asks for that depends on earlier chunks of each row, by name."""
    call = tensor_call.call
    manifest = call.model.manifest
    tensors: dict[str, NDArray[Any]] = {}
    if call.states:
        keys = call.model.state_keys
        pairs = [next_state(manifest, item, answer, keys) for item, answer in zip(call.items, answers, strict=True)]
        tensors[STATE] = np.array([text.encode() for _, text in pairs], dtype=object)
        tensors[OFFSET] = np.array([offset for offset, _ in pairs], dtype=np.int64)
    if any(output.name == DECIDED.name for output in tensor_call.outputs):
        tensors[DECIDED.name] = np.array([*map(partial(is_decided, manifest), call.items, answers)])
    return tensors


@lru_cache
def _as_bytes(labels: tuple[str, ...]) -> NDArray[Any]:
    """Labels as an array of Python's bytes."""
    return np.array([label.encode() for label in labels], dtype=object)


def classified(probabilities: NDArray[np.float32], classes: int, labels: Sequence[str]) -> NDArray[Any]:
    """The best classes in the form of the classification extension: `SCORE:INDEX:LABEL` as bytes, best first.

    From `[..., classes of the model]` it makes `[..., classes]`. Of two equal scores the lower index comes first.
    """
    best = np.argsort(-probabilities, axis=-1, kind="stable")[..., :classes]
    scores = np.take_along_axis(probabilities, best, axis=-1)
    texts = np.empty(best.shape, dtype=object)
    pairs = zip(scores.ravel().tolist(), best.ravel().tolist(), strict=True)
    texts.ravel()[:] = [f"{score:f}:{index}:{labels[index]}".encode() for score, index in pairs]
    return texts


def _padded(rows: Sequence[NDArray[Any]], tensor_call: TensorCall) -> NDArray[Any]:
    """Rows with a time axis as one array `[rows, width, ...]`.

    Each step is at its index in the input tensor; other steps are 0, or empty texts.
    """
    first = rows[0]
    blank: Any = b"" if first.dtype == object else 0
    padded: NDArray[Any] = np.full((len(rows), tensor_call.call.width, *first.shape[1:]), blank, dtype=first.dtype)
    for row, entries, item in zip(padded, rows, tensor_call.call.items, strict=True):
        row[slice(len(entries)) if item.step_indices is None else item.step_indices] = entries
    return padded
