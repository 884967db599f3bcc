"""The deadline that a body names, found before the body is read: it may wait for that, longer than its caller does.

Clients write the options of a request before its sequences, or behind them. So JSON is looked at by its edges:

```
{"model": "m", "timeout_ms": 1000, "sequences": [[[0.5, ...      up to the key and closed there, it is JSON
                        ...]]], "timeout_ms": 1000, "priority": 1}   from the key on and opened there, it is JSON
```

Either shows that the key is one of the object with the options, and not of another, or a part of a text: the deadline
is the one that the reader of the body takes. Where the key stands elsewhere, or twice, the deadline is not known, and
the body waits.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final, NamedTuple

import orjson

from lengthwise.decoding.calls import MAX_TIMEOUT_MS

EDGE_BYTES: Final = 16_384  # of either end of a body
UNKNOWN_SECONDS: Final = 60.0  # that a body waits whose deadline is not known before, unless the default is longer
_NAME: Final = b"timeout"
_MEMBERS: Final = {
    name: re.compile(rb'"%b"[ \t\r\n]*:[ \t\r\n]*(%b)[ \t\r\n]*[,}]' % (name, number))
    for name, number in ((b"timeout_ms", rb"[0-9.eE+-]{1,40}"), (b"timeout", rb"[0-9]{1,18}"))
}
_IN_QUERY: Final = re.compile(rb"(?:^|&)timeout_ms=([0-9]{1,20}(?:\.[0-9]{1,20})?)(?=&|$)")


class OptionsText(NamedTuple):
    """Where a request has its options."""

    query: bytes = b""  # of its URL
    document: bytes = b""  # JSON, or the beginning of it
    within: tuple[str, ...] = ()  # the names of the objects around the options, from the outermost on
    whole: bool = True  # whether the document does not end early


def patience(options: OptionsText, default_seconds: float) -> tuple[float, bool]:
    """How long a body may wait to be read: (seconds from its arrival, whether the caller named them).

    Where the request surely names no timeout, these are `default_seconds`; where it may, at least `UNKNOWN_SECONDS`.
    """
    named = _IN_QUERY.findall(options.query)
    milliseconds = float(named[0]) if len(named) == 1 else _timeout(options, b"timeout_ms")
    document = options.document
    # The parameters of v2 may have `timeout` instead, in microseconds: it counts if there is no `timeout_ms` anywhere.
    if math.isnan(milliseconds) and options.within and options.whole and document.count(_NAME) == 1:
        milliseconds = _timeout(options, b"timeout") / 1000 if b"\\" not in document else math.nan
    if 0 < milliseconds < math.inf:
        return min(milliseconds, MAX_TIMEOUT_MS) / 1000, True
    surely_no_timeout = (
        options.whole
        and not named
        and _NAME not in options.query
        and _NAME not in document
        and b"\\" not in document  # which may hide a letter of the name
    )
    if surely_no_timeout:
        return default_seconds, False
    return max(default_seconds, UNKNOWN_SECONDS), False


def _timeout(options: OptionsText, name: bytes) -> float:
    """The number under a key at an edge of a document; NaN if the key is absent, stands twice, or may be no option."""
    text, within, key = options.document, options.within, b'"%b"' % name
    head, tail = text[:EDGE_BYTES], text[max(EDGE_BYTES, len(text) - EDGE_BYTES) :] if options.whole else b""
    edge = head if key in head else tail
    at = edge.find(key)
    member = _MEMBERS[name].match(edge, at) if head.count(key) + tail.count(key) == 1 else None
    if member is None:
        return math.nan
    if edge is head:
        document = head[:at] + key + b":0}" + b"}" * len(within)
    else:
        start = tail.rfind(b'"%s"' % within[0].encode(), 0, at) if within else at
        if tail[start - 1 : start] not in (b",", b"{", b" ", b"\t", b"\r", b"\n"):  # else it may be within a text
            return math.nan
        document = b"{" + tail[start:]
    try:
        value: Any = orjson.loads(document)
        for outer in within:
            value = value[outer]
        return float(member[1]) if name.decode() in value and isinstance(value, dict) else math.nan
    except (ValueError, TypeError, KeyError):
        return math.nan
