"""The `parameters` of a request of the Open Inference Protocol.

An unknown parameter is ignored, as the protocol requires. A parameter for a feature that this server does not have,
such as shared memory or a sequence over many requests, is an error, because the answer would not be what the client
expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from lengthwise.decoding.calls import Problems
from lengthwise.decoding.json_text import kind

CLASSIFICATION: Final = "classification"
SHARED_MEMORY: Final = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
STATEFUL: Final = ("sequence_id", "sequence_start", "sequence_end")
UNUSED: Final = (None, False, 0, "")  # values of parameters that a client sends but does not use
_SUPPORTED: Final = (CLASSIFICATION, "binary_data", "binary_data_output", "priority", "timeout", "timeout_ms")
KNOWN: Final = frozenset((*_SUPPORTED, *SHARED_MEMORY, *STATEFUL))  # all others are ignored


class OutputRequest(NamedTuple):
    """How a request asks for one output."""

    name: str
    binary: bool | None = None  # whether it is sent as raw bytes; None if the request does not say
    classes: int | None = None  # how many best classes to send in place of the numbers; None: the numbers


def output(name: str, parameters: Mapping[str, Any], at: str, problems: Problems) -> OutputRequest:
    """How a request asks for the output `name`; `at` is the JSON pointer of the parameters, for problems."""
    no_shared_memory(parameters, at, problems)
    classes = parameters.get(CLASSIFICATION)
    if CLASSIFICATION in parameters and (type(classes) is not int or classes < 1):
        problems.add(f"{at}/{CLASSIFICATION}", "must be the number of classes wanted, a whole number from 1")
        classes = None
    return OutputRequest(name, flag(parameters, "binary_data", at, problems), classes)


def check(parameters: Mapping[str, Any], at: str, problems: Problems) -> None:
    """Adds a problem for each parameter of a request (not of a tensor) that this server cannot fulfil."""
    no_shared_memory(parameters, at, problems)
    if CLASSIFICATION in parameters:
        problems.add(f"{at}/{CLASSIFICATION}", "belongs in the parameters of an output")
    for name in STATEFUL:
        if parameters.get(name) not in UNUSED:
            problems.add(f"{at}/{name}", "nothing is kept from one request to the next: send whole sequences")


def no_shared_memory(parameters: Mapping[str, Any], at: str, problems: Problems) -> None:
    """Adds a problem if a tensor would be in shared memory of client and server."""
    for name in SHARED_MEMORY:
        if name in parameters:
            problems.add(f"{at}/{name}", "no memory is shared with clients: elements travel in the request and answer")
            return


def flag(parameters: Mapping[str, Any], name: str, at: str, problems: Problems) -> bool | None:
    """The value of a boolean parameter; None if it is absent, or if it is wrong, which is added to `problems`."""
    value = parameters.get(name)
    if isinstance(value, bool):
        return value
    if name in parameters:
        problems.add(f"{at}/{name}", f"must be true or false, got {kind(value)}")
    return None
