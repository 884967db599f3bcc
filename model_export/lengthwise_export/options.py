"""The options of `check` and `export` that describe a target."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Final, Literal, get_args

import click

from lengthwise.runtime.manifest import MissingPolicy

Second = Literal["lengths", "mask", "padding-mask", "both", "none"]
"""What a model takes besides the steps."""


HIGHEST_OPSET: Final = 20
"""From the next opset on, onnxruntime's CUDA provider has no kernels for LSTM and GRU and runs them on the CPU."""

OPSET: Final = 18
"""The opset that torch's exporter writes without conversion."""


ONE_VALUE_HINT: Final = (
    "one value for each row, [rows], needs an axis for the classes: return [rows, 1] (output.unsqueeze(-1)) and export "
    "with --multi-label, or return one value for each of the two classes"
)
"""What to do with a model that gives one number for each sequence, as for a yes/no label."""


def _option(help_text: str, kind: Any = str) -> dict[str, Any]:
    return {"help": help_text, "type": kind}


_FILE: Final = click.Path(exists=True, path_type=Path)


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """The user's description of a target; None for everything that should be inferred."""

    checkpoint: Path | None = field(
        default=None,
        metadata=_option(
            "Weights: .safetensors, a folder of `train`, or a state_dict, which is loaded without running code.", _FILE
        ),
    )
    features: int | None = field(default=None, metadata=_option("Number of values of a step.", click.IntRange(1)))
    vocabulary: int | None = field(
        default=None, metadata=_option("Number of token ids, if a step is a token id.", click.IntRange(1))
    )
    classes: int | None = field(default=None, metadata=_option("Number of classes.", click.IntRange(1)))
    labels: tuple[str, ...] | None = field(
        default=None,
        metadata=_option(
            "Names of the classes in the order of the outputs, with commas between; one that has a comma in quotes."
        ),
    )
    values: str | None = field(default=None, metadata=_option("ONNX: the name of the input that holds the steps."))
    lengths: str | None = field(default=None, metadata=_option("ONNX: the name of the input that holds the lengths."))
    mask: str | None = field(default=None, metadata=_option("ONNX: the name of the input that holds the mask."))
    time_first: bool = field(default=False, metadata={"help": "Steps come before rows: [width, rows, features]."})
    channels_first: bool = field(
        default=False, metadata={"help": "Features come before steps: [rows, features, width]."}
    )
    second: Second | None = field(
        default=None,
        metadata=_option(
            "Its inputs besides the steps: a mask is true at valid steps, a padding-mask at padding; both means "
            "lengths and a mask; none means the steps alone, for a model that is to be mended.",
            click.Choice(get_args(Second)),
        ),
    )
    output: str | None = field(default=None, metadata=_option("Which of several outputs, by name or by index."))
    missing: MissingPolicy | None = field(
        default=None,
        metadata=_option(
            "What your model does with a missing value (NaN at a valid step). Default: refuse. handled: the model "
            "accepts NaN; this is verified.",
            click.Choice(["refuse", "handled"]),
        ),
    )


def _labels(text: str) -> tuple[str, ...]:
    """The labels of a list with commas; one that holds a comma stands in double quotes."""
    return tuple(label.strip() for label in next(csv.reader([text], skipinitialspace=True), []))


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds these options to a command, which receives them as one argument `options`."""
    fields = dataclasses.fields(TargetOptions)

    @wraps(command)
    def collected(**given: Any) -> Any:
        values = {each.name: given.pop(each.name) for each in fields}
        if values["labels"] is not None:
            values["labels"] = _labels(values["labels"])
        return command(options=TargetOptions(**values), **given)

    decorated: Callable[..., Any] = collected
    for each in reversed(fields):
        flag = f"--{each.name.replace('_', '-')}"
        if each.default is False:
            option = click.option(flag, is_flag=True, help=each.metadata["help"])
        else:
            option = click.option(flag, type=each.metadata["type"], help=each.metadata["help"])
        decorated = option(decorated)
    return decorated
