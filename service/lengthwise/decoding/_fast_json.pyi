"""Reads the sequences of an ordinary JSON body, in C (`_fast_json.c`); see `lengthwise.decoding.fast_json`."""

def locate(body: bytes, key: bytes, /) -> tuple[int, int, bool] | None:
    """Where the array under a key stands, and whether it is all that the object has; None where it is not clear."""

def read_values(
    body: bytes, start: int, end: int, features: int, most_sequences: int, most_steps: int, takes_missing: bool, /
) -> bytes | tuple[bytes, list[int], list[str | bytes | None] | None] | None:
    """The sequences of `body[start:end]`: `[steps, features]` float32, ends, ids; None where it is not ordinary."""

def read_tokens(
    body: bytes, start: int, end: int, vocabulary: int, most_sequences: int, most_steps: int, /
) -> bytes | tuple[bytes, list[int], list[str | bytes | None] | None] | None:
    """The same of token ids: `[steps]` int64."""

def read_flat(body: bytes, start: int, end: int, /) -> tuple[bytes, int] | None:
    """The flat array of numbers at `start`, as float32, and the place behind it; None where it is no such array."""

def scan(
    body: bytes,
    start: int,
    end: int,
    features: int,
    vocabulary: int,
    most_sequences: int,
    takes_missing: bool,
    /,
) -> tuple[int, int, list[tuple[int, int, int, int, int, int, int, list[tuple[int, int, int, int]]]]] | None:
    """What is wrong with the steps in `body[start:end]`: see `decoding.scanned_json`; None where it cannot be told."""

def skip(body: bytes, start: int, end: int, /) -> tuple[int, int, int, bool, bool] | None:
    """The array at `start`: place behind it, items, parts, whether an item is a text or a boolean, whether a list."""
