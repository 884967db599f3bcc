"""Selects the graph's outputs from the result of a module: `logits`, and `attention` if there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lengthwise_export.errors import ExportError
from lengthwise_export.options import ONE_VALUE_HINT

OutputSelector = Callable[[Any], dict[str, Tensor]]
"""Maps the result of a module to the graph's outputs by name, `logits` first."""


def output_selector(output: str | None) -> OutputSelector:
    """The selector for `--output NAME|INDEX`; by default `logits`, otherwise the first float output of rank 2 or 3."""
    return partial(_select_output, output=output)


def _select_output(answer: Any, *, output: str | None) -> dict[str, Tensor]:
    """Picks `logits` `[rows, classes]` or `[rows, width, classes]`, and an output named `attention` `[rows, width]`."""
    named = _named(answer)
    if output is None:
        fitting = (name for name, value in named.items() if _can_be_logits(value))
        output = "logits" if "logits" in named else next(fitting, None)
        if output is None:
            raise ExportError(
                "outputs",
                f"none of {_types(named)} is float32 [rows, classes] or [rows, width, classes]"
                f"{_hint_for_one_value(list(named.values()))}",
            )
    if output not in named:
        raise ExportError("outputs", f"the module returns no {output!r}, but {_types(named)}; name one with --output")
    logits = named[output]
    if not _can_be_logits(logits):
        raise ExportError(
            "outputs",
            f"{_types({output: logits})} cannot be the output: it must be float32 [rows, classes] or "
            f"[rows, width, classes]{_hint_for_one_value([logits])}",
        )
    attention = named.get("attention")
    if output == "attention" or not isinstance(attention, Tensor) or attention.dim() != 2:
        return {"logits": logits}
    return {"logits": logits, "attention": attention}


def _named(answer: Any) -> dict[str, Any]:
    """A module's outputs by name, or by index if they have no names."""
    if isinstance(answer, Tensor):
        return {"0": answer}
    if isinstance(answer, Mapping):
        return {str(name): value for name, value in answer.items()}
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        return dict(answer._asdict())
    if isinstance(answer, tuple | list):
        return {str(place): value for place, value in enumerate(answer)}
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    raise ExportError("outputs", f"the module returns a {type(answer).__name__}: return a tensor, or a tuple or dict")


def _can_be_logits(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() in (2, 3)


def _hint_for_one_value(values: Sequence[Any]) -> str:
    """What to return instead of one value for each row; empty if no output may be that."""
    if not any(isinstance(value, Tensor) and value.dim() == 1 and value.is_floating_point() for value in values):
        return ""
    return f"; {ONE_VALUE_HINT}"


def _types(named: Mapping[str, Any]) -> str:
    """The names of outputs with their types, for an error."""
    return ", ".join(
        f"{name} ({str(value.dtype).removeprefix('torch.')}, rank {value.dim()})"
        if isinstance(value, Tensor)
        else f"{name} (a {type(value).__name__})"
        for name, value in named.items()
    )
