"""The interface of a protocol: which requests it accepts, how it decodes a body, and how a refusal looks.

Everything that the protocols share, from the arrival of a call to its end, is in `lengthwise.protocols.call`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from starlette.types import Scope

from lengthwise.decoding.calls import Call
from lengthwise.errors import RequestError
from lengthwise.protocols.turns import Turns
from lengthwise.runtime.answers import Answer
from lengthwise.serving import Serving

LARGE_BODY_BYTES: Final = 65_536
"""Larger bodies are decoded in a thread, so that the event loop is not blocked for milliseconds."""
CAREFUL_BYTES: Final = 4096
"""The same limit for bodies that need the validating reader, which is many times slower than the fast one."""
TENSORS_BYTES: Final = 32_768
"""The same limit for tensors: their JSON is read by Python's own reader."""
JSON: Final = (b"content-type", b"application/json")

Headers: TypeAlias = list[tuple[bytes, bytes]]
Encode: TypeAlias = Callable[[list[Answer]], tuple[bytes, Headers]]
"""Writes the body of a 200 and the headers that it needs. It runs in a runner thread."""
Decoded: TypeAlias = tuple[Call, Callable[[list[Answer]], Any]]
"""The call of a request, and the function that encodes its answer in a runner thread; over HTTP an `Encode`."""


class Received(NamedTuple):
    """A request whose body was read, and inflated where it was compressed.

    Attributes:
        scope: ASGI's, with what the path and the query say; empty where the protocol needs neither.
        headers: The headers, by lower-case name.
        body: Its bytes.
    """

    scope: Scope
    headers: dict[bytes, bytes]
    body: bytes


class InferenceProtocol(ABC):
    """How one protocol checks and decodes its inference calls.

    Args:
        serving: Answers the calls.
        large_bodies: The places where large bodies are decoded in threads; shared by all protocols.
    """

    name: str
    """The name of the call for the access log and for traces, such as `POST /predict`."""
    memory_factor: ClassVar[int] = 1
    """How many times its own size a large body takes in memory while it is decoded."""

    def __init__(self, serving: Serving, large_bodies: Turns) -> None:
        self.serving = serving
        self.large_bodies = large_bodies

    def admit(self, headers: dict[bytes, bytes]) -> None:
        """Checks who calls, and what the headers alone show.

        Raises:
            RequestError: See `Keys.check` and `check`.
        """
        if self.serving.keys is not None:
            self.serving.keys.check(headers.get(b"authorization"))
        self.check(headers)

    @abstractmethod
    def check(self, headers: dict[bytes, bytes]) -> None:
        """Rejects a request by its headers alone, before its body is read.

        Raises:
            RequestError: See the protocol.
        """

    @abstractmethod
    def decode(self, request: Received) -> Decoded:
        """Reads a body.

        Raises:
            RequestError: The request is wrong, or its model is not served.
        """

    def decode_quickly(self, request: Received) -> Decoded | None:
        """Reads a body on the event loop; None where that would block the loop for too long.

        Raises:
            RequestError: As `decode` does.
        """
        return self.decode(request) if len(request.body) <= CAREFUL_BYTES else None


class Endpoint(InferenceProtocol):
    """An `InferenceProtocol` over HTTP, whose answers and refusals have headers and a body."""

    path: ClassVar[re.Pattern[bytes]]
    """Its path as an ordinary request writes it, with what it names as groups. A router reads all other ways."""

    def admit(self, headers: dict[bytes, bytes]) -> None:
        """Checks which web page calls, too; see `InferenceProtocol.admit` and `WebPages.check`."""
        self.serving.web_pages.check(headers)
        super().admit(headers)

    @abstractmethod
    def decode(self, request: Received) -> tuple[Call, Encode]:
        """Decodes a body; see `InferenceProtocol.decode`."""

    @abstractmethod
    def refuse(self, error: RequestError) -> tuple[int, bytes, Headers]:
        """Status, body and headers of a refusal."""


def media_type(headers: dict[bytes, bytes]) -> bytes:
    """The media type of a request's body, in lower case and without parameters; empty where none is given."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
