"""The interface of a protocol: which requests it accepts, how it decodes a body, and how a refusal looks.

Everything that the protocols share, from the arrival of a call to its end, is in `lengthwise.protocols.call`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from starlette.types import Scope

from lengthwise.connections.web_pages import from_page
from lengthwise.decoding.calls import Call
from lengthwise.errors import RequestError, UnsupportedMedia
from lengthwise.protocols.body_deadline import OptionsText
from lengthwise.protocols.turns import Turns
from lengthwise.runtime.answers import Answer
from lengthwise.serving import Serving

# Larger bodies are decoded in a thread, so that the event loop is not blocked for long: the reader in C takes 0.3 ms
# for so many bytes. Under load a thread takes longer than that: some turns of the event loop, of many requests each.
LARGE_BODY_BYTES: Final = 262_144
CAREFUL_BYTES: Final = 4096  # that limit for bodies that need the validating reader, many times slower
TENSORS_BYTES: Final = 32_768  # that limit for tensors, whose JSON is read by Python's own reader
LONGEST_KEY_BYTES: Final = 2048  # of a request that `KnownRequests` remembers
_MOST_KNOWN: Final = 256  # requests that are remembered
JSON: Final = (b"content-type", b"application/json")
OCTETS: Final = b"application/octet-stream"
_FORM: Final = b"application/x-www-form-urlencoded"

Headers: TypeAlias = list[tuple[bytes, bytes]]
Encode: TypeAlias = Callable[[list[Answer]], tuple[bytes, Headers]]
"""Encodes answers as the body and the headers of a 200. It runs in the thread that ran the last batch."""
Decoded: TypeAlias = tuple[Call, Callable[[list[Answer]], Any]]
"""The call of a request, and the function that encodes its answers; over HTTP that is an `Encode`."""


class Received(NamedTuple):
    """A request whose body was read, and inflated where it was compressed."""

    scope: Scope  # entries of ASGI's scope: `query_string`, `path_params`; empty where the protocol needs neither
    headers: dict[bytes, bytes]  # by lower-case name
    body: bytes

    @property
    def query(self) -> bytes:
        """The query of the URL, without the `?`."""
        return self.scope.get("query_string", b"")  # type: ignore[no-any-return]


class KnownRequests(dict[Hashable, Any]):
    """What was parsed from valid requests, by the bytes that all requests of a program have in common (a cache).

    Programs send the same requests again, with other numbers. A transport or a protocol cuts these out: the digits of a
    header block's content length (`http/fast_path.py`), the numbers of tensors in JSON (`tensor_text.py`), the id and
    the raw contents of a message of gRPC (`grpc/codec.py`). The other bytes are the key; what was parsed from them is
    right for the next request with the same ones. Several threads may use it at once.
    """

    def add(self, key: Hashable, size: int, parsed: Any) -> None:
        """Remembers what was parsed for a key of `size` bytes, unless `parsed` is None or the key is too long."""
        if size <= LONGEST_KEY_BYTES and parsed is not None:
            if len(self) >= _MOST_KNOWN:
                self.clear()  # a single operation, because other threads read and add meanwhile
            self[key] = parsed


class InferenceProtocol(ABC):
    """How one protocol checks and decodes its inference calls.

    `large_bodies` are the decoding slots, which all protocols share.
    """

    name: str  # name of its calls in the access log and in traces, such as `POST /predict`
    memory_factor: ClassVar[int] = 1  # how many times its own size a large body takes while it is decoded
    most_fast_bytes: ClassVar[int] = LARGE_BODY_BYTES  # a larger body is not decoded on the event loop

    def __init__(self, serving: Serving, large_bodies: Turns) -> None:
        self.serving = serving
        self.large_bodies = large_bodies

    def check_page(self, headers: dict[bytes, bytes]) -> None:  # noqa: B027 - only browsers have pages
        """Raises `RequestError` for a call by a web page that may not call."""

    def check(self, headers: dict[bytes, bytes]) -> None:  # noqa: B027 - metadata of gRPC decides nothing
        """Raises `RequestError` for a request whose headers show that it is wrong, before its body is read."""

    @abstractmethod
    def read(self, request: Received, *, fast: bool) -> Decoded | None:
        """Decodes a body; returns the call and the encoder of its answers.

        With `fast` it runs on the event loop, for a body of at most `most_fast_bytes`, and returns None if decoding
        would block the loop for too long. Raises `RequestError` if the request is wrong, or its model is not served.
        """

    def options_of(self, request: Received) -> OptionsText:
        """The text in which the options of a request are; its body may be the beginning of one."""
        return OptionsText(document=request.body)


class Endpoint(InferenceProtocol):
    """An `InferenceProtocol` over HTTP, whose answers and refusals have a status, headers and a body."""

    path: ClassVar[re.Pattern[bytes]]
    """Its path in the ordinary form, with the groups `model` and `version`; the router reads other forms."""
    binary_header: ClassVar[bytes] = b""  # the header that a body of raw bytes must have; empty: no such bodies
    takes_form_type: ClassVar[bool] = False
    """Whether a body of JSON may have the media type of a form, which `curl -d` writes and servers ignore."""
    other_types: ClassVar[str] = ""  # the end of the message for a wrong media type: which others it takes

    def check_page(self, headers: dict[bytes, bytes]) -> None:
        """Raises `RequestError` if the call comes from a web page of another site, or under another host name."""
        self.serving.web_pages.check(headers)

    def check(self, headers: dict[bytes, bytes]) -> None:
        """Checks the content type: JSON, none, raw bytes with their header, or that of a form.

        `curl -d` sends JSON with the media type of a form. An endpoint may take that (`takes_form_type`), but not from
        a web page (`Origin` or `Sec-Fetch-Site`): browsers send a form to another site without a preflight. An old
        browser may send neither header; it writes `{` and `"` in a form as `%7B` and `%22`, so its body is refused as
        no JSON.

        Raises:
            UnsupportedMedia: The content type is another one, or the header of raw bytes is missing.
        """
        kind = media_type(headers)
        if (
            kind in (b"application/json", b"")
            or (kind == OCTETS and self.binary_header in headers)
            or (kind == _FORM and self.takes_form_type and not from_page(headers))
        ):
            return
        raise UnsupportedMedia(
            "content-type must be application/json, or none (curl: -H 'content-type: application/json')"
            + self.other_types
        )

    @abstractmethod
    def refuse(self, error: RequestError) -> tuple[int, bytes, Headers]:
        """The status, the body and the headers of a refusal."""


def media_type(headers: dict[bytes, bytes]) -> bytes:
    """The media type of a request's body, in lower case and without parameters; empty if the request does not say."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
