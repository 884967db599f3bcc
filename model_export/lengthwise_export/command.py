"""What the commands of this package share: options declared as fields of a dataclass, and answers as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import click

from lengthwise.command import Command

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class ExporterCommand(Command):
    """A command of the exporter. It imports what it needs when it runs, and says which extra brings what is missing."""

    extras: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("matplotlib", "onnx", "onnx_ir", "onnxscript", "safetensors", "torch"), "export"),
        "onnxruntime": "cpu,export",
    }


def options_of(table: type[DataclassInstance]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for each field of a dataclass.

    Flag, type and default are the field's; its metadata holds `help`, and as `bounds` what click's ranges take.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for field in reversed(dataclasses.fields(table)):
            flag = "--" + field.name.replace("_", "-")
            meaning = field.metadata["help"]
            if isinstance(field.default, bool):
                option = click.option(flag, is_flag=True, help=meaning)
            else:
                ranges = click.IntRange if isinstance(field.default, int) else click.FloatRange
                kind = ranges(**field.metadata["bounds"])
                option = click.option(flag, default=field.default, show_default=True, type=kind, help=meaning)
            command = option(command)
        return command

    return add


def show_json(value: Any) -> None:
    """Prints a value as the answer of `--json`."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
