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


class KnownRequests:
    """What was read of valid requests, by the bytes that do not vary. Several threads may use it at once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def get(self, key: Hashable) -> Any:
        """What is known of a request; None if it is new."""
        return self._known.get(key)

    def add(self, key: Hashable, size: int, known: Any) -> None:
        """Keeps what was read of a request, whose key has `size` bytes; nothing of one that is None or larger."""
        if size <= LONGEST_KEY_BYTES and known is not None:
            if len(self._known) >= _MOST:
                self._known.clear()  # one step, because threads read and add, too
            self._known[key] = known
