"""Whether answers under load are right: a sequence's probabilities must have the same bits batched and unbatched.

An answer is compared with that of a request of its own, as bytes, and by numbers where it differs from those accepted
before: JSON has enough digits to tell a float32 from the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from lengthwise.errors import ConfigurationError

Probabilities = list[Any]  # of one sequence: numbers, or lists of them if per-step


def scores(body: bytes) -> list[Probabilities]:
    """The probabilities in the body of an answer, one entry a sequence."""
    try:
        return [prediction["probabilities"] for prediction in orjson.loads(body)["predictions"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigurationError(f"an answer of the server holds no predictions: {body[:80]!r}") from error


def whole(body: bytes) -> list[Any]:
    """The body of a binary answer, which holds only probabilities, as the one entry of a list."""
    return [body]


class Expected:
    """The expected answer to each request: `per_request` unbatched answers in order, of which `read` is compared."""

    def __init__(
        self, unbatched: Sequence[bytes], per_request: int = 1, *, read: Callable[[bytes], list[Any]] = scores
    ) -> None:
        self._read = read
        single = [read(body)[0] for body in unbatched]
        self._unbatched = [single[first : first + per_request] for first in range(0, len(single), per_request)]
        self._accepted: list[bytes | None] = [None] * len(self._unbatched)

    def is_right(self, place: int, body: bytes) -> bool:
        """Whether the answer to request number `place` equals the unbatched answers of its sequences."""
        if body == self._accepted[place]:
            return True
        try:
            answer = self._read(body)
        except ConfigurationError:
            return False
        if answer != self._unbatched[place]:
            return False
        self._accepted[place] = body
        return True
