"""Helpers for the commands of this package: options declared as dataclass fields, and JSON output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def options_of(table: type[DataclassInstance]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds an option to a command for each field of a dataclass.

    Name, type and default come from the field; its metadata holds `help`, and in `bounds` the arguments of click's
    range types. An option whose metadata says `recipe` is None if it is not given. A switch that is on by default
    becomes an option `--no-NAME`.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for field in reversed(dataclasses.fields(table)):
            flag = "--" + field.name.replace("_", "-")
            meaning = field.metadata["help"]
            if field.default is True:
                no = "--no-" + field.name.replace("_", "-")
                option = click.option(no, field.name, is_flag=True, flag_value=False, default=True, help=meaning)
            elif isinstance(field.default, bool):
                option = click.option(flag, is_flag=True, help=meaning)
            else:
                ranges = click.IntRange if isinstance(field.default, int) else click.FloatRange
                kind = ranges(**field.metadata["bounds"])
                if field.metadata.get("recipe"):
                    meaning += "  [default: chosen from the data]"
                    option = click.option(flag, type=kind, help=meaning)
                else:
                    option = click.option(flag, default=field.default, show_default=True, type=kind, help=meaning)
            command = option(command)
        return command

    return add


def show_json(value: Any) -> None:
    """Prints the output of `--json`."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
