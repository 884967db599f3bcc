"""What is remembered of requests that were read: programs send the same ones again, but for a few bytes.

A transport or a protocol takes these bytes out of a request: the digits of a header block's content length
(`http/fast_path.py`), the numbers of tensors in JSON (`tensor_text.py`), the id and the raw contents of a message of
gRPC (`grpc/codec.py`). All the others are the key, and what was made of them serves the next request that has them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

LONGEST_KEY_BYTES: Final = 2048
_MOST: Final = 256


class KnownRequests(dict[Hashable, Any]):
    """What was read of valid requests, by the bytes that do not vary. Several threads may use it at once."""

    def add(self, key: Hashable, size: int, parsed: Any) -> None:
        """Remembers what was read of a request, whose key has `size` bytes; nothing if it is None or a key is long."""
        if size <= LONGEST_KEY_BYTES and parsed is not None:
            if len(self) >= _MOST:
                self.clear()  # one step, because threads read and add, too
            self[key] = parsed
