"""The text of a sequence's state: it goes out with an answer, and comes in again with the next steps of the sequence.

The text is base64url without padding, of these parts, all numbers little-endian:

| bytes | part |
|---|---|
| 1 | the format, which is 1 |
| 16 | the version that the state is of: `Manifest.state_digest` |
| 8 | the offset: how many steps of the sequence the state has seen |
| `state_bytes` | the values of all states, in the order of the manifest |
| 16 | the tag: the first bytes of the SHA-256 of all before it, or with a key, of the HMAC-SHA-256 |

Without a key the tag protects from accidents only: anybody can compute it. A text has one form, so equal states have
equal texts.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import struct
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from pydantic_core import SchemaValidator, ValidationError, to_json

from lengthwise import files
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.kernels import _kernels
from lengthwise.runtime.manifest import Streaming

log = logging.getLogger("lengthwise.states")

FORMAT: Final = 1
MOST_OFFSET: Final = 2**64 - 1
_HEAD: Final = struct.Struct("<B16sQ")
_TAG_BYTES: Final = 16
# Without the kernels: a decoder of base64 that reads a text of JSON, and other alphabets and paddings, too
_BASE64: Final = SchemaValidator({"type": "bytes"}, config={"val_json_bytes": "base64"})
_OTHER_FORMS: Final = "+/=\\"  # letters of texts that it reads, and that are none of a state's
_PIECE_BYTES: Final = 2047  # for a longer one hashlib releases the interpreter lock, and under load waits for it again
_KEY: Final = re.compile(rb"(?:[0-9a-fA-F]{2}){32,}")
_MOST_KEY_BYTES: Final = 2**20  # of the file


class SequenceState(NamedTuple):
    """What a text says; the values are not checked against a model yet."""

    digest: bytes  # 16 bytes, of the version that it is of
    offset: int  # steps that it has seen
    values: bytes
    plain: bool  # whether the tag is the checksum without a key


class StateKeys:
    """Writes and reads the texts of states, with the keys of a file or without any.

    The file has a key a line, at least 32 bytes as hexadecimal digits. The first one signs, and texts signed with any
    of them are read. With keys, nothing that is not signed is read.

    Raises:
        ConfigurationError: The file cannot be read, or a line has another form.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._keys = () if path is None else _read(path)

    def refresh(self) -> None:
        """Reads the file again; if that fails, it is logged, and the old keys stay."""
        try:
            keys = self._keys if self._path is None else _read(self._path)
        except ConfigurationError as error:
            log.error("the keys of states could not be read again, the old ones stay: %s", error)
            return
        if keys != self._keys:
            self._keys = keys
            log.info("the keys of states were read again: there are %d", len(keys))

    def text(self, digest: bytes, offset: int, values: bytes) -> str:
        """The text of a state: of the version with this digest, after `offset` steps, with these values."""
        content = _HEAD.pack(FORMAT, digest, offset) + values
        tag = _tag(content, self._keys[0] if self._keys else None)
        return _encoded(content + tag)

    def read(self, text: str | bytes) -> SequenceState | None:
        """The state of a text; None if it is none of this format, was changed, or is not signed as it must be."""
        parsed = parse(text)
        if parsed is None:
            return None
        state, content, tag = parsed
        if not self._keys:
            return state if state.plain else None
        # Which of the keys signed it is no secret
        return state if any(hmac.compare_digest(_tag(content, key), tag) for key in self._keys) else None


def unpack(values: bytes, streaming: Streaming) -> np.void | None:
    """The states as one value, a field for each; None if they have another size, or one is not finite."""
    if len(values) != streaming.state_bytes:
        return None
    if not are_finite(streaming.form, values):
        return None
    return np.frombuffer(values, streaming.row)[0]  # type: ignore[no-any-return]  # of a type with fields


def have_seen(values: np.void, streaming: Streaming, offset: int) -> bool:
    """Whether the values of states are those after `offset` steps, as far as a state counts them.

    A graph may compute places and widths from the count: with a forged one it fails, for all rows of a batch.
    """
    return not streaming.counted or all([values[name].tolist() == [offset] for name in streaming.counted])


def parse(text: str | bytes) -> tuple[SequenceState, bytes, bytes] | None:
    """The state of a text, all before its tag, and the tag, which may be wrong; None for a text of another form."""
    raw = _decoded(text)
    if raw is None or len(raw) < _HEAD.size + _TAG_BYTES:
        return None
    content, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
    number, digest, offset = _HEAD.unpack_from(content)
    is_plain = hmac.compare_digest(_tag(content, None), tag)
    return None if number != FORMAT else (SequenceState(digest, offset, content[_HEAD.size :], is_plain), content, tag)


def _decoded_without_kernels(text: str | bytes) -> bytes | None:
    """The bytes of a text in base64url without padding; None for any other text."""
    text = text if isinstance(text, str) else text.decode("latin-1")
    if any([letter in text for letter in _OTHER_FORMS]):
        return None
    try:
        return _BASE64.validate_json(f'"{text}{"=" * (-len(text) % 4)}"')  # type: ignore[no-any-return]
    except ValidationError:
        return None


def _encoded_without_kernels(content: bytes) -> str:
    """The base64url of bytes, without padding."""
    return to_json(content, bytes_mode="base64")[1:-1].rstrip(b"=").decode()


def _are_finite_without_kernels(form: str, values: bytes) -> bool:
    """Whether no number of these bytes is NaN or infinite; `form` is as of `struct`."""
    return bool(np.isfinite(struct.unpack(f"<{form}", values)).all())


_decoded = _decoded_without_kernels if _kernels is None else _kernels.from_base64url
_encoded = _encoded_without_kernels if _kernels is None else _kernels.to_base64url
are_finite = _are_finite_without_kernels if _kernels is None else _kernels.are_finite
"""Whether no number of the values of a state is NaN or infinite: (`Streaming.form`, the values)."""


def _tag(content: bytes, key: bytes | None) -> bytes:
    """The tag of all that is before it."""
    hashing = hashlib.sha256() if key is None else hmac.new(key, digestmod="sha256")
    for start in range(0, len(content), _PIECE_BYTES):
        hashing.update(content[start : start + _PIECE_BYTES])
    return hashing.digest()[:_TAG_BYTES]


def _read(path: Path) -> tuple[bytes, ...]:
    """The keys of a file, in its order.

    Raises:
        ConfigurationError: The file cannot be read, has no key, or a line of another form; the message names the line.
    """
    try:
        lines = [line.strip() for line in files.read(path, _MOST_KEY_BYTES).splitlines()]
    except OSError as error:
        raise ConfigurationError(f"the keys of states {path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if line and not _KEY.fullmatch(line):
            raise ConfigurationError(f"{path}:{number}: a key is at least 32 bytes as hexadecimal digits")
    if not any(lines):
        raise ConfigurationError(f"{path} has no key: one a line, at least 32 bytes as hexadecimal digits")
    return tuple(bytes.fromhex(line.decode()) for line in lines if line)
