"""What the inputs and outputs of a user's graph may be: the readings that fit their types, axes and names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import onnx

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GraphNames
from lengthwise_export.errors import UncheckableError
from lengthwise_export.options import ONE_VALUE_HINT, Second

_ELEMENTS: Final[dict[int, str]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
}


@dataclass(frozen=True, slots=True)
class InputHints:
    """The user's options about a graph's inputs; None for everything that should be inferred."""

    values: str | None = None
    lengths: str | None = None
    mask: str | None = None
    time_first: bool = False
    channels_first: bool = False
    second: Second | None = None
    output: str | None = None
    features: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True, slots=True)
class GraphValue:
    """An input or output: its name, its element type and its axes (each a size, a name, or None if unknown)."""

    name: str
    element: str
    axes: tuple[int | str | None, ...]

    @property
    def rank(self) -> int:
        """The number of its axes."""
        return len(self.axes)

    @property
    def can_be_steps(self) -> bool:
        """Whether it has the type and the axes of sequences."""
        return (self.element, self.rank) in (("float32", 3), ("float32", 2), ("int64", 2), ("int32", 2))

    @property
    def is_raw(self) -> bool:
        """Whether it may be steps of one feature without an axis of features."""
        return (self.element, self.rank) == ("float32", 2)

    @classmethod
    def of(cls, proto: onnx.ValueInfoProto) -> GraphValue:
        """The input or output that a graph declares."""
        tensor = proto.type.tensor_type
        axes = tuple(
            axis.dim_value if axis.HasField("dim_value") else (axis.dim_param or None) for axis in tensor.shape.dim
        )
        return cls(proto.name, _ELEMENTS.get(tensor.elem_type, f"type {tensor.elem_type}"), axes)

    def __str__(self) -> str:
        """Such as `x (float32['rows', 'width', 8])`."""
        return f"{self.name} ({self.element}{list(self.axes)})"


def listed(values: list[GraphValue]) -> str:
    """The values in words, for an error."""
    return ", ".join(map(str, values))


def logits_of(outputs: list[GraphValue], output: str | None) -> GraphValue:
    """The output that is the answer: by the option `--output`, by its name, or the first of a fitting type."""
    by_name = {value.name: value for value in outputs}
    if output is not None:
        name = outputs[int(output)].name if output.isdigit() and int(output) < len(outputs) else output
        if name not in by_name:
            raise ConfigurationError(f"--output {output}: the graph's outputs are {listed(outputs)}")
    else:
        name = "logits"
    if name in by_name:
        if (by_name[name].element, by_name[name].rank) == ("float32", 1):
            raise UncheckableError(f"the output {by_name[name]} has no classes: {ONE_VALUE_HINT}")
        return by_name[name]
    fitting = [value for value in outputs if value.element.startswith("float") and value.rank in (2, 3)]
    fitting = [value for value in fitting if value.element == "float32"] or fitting
    if not fitting:
        hint = f"; {ONE_VALUE_HINT}" if any((value.element, value.rank) == ("float32", 1) for value in outputs) else ""
        raise UncheckableError(
            f"none of the outputs {listed(outputs)} is [rows, classes] or [rows, width, classes]{hint}"
        )
    return fitting[0]


def candidates(
    inputs: list[GraphValue], logits: GraphValue, hints: InputHints, new_lengths: str | None
) -> Iterator[GraphNames]:
    """All readings that fit the ranks, the element types and the user's options.

    If the steps are the only input, the lengths get the name `new_lengths`.
    """
    by_name = {value.name: value for value in inputs}
    for order in itertools.permutations(by_name):
        steps, *rest = (by_name[name] for name in order)
        if (hints.values or steps.name) != steps.name or not steps.can_be_steps:
            continue
        lengths, mask = [value for value in rest if value.rank == 1], [value for value in rest if value.rank == 2]
        if len(lengths) > 1 or len(mask) > 1 or len(lengths) + len(mask) != len(rest):
            continue
        if not _fits(lengths, ("int32", "int64"), hints.lengths):
            continue
        if not _fits(mask, ("bool", "int32", "int64", "float32"), hints.mask):
            continue
        if steps.rank == 2 and mask and steps.is_raw and mask[0].is_raw and "mask" in steps.name.lower():
            continue
        for time_first, channels_first in _orders(steps, hints):
            yield GraphNames(
                sequences=steps.name,
                lengths=lengths[0].name if lengths else None if rest else new_lengths,
                lengths_type="int64" if lengths and lengths[0].element == "int64" else "int32",
                mask=mask[0].name if mask else None,
                mask_type=mask[0].element if mask else "bool",
                mask_marks="padding" if mask and hints.second == "padding-mask" else "valid",
                time_first=time_first,
                channels_first=channels_first,
                features_axis=not steps.is_raw,
                logits=logits.name,
            )


def _fits(values: list[GraphValue], elements: tuple[str, ...], wanted: str | None) -> bool:
    return all(value.element in elements for value in values) and wanted in (None, *(value.name for value in values))


def _orders(steps: GraphValue, hints: InputHints) -> tuple[tuple[bool, bool], ...]:
    """The orders of the steps' axes to try, as pairs (time_first, channels_first)."""
    if hints.time_first:
        return ((True, False),)
    if hints.channels_first:
        return ((False, steps.rank == 3),)
    if steps.rank == 3 and isinstance(steps.axes[1], int) and not isinstance(steps.axes[2], int):
        return ((False, True),)  # the axis of fixed size holds the features
    return ((False, False), (True, False))


def agrees(names: GraphNames, inputs: list[GraphValue], logits: GraphValue) -> bool:
    """Whether axes with the same name have the same meaning in this reading."""
    by_name = {value.name: value for value in inputs}
    steps = by_name[names.sequences]
    rows, width = (steps.axes[axis] for axis in names.open_axes)
    if isinstance(rows, str) and rows == width:
        return True
    known_rows = [by_name[names.lengths].axes[0]] if names.lengths in by_name else []
    if logits.rank == 2:
        known_rows.append(logits.axes[0])
    # If the rows have the name of the steps' width axis, the reading is wrong. Another name says nothing.
    return not any(isinstance(axis, str) and axis == width for axis in known_rows)
