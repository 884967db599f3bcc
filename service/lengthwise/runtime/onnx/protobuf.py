"""Messages of protocol buffers, read and written by the numbers of their fields.

Fields may be in any order, and a message that occurs twice has the fields of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

Content: TypeAlias = memoryview | bytes | int
"""The content of a field: a text, a number of four or eight bytes or a message; or an integer."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES: Final = {_FIXED32: 4, _FIXED64: 8}


def fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message, each as its number and its content; `ValueError` if it is none."""
    place, end = 0, len(message)
    while place < end:
        tag, place = varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, place = varint(message, place)
            yield number, value
            continue
        if kind == _BYTES:
            size, place = varint(message, place)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise ValueError("it is no message of protocol buffers that ONNX knows")
        if size > end - place:
            raise ValueError("it is cut off")
        yield number, message[place : place + size]
        place += size


def messages(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """As `fields`, without those that are integers."""
    return ((number, value) for number, value in fields(message) if isinstance(value, memoryview))


def varint(message: memoryview, place: int) -> tuple[int, int]:
    """The varint at a position, and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("it is cut off")
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise ValueError("it has a number of more than ten bytes")


def text(value: memoryview) -> str:
    """The content of a field as text."""
    return bytes(value).decode(errors="replace")


def signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def integers(value: memoryview | int) -> list[int]:
    """A repeated int64 field: one integer, or several in one piece."""
    if isinstance(value, int):
        return [signed(value)]
    found, place = [], 0
    while place < len(value):
        each, place = varint(value, place)
        found.append(signed(each))
    return found


def written(content: Iterable[tuple[int, Content]]) -> bytes:
    """The message of these fields."""
    return b"".join(_parts(content))


def _parts(content: Iterable[tuple[int, Content]]) -> Iterator[bytes | memoryview]:
    for number, value in content:
        if isinstance(value, int):
            yield _varint(number << 3 | _VARINT) + _varint(value % 2**64)
        else:
            yield _varint(number << 3 | _BYTES) + _varint(len(value))
            yield value


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
