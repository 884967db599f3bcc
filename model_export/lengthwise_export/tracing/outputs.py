"""Which results of a user's module are the outputs of its graph: the logits, and attention weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lengthwise_export.errors import ExportError
from lengthwise_export.options import DECODED_HINT, ONE_VALUE_HINT

OutputSelector = Callable[[Any], dict[str, Tensor]]
"""A function that takes what a module returns, and returns the outputs of the graph by name, `logits` first."""


def output_selector(output: str | int | None) -> OutputSelector:
    """The function that selects the output of `--output NAME|INDEX` from what a module returns.

    None selects `logits`, or, without an output of that name, the first float32 output of rank 2 or 3.
    """
    return partial(_select_output, output=None if output is None else str(output))


def _select_output(answer: Any, *, output: str | None) -> dict[str, Tensor]:
    """Selects the output as `logits`, and the output `attention [rows, width]` if the module returns one.

    `output` is the name of the output, or its index as text. None is for `logits`, or, without an output of that name,
    for the first float32 output of rank 2 or 3. Logits are `[rows, classes]` or `[rows, width, classes]`, in the order
    of axes that the module uses.

    Raises:
        ExportError: There is no such output, or it has another shape.
    """
    by_name = outputs_by_name(answer)
    if output is None:
        logits_names = (name for name, value in by_name.items() if _can_be_logits(value))
        output = "logits" if "logits" in by_name else next(logits_names, None)
    elif output not in by_name:
        raise ExportError("outputs", f"the module returns no {output!r}, but {_types(by_name)}; name one with --output")
    # Refuse an answer in which no output, or not the one that the user names, can be logits
    outputs = by_name if output is None else {output: by_name[output]}
    if output is None or not _can_be_logits(by_name[output]):
        tensors = [value for value in outputs.values() if isinstance(value, Tensor)]
        has_one_value = any(tensor.dim() == 1 and tensor.is_floating_point() for tensor in tensors)
        refusal = (
            f"none of {_types(outputs)} is" if output is None else f"{_types(outputs)} cannot be the output: it must be"
        )
        has_scores = any(tensor.is_floating_point() for tensor in tensors)
        hint = f"; {ONE_VALUE_HINT}" if has_one_value else "" if has_scores else f"; {DECODED_HINT}"
        raise ExportError("outputs", f"{refusal} float32 [rows, classes] or [rows, width, classes]{hint}")
    logits = by_name[output]
    attention = by_name.get("attention")
    if output == "attention" or not isinstance(attention, Tensor) or attention.dim() != 2:
        return {"logits": logits}
    return {"logits": logits, "attention": attention}


def outputs_by_name(answer: Any) -> dict[str, Any]:
    """The outputs in a module's answer by name; without names, by index as text: `{"0": tensor}`.

    Raises:
        ExportError: The answer is neither a tensor nor a tuple, a list, a mapping or a dataclass.
    """
    if isinstance(answer, Tensor):
        return {"0": answer}
    if isinstance(answer, Mapping):
        return {str(name): value for name, value in answer.items()}
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        return dict(answer._asdict())
    if isinstance(answer, tuple | list):
        return {str(index): value for index, value in enumerate(answer)}
    if is_dataclass(answer) and not isinstance(answer, type):
        return {field.name: getattr(answer, field.name) for field in fields(answer)}
    raise ExportError("outputs", f"the module returns a {type(answer).__name__}: return a tensor, or a tuple or dict")


def _can_be_logits(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dtype == torch.float32 and output.dim() in (2, 3)


def _types(outputs: Mapping[str, Any]) -> str:
    """The outputs as a text for an error, such as `0 (float32, rank 2), loss (a float)`, or `0 to 6 (a list)`."""
    names_by_type: dict[str, list[str]] = {}
    for name, value in outputs.items():
        is_tensor = isinstance(value, Tensor)
        kind = f"{value.dtype}, rank {value.dim()}".removeprefix("torch.") if is_tensor else f"a {type(value).__name__}"
        names_by_type.setdefault(kind, []).append(name)
    return ", ".join(
        f"{' and '.join(names) if len(names) < 3 else f'{names[0]} to {names[-1]}'} ({kind})"
        for kind, names in names_by_type.items()
    )
