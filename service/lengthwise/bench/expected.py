"""Whether answers under load are right: the same sequence has the same probabilities, bit for bit, as alone.

Each sequence was sent once in a request of its own while nothing else ran. Under load an answer is compared with that:
first as bytes, which costs next to nothing, and number by number only where the bytes are not those accepted before.
JSON carries a float32 in enough digits to tell it from its neighbours, so equal numbers are equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from lengthwise.errors import ConfigurationError

Scores = list[Any]
"""The probabilities of one sequence: a list of numbers, or of a per-step model a list of lists."""


def scores(body: bytes) -> list[Scores]:
    """The probabilities in the body of an answer, one entry a sequence.

    Raises:
        ConfigurationError: The body is no answer of `POST /predict`.
    """
    try:
        return [prediction["probabilities"] for prediction in orjson.loads(body)["predictions"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigurationError(f"an answer of the server holds no predictions: {body[:80]!r}") from error


def whole(body: bytes) -> list[Any]:
    """The body of a binary answer, which is probabilities and nothing else, as the one entry of a list."""
    return [body]


class Expected:
    """What each request's answer has to be.

    Args:
        alone: Bodies of the answers to each sequence in a request of its own, in order.
        per_request: How many sequences each request under load holds, in the same order.
        read: What of a body is compared: `scores`, or `whole`.

    Raises:
        ConfigurationError: A body is no answer of `POST /predict`.
    """

    def __init__(
        self, alone: Sequence[bytes], per_request: int = 1, *, read: Callable[[bytes], list[Any]] = scores
    ) -> None:
        self._read = read
        single = [read(body)[0] for body in alone]
        self._alone = [single[first : first + per_request] for first in range(0, len(single), per_request)]
        self._accepted: list[bytes | None] = [None] * len(self._alone)

    def is_right(self, place: int, body: bytes) -> bool:
        """Whether the answer to request number `place` is what its sequences got alone."""
        if body == self._accepted[place]:
            return True
        try:
            found = self._read(body)
        except ConfigurationError:
            return False
        if found != self._alone[place]:
            return False
        self._accepted[place] = body
        return True
