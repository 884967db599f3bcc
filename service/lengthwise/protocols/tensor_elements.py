"""The elements of input tensors as arrays: from numbers in JSON, raw bytes, or texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import Problems
from lengthwise.protocols.tensor_specs import (
    ELEMENTS,
)
from lengthwise.protocols.tensor_text import TensorText

_FLOAT32: Final = ELEMENTS["FP32"]


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input tensor of a request, with the name, the datatype and the shape that the request says."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | TensorText | bytes | memoryview  # numbers, flat or nested, None for a missing one; or raw bytes
    pointer: str  # JSON pointer to it, for problems


def elements_of(
    tensor: InputTensor, data: list[Any] | TensorText | bytes | memoryview, problems: Problems
) -> NDArray[Any] | None:
    """The elements of a tensor as an array of its shape, whose datatype and shape are right.

    None if the elements are wrong; the reason is added to `problems`.
    """
    if tensor.datatype == "BYTES":
        return _texts(tensor, data, problems)
    element, count = ELEMENTS[tensor.datatype], math.prod(tensor.shape)
    # Floats that C has read.
    if isinstance(data, TensorText) and data.floats is not None and data.entries == count and element.kind == "f":
        return np.frombuffer(data.floats, _FLOAT32).reshape(tensor.shape)
    # Other numbers of JSON; and raw bytes.
    if isinstance(data, list | TensorText):
        array = _numbers(data, tensor, element)
        if isinstance(array, str):
            problems.add(f"{tensor.pointer}/data", array)
            return None
        return array
    expected = count * element.itemsize
    if len(data) != expected:
        problems.add(tensor.pointer, f"its shape is {expected} bytes, {len(data)} were sent")
        return None
    return as_float32(np.frombuffer(data, dtype=element)).reshape(tensor.shape)


def _texts(
    tensor: InputTensor, data: list[Any] | TensorText | bytes | memoryview, problems: Problems
) -> NDArray[Any] | None:
    """The texts of a tensor of BYTES as an array of its shape; None if they are wrong, which is added to `problems`."""
    count = math.prod(tensor.shape)
    if isinstance(data, list | TensorText):
        texts = _flat(data.parsed() if isinstance(data, TensorText) else data, tensor.shape)
    else:
        texts = _split_texts(bytes(data), count)
    if texts is None or len(texts) != count or not all(isinstance(text, str) for text in texts):
        problems.add(tensor.pointer, f"must be {count} texts, as bytes each after its length as 4 bytes")
        return None
    return np.array(texts, dtype=object).reshape(tensor.shape)


def _split_texts(raw: bytes, count: int) -> list[str] | None:
    """Splits raw elements of BYTES to at most `count` texts; None if they end elsewhere."""
    texts, index = list[str](), 0
    while index < len(raw) and len(texts) < count:
        start = index + 4
        index = start + int.from_bytes(raw[index:start], "little")
        texts.append(raw[start:index].decode("ascii", "replace"))
    return texts if index == len(raw) else None


def _numbers(data: list[Any] | TensorText, tensor: InputTensor, element: np.dtype[Any]) -> NDArray[Any] | str:
    """The elements of a tensor as an array, from its numbers in JSON.

    If they are wrong, it returns what is wrong as a text in place of the array. What C has counted in a text is checked
    first: for a text of another number of entries, or of other entries than numbers, Python parses nothing.
    """
    count, is_float = math.prod(tensor.shape), element.kind == "f"
    wrong_count = "must be {} numbers, flat or nested as the shape says"
    wrong_kind = "must hold numbers, or null where one is missing" if is_float else "must hold whole numbers"
    if isinstance(data, TensorText):
        if data.entries is not None and data.entries != count:
            return wrong_count.format(count)
        if data.entries is not None and data.floats is None:
            return wrong_kind
    flat = _flat(data.parsed() if isinstance(data, TensorText) else data, tensor.shape)
    if flat is None:
        return wrong_count.format(count)
    if not set(map(type, flat)) <= ({int, float, type(None)} if is_float else {int}):
        return wrong_kind
    try:
        array = as_float32(np.array(flat, dtype=np.float64)) if is_float else np.array(flat, dtype=element)
    except OverflowError:
        return f"holds a number beyond {tensor.datatype}"
    return array.reshape(tensor.shape)


def _flat(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """The numbers of a list that is flat, or nested as the shape says, as a flat list; None for any other list."""
    if data and not isinstance(data[0], list):
        return data if len(data) == math.prod(shape) else None
    level: list[Any] = [data]  # all lists of one axis, then of the next
    for size in shape:
        if not all(isinstance(entry, list) and len(entry) == size for entry in level):
            return None
        level = list(chain.from_iterable(level))
    return level


def as_float32(elements: NDArray[Any]) -> NDArray[Any]:
    """Floats rounded to float32; other elements unchanged. A number beyond float32 becomes infinite.

    Infinite steps are refused later; infinite padding is not read.
    """
    if elements.dtype.kind != "f" or elements.dtype == _FLOAT32:
        return elements
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return elements.astype("<f4", copy=False)
