"""The inner loop of the hot path, in C (`_fast_json.c`); see `lengthwise.decoding.fast_json`."""

def read_values(body: bytes, root: bytes, features: int, most_steps: int, /) -> bytes | None:
    """The values of a body that is one sequence and nothing else: `[steps, features]` float32; None of any other."""

def read_tokens(body: bytes, root: bytes, vocabulary: int, most_steps: int, /) -> bytes | None:
    """The token ids of a body that is one sequence and nothing else: `[steps]` int64; None of any other."""
