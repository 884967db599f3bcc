"""Reads the sequences of a JSON body, in C (`_fast_json.c`); see `lengthwise.decoding.fast_json`."""

from typing import Any

def locate(body: bytes, key: bytes, /) -> tuple[int, int, bool] | None:
    """Where the array under a key stands, and whether it is all that the object has; None where it is not clear."""

def read(
    body: bytes,
    start: int,
    end: int,
    most_sequences: int,
    features: int,
    vocabulary: int,
    least_steps: int,
    most_steps: int,
    takes_missing: bool,
    in_detail: bool,
    beside: int = ...,
    takes_states: bool = ...,
    inputs: tuple[tuple[str, int, int, int, int], ...] = ...,
    /,
) -> Any:
    """The sequences of `body[start:end]`, or `in_detail` what is wrong with them; None where they are not ordinary."""

def read_flat(body: bytes, start: int, end: int, /) -> tuple[bytes | None, int, int] | None:
    """The array at `start`: float32 if it is flat and of numbers, the place behind it, the number of other entries."""
