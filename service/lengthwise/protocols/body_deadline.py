"""The deadline that a body names, which has to be known before the body is read: it may wait long for its turn.

Clients write the options of a request before its sequences, or after them. So only the two ends of a JSON body are
searched for the key:

```
{"model": "m", "timeout_ms": 1000, "sequences": [[[0.5, ...      at the beginning, cut after the key and closed there
                        ...]]], "timeout_ms": 1000, "priority": 1}       at the end, cut before the key and opened there
```

If the part that is cut out in this way is JSON, the key belongs to the object of the options, and not to another one or
to a text: then its number is the deadline that the reader of the body will find. If the key is elsewhere, or twice in
the ends, the deadline is not known, and the body waits.

A request says where its options are with an `OptionsText`: the query of its URL, its JSON document (`whole` is False
if that is only the beginning of the body), and the keys that lead to the object of the options (`within`).
"""

from __future__ import annotations

import math
import re
from typing import Any, Final, NamedTuple

import orjson

from lengthwise.decoding.calls import MAX_TIMEOUT_MS

EDGE_BYTES: Final = 16_384  # of each end of a body that is searched
UNKNOWN_SECONDS: Final = 60.0  # that a body of unknown deadline waits for its turn, or the default if that is longer
_NAME: Final = b"timeout"
_MEMBERS: Final = {  # a key with its number in JSON, by the key
    name: re.compile(rb'"%b"[ \t\r\n]*:[ \t\r\n]*(%b)[ \t\r\n]*[,}]' % (name, number))
    for name, number in ((b"timeout_ms", rb"[0-9.eE+-]{1,40}"), (b"timeout", rb"[0-9]{1,18}"))
}
_IN_QUERY: Final = re.compile(rb"(?:^|&)timeout_ms=([0-9]{1,20}(?:\.[0-9]{1,20})?)(?=&|$)")


class OptionsText(NamedTuple):
    """Where a request has its options, as text: the query or the JSON document."""

    query: bytes = b""  # of its URL
    document: bytes = b""  # JSON, or the beginning of JSON
    within: tuple[str, ...] = ()  # the keys that lead to the object of the options, such as ("parameters",)
    whole: bool = True  # false if the document is only the beginning


def read_timeout(options: OptionsText, default_seconds: float) -> tuple[float, bool]:
    """The seconds, from its arrival, that a body may wait until it is read, and whether the caller set them.

    Its options are not parsed yet, so their text is searched. The result is:

    - the timeout that the query or the document names, and True;
    - `default_seconds` and False, if neither can name one;
    - the default, but at least `UNKNOWN_SECONDS`, and False, if the document may name one that the search did not find.
    """
    document, query_values = options.document, _IN_QUERY.findall(options.query)
    milliseconds = float(query_values[0]) if len(query_values) == 1 else _timeout(options, b"timeout_ms")
    has_escapes = b"\\" in document  # which may hide letters of a name
    # The parameters of a v2 request may have `timeout`, in microseconds, where they have no `timeout_ms`. So it counts
    # if the whole document is here, and no other name in it can be a timeout's.
    may_have_it = options.within and options.whole and not has_escapes
    if may_have_it and math.isnan(milliseconds) and document.count(_NAME) == 1:
        milliseconds = _timeout(options, b"timeout") / 1000
    if 0 < milliseconds < math.inf:
        return min(milliseconds, MAX_TIMEOUT_MS) / 1000, True
    # Not found: may it be there all the same?
    if _NAME in options.query or _NAME in document or has_escapes or not options.whole:
        return max(default_seconds, UNKNOWN_SECONDS), False
    return default_seconds, False


def _timeout(options: OptionsText, name: bytes) -> float:
    """The number under the key `name` in the options of a document; NaN if it is not sure which number that is.

    Only the first and the last `EDGE_BYTES` are searched. The number counts if the key is there exactly once, and the
    document, cut at the key and closed or opened there, is JSON with the key in the object of the options.
    """
    text, within, key = options.document, options.within, b'"%b"' % name
    head, tail = text[:EDGE_BYTES], text[max(EDGE_BYTES, len(text) - EDGE_BYTES) :] if options.whole else b""
    edge = head if key in head else tail  # the end with the key
    key_start = edge.find(key)
    member = _MEMBERS[name].match(edge, key_start) if head.count(key) + tail.count(key) == 1 else None
    if member is None:
        return math.nan
    # Cut the document at the key: of the beginning, only what is before the key remains; of the end, what follows it.
    if edge is head:
        document = head[:key_start] + key + b":0}" + b"}" * len(within)
    else:
        start = tail.rfind(b'"%s"' % within[0].encode(), 0, key_start) if within else key_start
        if tail[start - 1 : start] not in (b",", b"{", b" ", b"\t", b"\r", b"\n"):  # the key may be within a text
            return math.nan
        document = b"{" + tail[start:]
    # Is the remainder JSON, with the key in the object of the options?
    try:
        value: Any = orjson.loads(document)
        for outer in within:
            value = value[outer]
        return float(member[1]) if name.decode() in value and isinstance(value, dict) else math.nan
    except (ValueError, TypeError, KeyError):
        return math.nan
