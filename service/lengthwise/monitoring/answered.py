"""An answered call, as the consumers of the monitoring get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lengthwise.decoding.calls import Item
from lengthwise.repository.served import ServedModel
from lengthwise.runtime.answers import Answer


class AnsweredCall(NamedTuple):
    """One call with its answers."""

    model: ServedModel
    items: Sequence[Item]
    answers: Sequence[Answer]
    request_id: str
    arrived: float  # in seconds since the epoch
    queue_seconds: float
    inference_seconds: float
    held_bytes: int  # memory of its sequences
