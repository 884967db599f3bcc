"""The options of `check` and `export` that say of a target what cannot be read off it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Final, Literal, get_args

import click

from lengthwise.runtime.manifest import MissingPolicy

Second = Literal["lengths", "mask", "padding-mask", "both"]
"""What a model takes beside the steps."""


HIGHEST_OPSET: Final = 20
"""Past it LSTM and GRU have schemas for which onnxruntime's CUDA provider has no kernel: they would move to the CPU."""

OPSET: Final = 18
"""What the exporter writes without converting anything."""


def _said(help_text: str, kind: Any = str) -> dict[str, Any]:
    return {"help": help_text, "type": kind}


_FILE: Final = click.Path(exists=True, path_type=Path)


@dataclass(frozen=True, slots=True)
class TargetOptions:
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
    channels_first: bool = field(
        default=False, metadata={"help": "Features come before steps: [rows, features, width]."}
    )
    second: Second | None = field(
        default=None,
        metadata=_said(
            "What it takes beside the steps: a mask is true at valid steps, a padding-mask at padding; both: lengths "
            "and a mask.",
            click.Choice(get_args(Second)),
        ),
    )
    output: str | None = field(default=None, metadata=_said("Which of several outputs, by name or by place."))
    missing: MissingPolicy | None = field(
        default=None,
        metadata=_said(
            "What a model of yours does with a missing value (NaN at a valid step); without it: refuse. handled: it "
            "takes NaN itself, and is held to that.",
            click.Choice(["refuse", "handled"]),
        ),
    )


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command these options; it gets them as one argument, `options`."""
    fields = dataclasses.fields(TargetOptions)

    @wraps(command)
    def collected(**given: Any) -> Any:
        said = {each.name: given.pop(each.name) for each in fields}
        if said["labels"] is not None:
            said["labels"] = tuple(label.strip() for label in said["labels"].split(","))
        return command(options=TargetOptions(**said), **given)

    decorated: Callable[..., Any] = collected
    for each in reversed(fields):
        flag = f"--{each.name.replace('_', '-')}"
        if each.default is False:
            option = click.option(flag, is_flag=True, help=each.metadata["help"])
        else:
            option = click.option(flag, type=each.metadata["type"], help=each.metadata["help"])
        decorated = option(decorated)
    return decorated
