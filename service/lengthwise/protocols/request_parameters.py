"""The `parameters` of a request of the Open Inference Protocol.

An unknown parameter is ignored, as the protocol requires. A parameter for a feature that this server does not have,
such as shared memory or a sequence over many requests, is an error, because the answer would not be what the client
expects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import Problems
from lengthwise.decoding.json_text import kind

CLASSIFICATION: Final = "classification"
MOST_CLASSIFICATIONS: Final = 262_144
"""Limit of texts in one output: each is a Python object."""
SHARED_MEMORY: Final = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
STATEFUL: Final = ("sequence_id", "sequence_start", "sequence_end")
KNOWN: Final = frozenset(
    {
        CLASSIFICATION,
        "binary_data",
        "binary_data_output",
        "priority",
        "timeout",
        "timeout_ms",
        *SHARED_MEMORY,
        *STATEFUL,
    }
)
"""All parameters that are read."""
NOT_ASKED: Final = (None, False, 0, "")
"""Values with which clients send a parameter that they do not use."""


class RequestedOutput(NamedTuple):
    """How a request asks for one output.

    Attributes:
        binary: Whether the output is sent as raw bytes; None if the request does not say.
        classes: Number of best classes to send instead of the numbers; None for the numbers.
    """

    binary: bool | None = None
    classes: int | None = None


def output(parameters: Mapping[str, Any], at: str, problems: Problems) -> RequestedOutput:
    """Reads the parameters of an output, and adds what is wrong with them to `problems`.

    Args:
        parameters: The parameters of the output.
        at: JSON pointer of them.
        problems: Problems are added here.
    """
    no_shared_memory(parameters, at, problems)
    classes = parameters.get(CLASSIFICATION)
    if CLASSIFICATION in parameters and (type(classes) is not int or classes < 1):
        problems.add(f"{at}/{CLASSIFICATION}", "must be the number of classes wanted, a whole number from 1")
        classes = None
    return RequestedOutput(flag(parameters, "binary_data", at, problems), classes)


def check(parameters: Mapping[str, Any], at: str, problems: Problems) -> None:
    """Adds a problem for each parameter of a request that asks for something this server does not do."""
    no_shared_memory(parameters, at, problems)
    if CLASSIFICATION in parameters:
        problems.add(f"{at}/{CLASSIFICATION}", "belongs in the parameters of an output")
    for name in STATEFUL:
        if parameters.get(name) not in NOT_ASKED:
            problems.add(f"{at}/{name}", "nothing is kept from one request to the next: send whole sequences")


def no_shared_memory(parameters: Mapping[str, Any], at: str, problems: Problems) -> None:
    """Adds a problem if a tensor is in memory that client and server share."""
    for name in SHARED_MEMORY:
        if name in parameters:
            problems.add(f"{at}/{name}", "no memory is shared with clients: elements travel in the request and answer")
            return


def flag(parameters: Mapping[str, Any], name: str, at: str, problems: Problems) -> bool | None:
    """A boolean parameter; None if it is absent, or wrong, which is then in `problems`."""
    if name not in parameters:
        return None
    value = parameters[name]
    if not isinstance(value, bool):
        problems.add(f"{at}/{name}", f"must be true or false, got {kind(value)}")
        return None
    return value


def classified(probabilities: NDArray[np.float32], classes: int, labels: Sequence[str]) -> NDArray[Any]:
    """The best classes in the form of the classification extension, `SCORE:INDEX:LABEL`, best first.

    Args:
        probabilities: `[..., classes of the model]`.
        classes: How many of the best; at most all.
        labels: The labels of the model.

    Returns:
        Their texts as bytes, `[..., classes]`. Of two equal scores the lower index comes first.
    """
    best = np.argsort(-probabilities, axis=-1, kind="stable")[..., :classes]
    scores = np.take_along_axis(probabilities, best, axis=-1)
    texts = np.empty(best.shape, dtype=object)
    texts.ravel()[:] = list(_texts(scores.ravel().tolist(), best.ravel().tolist(), labels))
    return texts


def _texts(scores: Sequence[float], indices: Sequence[int], labels: Sequence[str]) -> Iterator[bytes]:
    for score, index in zip(scores, indices, strict=True):
        yield f"{score:f}:{index}:{labels[index]}".encode()
