"""The interface of a protocol: which requests it accepts, how it decodes a body, and how a refusal looks.

Everything that the protocols share, from the arrival of a call to its end, is in `lengthwise.protocols.call`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from starlette.types import Scope

from lengthwise.decoding.calls import Call
from lengthwise.errors import RequestError, UnsupportedMedia
from lengthwise.protocols.body_deadline import OptionsText
from lengthwise.protocols.turns import Turns
from lengthwise.runtime.answers import Answer
from lengthwise.serving import Serving

# Larger bodies are decoded in a thread, so that the event loop is not blocked for milliseconds.
LARGE_BODY_BYTES: Final = 65_536
CAREFUL_BYTES: Final = 4096  # the same for those that need the validating reader, many times slower than the fast one
TENSORS_BYTES: Final = 32_768  # the same for tensors: their JSON is read by Python's own reader
# Headers and trailers of a request together, or the metadata of a call over gRPC: each costs some hundred bytes of
# objects, however short it is.
MAX_FIELDS: Final = 128
LONGEST_KEY_BYTES: Final = 2048  # of a known request
_MOST_KNOWN: Final = 256
JSON: Final = (b"content-type", b"application/json")
OCTETS: Final = b"application/octet-stream"

Headers: TypeAlias = list[tuple[bytes, bytes]]
Encode: TypeAlias = Callable[[list[Answer]], tuple[bytes, Headers]]
"""Writes the body of a 200 and the headers that it needs. It runs in the thread that ran the last batch."""
Decoded: TypeAlias = tuple[Call, Callable[[list[Answer]], Any]]
"""The call of a request, and what encodes its answer in the thread that ran the last batch; over HTTP an `Encode`."""


class Received(NamedTuple):
    """A request whose body was read, and inflated where it was compressed."""

    scope: Scope  # ASGI's, with what the path and the query say; empty where the protocol needs neither
    headers: dict[bytes, bytes]  # by lower-case name
    body: bytes

    @property
    def query(self) -> bytes:
        """The query of its URL."""
        return self.scope.get("query_string", b"")  # type: ignore[no-any-return]


class KnownRequests(dict[Hashable, Any]):
    """What was read of valid requests, by the bytes that do not vary. Several threads may use it at once.

    Programs send the same requests again, but for a few bytes. A transport or a protocol takes these out: the digits of
    a header block's content length (`http/fast_path.py`), the numbers of tensors in JSON (`tensor_text.py`), the id and
    the raw contents of a message of gRPC (`grpc/codec.py`). All the others are the key, and what was made of them
    serves the next request that has them.
    """

    def add(self, key: Hashable, size: int, parsed: Any) -> None:
        """Stores what was parsed for a key of `size` bytes; nothing if it is None, or the key is too long."""
        if size <= LONGEST_KEY_BYTES and parsed is not None:
            if len(self) >= _MOST_KNOWN:
                self.clear()  # one step, because threads read and add, too
            self[key] = parsed


class InferenceProtocol(ABC):
    """How one protocol checks and decodes its inference calls; `large_bodies` is shared by all protocols."""

    name: str  # of the call, for the access log and for traces, such as `POST /predict`
    memory_factor: ClassVar[int] = 1  # how many times its own size a large body takes while it is decoded
    most_fast_bytes: ClassVar[int] = LARGE_BODY_BYTES  # a larger body is not decoded on the event loop

    def __init__(self, serving: Serving, large_bodies: Turns) -> None:
        self.serving = serving
        self.large_bodies = large_bodies

    def check_page(self, headers: dict[bytes, bytes]) -> None:  # noqa: B027 - only browsers have pages
        """Raises `RequestError` for a call of a web page that may not."""

    def check(self, headers: dict[bytes, bytes]) -> None:  # noqa: B027 - metadata of gRPC decides nothing
        """Raises `RequestError` for a request that its headers show to be wrong, before its body is read."""

    @abstractmethod
    def read(self, request: Received, *, fast: bool) -> Decoded | None:
        """Decodes a body; if `fast`, on the event loop, and None where that would block the loop for too long.

        A `fast` body has at most `most_fast_bytes`.

        Raises `RequestError` if the request is wrong, or its model is not served.
        """

    def options_of(self, request: Received) -> OptionsText:
        """Where a request has its options; its body may be the beginning of one."""
        return OptionsText(document=request.body)


class Endpoint(InferenceProtocol):
    """An `InferenceProtocol` over HTTP, whose answers and refusals have headers and a body."""

    path: ClassVar[re.Pattern[bytes]]
    """Its path as ordinary requests have it, with the model and the version as groups; a router reads other forms."""
    binary_header: ClassVar[bytes] = b""  # the header that a body of raw bytes must have; empty if there are none
    content_types: ClassVar[str] = "content-type must be application/json, or none"  # the refusal of others

    def check_page(self, headers: dict[bytes, bytes]) -> None:
        """See `WebPages.check`."""
        self.serving.web_pages.check(headers)

    def check(self, headers: dict[bytes, bytes]) -> None:
        """Accepts JSON, a body without a content type, and raw bytes with their header.

        Raises:
            UnsupportedMedia: It is another content type, or raw bytes without their header.
        """
        kind = media_type(headers)
        if kind not in (b"application/json", b"") and not (kind == OCTETS and self.binary_header in headers):
            raise UnsupportedMedia(self.content_types)

    @abstractmethod
    def refuse(self, error: RequestError) -> tuple[int, bytes, Headers]:
        """Status, body and headers of a refusal."""


def media_type(headers: dict[bytes, bytes]) -> bytes:
    """The media type of a request's body, in lower case and without parameters; empty where none is given."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
