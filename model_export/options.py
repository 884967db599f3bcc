"""The options of `check` and `export` that say of a target what cannot be read off it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click

from model_export.calling import Second


def _said(help_text: str, kind: Any = str) -> dict[str, Any]:
    return {"help": help_text, "type": kind}


_FILE: Final = click.Path(exists=True, path_type=Path)


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller says of a target; None where it is to be read off."""

    checkpoint: Path | None = field(
        default=None,
        metadata=_said(
            "Weights: .safetensors, a folder of `train`, or a state_dict, which is read as data only.", _FILE
        ),
    )
    features: int | None = field(default=None, metadata=_said("How many numbers a step has.", click.IntRange(1)))
    vocabulary: int | None = field(
        default=None, metadata=_said("How many token ids there are, where a step is one.", click.IntRange(1))
    )
    classes: int | None = field(default=None, metadata=_said("How many classes it tells apart.", click.IntRange(1)))
    labels: tuple[str, ...] | None = field(
        default=None, metadata=_said("The classes' names, in order, with commas between.")
    )
    values: str | None = field(default=None, metadata=_said("ONNX: the name of the input that holds the steps."))
    lengths: str | None = field(default=None, metadata=_said("ONNX: the name of the input that holds the lengths."))
    mask: str | None = field(default=None, metadata=_said("ONNX: the name of the input that holds the mask."))
    time_first: bool = field(default=False, metadata={"help": "Steps come before rows: [width, rows, features]."})
    second: Second | None = field(
        default=None,
        metadata=_said(
            "What a torch module's second argument is; a mask is true at valid steps.",
            click.Choice(["lengths", "mask"]),
        ),
    )
    output: str | None = field(default=None, metadata=_said("Which of several outputs, by name or by place."))


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command these options; it gets them as one argument, `options`."""
    fields = dataclasses.fields(Options)

    @wraps(command)
    def collected(**given: Any) -> Any:
        said = {each.name: given.pop(each.name) for each in fields}
        if said["labels"] is not None:
            said["labels"] = tuple(label.strip() for label in said["labels"].split(","))
        return command(options=Options(**said), **given)

    decorated: Callable[..., Any] = collected
    for each in reversed(fields):
        flag = f"--{each.name.replace('_', '-')}"
        if each.default is False:
            option = click.option(flag, is_flag=True, help=each.metadata["help"])
        else:
            option = click.option(flag, type=each.metadata["type"], help=each.metadata["help"])
        decorated = option(decorated)
    return decorated
