"""The plainest body: one sequence of plain numbers, and nothing else. Most bodies are.

Its skeleton (see `service.wire`) is known from its size alone, so one comparison says that the body is a sequence of so
many steps, and of what it holds only the numbers are left to read.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.calls import Call, Described, Item
from service.strict import FLOAT32_MAX, Form

M = TypeVar("M", bound=Described)

NUMERIC: Final = b"0123456789+-.eE \t\r\n"
"""What numbers are made of, and white space: deleted from a body, they leave its skeleton."""
_LONGEST: Final = 65_536
"""Bytes of a skeleton that is compared here: the last ones compared with are kept, whatever sizes a caller makes up."""


def length_of(skeleton: bytes, root: str, features: int | None) -> int:
    """The steps of the one sequence that a body of this skeleton holds under a field; 0 where it is another or large.

    Args:
        skeleton: Of the body.
        root: The field that has the sequences.
        features: Numbers a step, each step an array; None where a step is a bare number.
    """
    if len(skeleton) > _LONGEST:
        return 0
    per_step = 1 if features is None else features + 2
    # A comma follows every step but the last one.
    length, rest = divmod(len(skeleton) - len(_whole(root, features, 0)) + 1, per_step)
    return length if length > 0 and not rest and skeleton == _whole(root, features, length) else 0


def read(body: bytes, skeleton: bytes, model: M, parser: Any, form: Form) -> Call[M] | None:
    """The call that a body of one sequence makes; None where it is another or a careful look is needed.

    Args:
        body: As sent.
        skeleton: What is left of it without what `NUMERIC` holds.
        model: The default one.
        parser: simdjson's; whatever it made before is gone.
        form: How the body is laid out.

    Raises:
        LookupError, RuntimeError, ValueError: It is another body after all, or not JSON.
    """
    manifest = model.manifest
    wants = manifest.input
    length = length_of(skeleton, form.root, wants.features)
    if not length and wants.features == 1:
        length = length_of(skeleton, form.root, None)
    if not 0 < length <= manifest.max_length:
        return None
    array = parser.parse(body)[form.root]
    if wants.features is None:
        tokens: NDArray[np.int64] = np.frombuffer(array.as_buffer(of_type="i"), dtype=np.int64)
        if len(tokens) != length or tokens.min() < 0 or tokens.max() >= (wants.vocabulary or 1):
            return None
        return Call(model, (Item(tokens, length),), pointer=form.pointer)
    wide: NDArray[np.float64] = np.frombuffer(array.as_buffer(of_type="d"), dtype=np.float64)
    if len(wide) != length * wants.features:  # an empty array looks like one with a bare number
        return None
    # Of so few numbers argmin and argmax find the extremes in a third of the time that minimum and maximum take.
    if not (wide[wide.argmin()] >= -FLOAT32_MAX and wide[wide.argmax()] <= FLOAT32_MAX):
        return None
    return Call(model, (Item(wide.astype(np.float32).reshape(length, -1), length),), pointer=form.pointer)


@cache
def opening(root: str) -> bytes:
    """What is left of the field that has the sequences, up to their array."""
    return b'"' + root.encode().translate(None, NUMERIC) + b'":['


def sequence(features: int | None, length: int) -> bytes:
    """What is left of a sequence: each step an array of so many numbers, or a bare number where that is None."""
    step = b"" if features is None else b"[" + b"," * (features - 1) + b"]"
    return b"[" + b",".join([step] * length) + b"]"


@lru_cache(maxsize=512)
def _whole(root: str, features: int | None, length: int) -> bytes:
    """The skeleton of a body of one sequence."""
    return b"{" + opening(root) + sequence(features, length) + b"]}"
