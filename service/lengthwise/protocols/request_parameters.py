"""What a request of the Open Inference Protocol says in `parameters`, where passing it over would change the answer.

A parameter that nobody knows is passed over, as the protocol has it. One that is known, and asks for something that is
not done here, is refused by name: who asks for shared memory, or for a sequence over many requests, would get an answer
of another kind than it asked for.
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
"""Texts in one output: each is an object of its own, and is written one by one."""
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
"""Parameters that anybody reads."""
NOT_ASKED: Final = (None, False, 0, "")
"""What clients send that mean nothing by it."""


class RequestedOutput(NamedTuple):
    """How one output is wanted.

    Attributes:
        binary: Whether as bytes; None where nothing is said.
        classes: How many of the best classes in the place of its numbers; None for the numbers.
    """

    binary: bool | None = None
    classes: int | None = None


def output(parameters: Mapping[str, Any], at: str, problems: Problems) -> RequestedOutput:
    """Reads the parameters of an output, and notes what is wrong with them.

    Args:
        parameters: What the request says there.
        at: JSON pointer of them.
        problems: Where problems are noted.
    """
    no_shared_memory(parameters, at, problems)
    classes = parameters.get(CLASSIFICATION)
    if CLASSIFICATION in parameters and (type(classes) is not int or classes < 1):
        problems.add(f"{at}/{CLASSIFICATION}", "must be the number of classes wanted, a whole number from 1")
        classes = None
    return RequestedOutput(flag(parameters, "binary_data", at, problems), classes)


def check(parameters: Mapping[str, Any], at: str, problems: Problems) -> None:
    """Notes what a request's own parameters ask for in vain."""
    no_shared_memory(parameters, at, problems)
    if CLASSIFICATION in parameters:
        problems.add(f"{at}/{CLASSIFICATION}", "belongs in the parameters of an output")
    for name in STATEFUL:
        if parameters.get(name) not in NOT_ASKED:
            problems.add(f"{at}/{name}", "nothing is kept from one request to the next: send whole sequences")


def no_shared_memory(parameters: Mapping[str, Any], at: str, problems: Problems) -> None:
    """Notes that a tensor is meant to lie in memory that client and server share, if it is."""
    for name in SHARED_MEMORY:
        if name in parameters:
            problems.add(f"{at}/{name}", "no memory is shared with clients: elements travel in the request and answer")
            return


def flag(parameters: Mapping[str, Any], name: str, at: str, problems: Problems) -> bool | None:
    """A parameter that is true or false; None where it is absent, or noted as wrong."""
    if name not in parameters:
        return None
    value = parameters[name]
    if not isinstance(value, bool):
        problems.add(f"{at}/{name}", f"must be true or false, it is {kind(value)}")
        return None
    return value


def classified(probabilities: NDArray[np.float32], classes: int, labels: Sequence[str]) -> NDArray[Any]:
    """The best classes as the classification extension writes them: `SCORE:INDEX:LABEL`, the best first.

    Args:
        probabilities: `[..., classes of the model]`.
        classes: How many are wanted; no more than there are.
        labels: Of the model.

    Returns:
        Their bytes, `[..., classes]`. Of two scores that are equal the lower index comes first.
    """
    best = np.argsort(-probabilities, axis=-1, kind="stable")[..., :classes]
    scores = np.take_along_axis(probabilities, best, axis=-1)
    made = np.empty(best.shape, dtype=object)
    made.ravel()[:] = list(_texts(scores.ravel().tolist(), best.ravel().tolist(), labels))
    return made


def _texts(scores: Sequence[float], indices: Sequence[int], labels: Sequence[str]) -> Iterator[bytes]:
    for score, index in zip(scores, indices, strict=True):
        yield f"{score:f}:{index}:{labels[index]}".encode()
