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
    /,
) -> Any:
    """The sequences of `body[start:end]`, or `in_detail` what is wrong with them; None where they are not ordinary."""

def read_flat(body: bytes, start: int, end: int, /) -> tuple[bytes, int] | None:
    """The flat array of numbers at `start`, as float32, and the place behind it; None where it is no such array."""

def skip(body: bytes, start: int, end: int, /) -> tuple[int, int, int, bool, bool] | None:
    """The array at `start`: place behind it, items, parts, whether an item is a text or a boolean, whether a list."""
