"""Reads an Arrow IPC stream from an unknown sender: from bytes to record batches that are safe to use.

pyarrow reads it, in C++, within limits, so that a few bytes cannot take much memory or time: bytes of metadata, fields
of a schema (counted here: the same bytes may stand for many), and only column types that are allowed, so no decoder of
another type sees the bytes. No dictionaries, compressed buffers or unaligned bodies. Every batch is validated in full.
The format: https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from lengthwise.errors import InvalidRequest, Problem, RequestError, TooLarge

MEDIA_TYPE: Final = b"application/vnd.apache.arrow.stream"
MAX_METADATA_BYTES: Final = 16_384  # a schema takes much more memory than its bytes; pandas' notes take 2 KB
MAX_FIELDS: Final = 16  # of a schema, with those within lists; four columns of nested lists have ten

_FILE_FORMAT: Final = b"ARROW1"
# Slots of the tables in Arrow's Message.fbs and Schema.fbs.
_HEADER_SLOT: Final = 2
_FIELDS_SLOT: Final = 1
_CHILDREN_SLOT: Final = 5
_COMPRESSION_SLOT: Final = 3
_int32 = struct.Struct("<i").unpack_from
_uint32 = struct.Struct("<I").unpack_from
_uint16 = struct.Struct("<H").unpack_from

_loaded = False


@cache
def installed() -> bool:
    """Whether pyarrow is installed; it is not imported for that."""
    return find_spec("pyarrow") is not None


def loaded() -> bool:
    """Whether `load` has imported pyarrow, which takes some hundred milliseconds."""
    return _loaded


def load() -> Any:
    """Imports pyarrow where it is not imported yet, and returns it."""
    global _loaded
    import pyarrow

    _loaded = True
    return pyarrow


def record_batches(body: bytes, check_columns: Callable[[Any], None], *, most: int) -> list[Any]:
    """Reads the record batches of a stream, validated in full, views of the body; `check_columns` sees the schema.

    Raises:
        InvalidRequest: The body is not an Arrow stream, or has something that this service does not read.
        TooLarge: There are more than `most` record batches.
        RequestError: `check_columns` raised it.
    """
    pa = load()
    if body.startswith(_FILE_FORMAT):
        raise InvalidRequest(
            [Problem("", "the body is an Arrow file; send the stream format (in pyarrow: ipc.new_stream)")]
        )
    source = pa.BufferReader(body)
    schema: Any = None
    batches: list[Any] = []
    try:
        for message in _messages(pa, source):
            if schema is None:
                if message.type != "schema":
                    raise InvalidRequest([Problem("", "an Arrow stream starts with its schema")])
                _check_field_count(message.metadata)
                schema = pa.ipc.read_schema(message)
                check_columns(schema)
                continue
            if len(batches) == most:
                raise TooLarge(f"a stream may have {most} record batches")
            batches.append(_record_batch(pa, message, schema))
        if schema is None:
            raise InvalidRequest([Problem("", "the body is empty, and not an Arrow stream")])
        if source.tell() != len(body):
            raise InvalidRequest([Problem("", f"bytes follow the end of the Arrow stream, at byte {source.tell()}")])
    except RequestError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, EOFError, struct.error) as error:
        lines = str(error).splitlines() or [""]
        raise InvalidRequest(
            [Problem("", f"the body is not an Arrow stream that can be read: {lines[0][:200]}")]
        ) from None
    return batches


def _record_batch(pa: Any, message: Any, schema: Any) -> Any:
    if message.type != "record batch":
        raise InvalidRequest(
            [Problem("", f"the stream has a message of another kind than a record batch: {message.type}")]
        )
    data = memoryview(message.metadata)
    if _slot(data, _header(data), _COMPRESSION_SLOT):
        raise InvalidRequest(
            [
                Problem(
                    "",
                    "the buffers of the stream are compressed; write it without compression, or compress the whole "
                    "body with content-encoding: gzip",
                )
            ]
        )
    batch = pa.ipc.read_record_batch(message, schema)
    batch.validate(full=True)
    return batch


def _messages(pa: Any, source: Any) -> Iterator[Any]:
    reader = pa.ipc.MessageReader.open_stream(source)
    for message in reader:
        if message.metadata.size > MAX_METADATA_BYTES:
            raise TooLarge(f"the schema, or the metadata of a record batch, may have {MAX_METADATA_BYTES} bytes")
        if message.metadata_version != pa.ipc.MetadataVersion.V5:
            raise InvalidRequest(
                [Problem("", "the stream has an old version of the format; version V5 (of Arrow 1.0) is read")]
            )
        part = message.body
        if part is not None and part.size and part.address % 8:
            raise InvalidRequest([Problem("", "the stream is not aligned to 8 bytes")])
        yield message


# The flatbuffers below were verified by pyarrow when it read the message: every offset is within the metadata.


def _check_field_count(metadata: Any) -> None:
    data = memoryview(metadata)
    if _count_fields(data, _header(data), _FIELDS_SLOT, MAX_FIELDS) > MAX_FIELDS:
        raise TooLarge(f"a schema may have {MAX_FIELDS} fields, with those within lists")


def _count_fields(data: memoryview, table: int, slot: int, most: int) -> int:
    """The number of fields below a table; counting stops above `most`."""
    at = _slot(data, table, slot)
    if not at:
        return 0
    vector = _followed(data, at)
    count = int(_uint32(data, vector)[0])
    total = count
    for place in range(min(count, most)):
        if total > most:
            break
        field = _followed(data, vector + 4 + 4 * place)
        total += _count_fields(data, field, _CHILDREN_SLOT, most - total)
    return total


def _header(data: memoryview) -> int:
    return _followed(data, _slot(data, _followed(data, 0), _HEADER_SLOT))


def _slot(data: memoryview, table: int, slot: int) -> int:
    vtable = table - int(_int32(data, table)[0])
    entry = 4 + 2 * slot
    if entry >= _uint16(data, vtable)[0]:
        return 0
    offset = int(_uint16(data, vtable + entry)[0])
    return table + offset if offset else 0


def _followed(data: memoryview, at: int) -> int:
    return at + int(_uint32(data, at)[0])
