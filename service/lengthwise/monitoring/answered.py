"""An answered call, as the consumers of the monitoring get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lengthwise.decoding.calls import Item
from lengthwise.repository.served import ServedModel
from lengthwise.runtime.answers import Answer


class AnsweredCall(NamedTuple):
    """One call with its answers.

    Attributes:
        model: The model that answered.
        items: The sequences as sent, in request order.
        answers: The answer of each.
        request_id: The id of the call.
        arrived: When the call arrived, in seconds since the epoch.
        queue_seconds: How long its sequences waited.
        inference_seconds: How long they ran.
        held_bytes: Memory that its sequences hold.
    """

    model: ServedModel
    items: Sequence[Item]
    answers: Sequence[Answer]
    request_id: str
    arrived: float
    queue_seconds: float
    inference_seconds: float
    held_bytes: int
