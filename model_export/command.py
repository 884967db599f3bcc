"""What the commands of this package share: options from fields, and errors as a line and an exit code."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from service.errors import LengthwiseError, ModelError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BAD = 1
"""The thing checked is bad."""

NOT_CHECKED = 2
"""It could not be checked, or the call is wrong."""

INTERRUPTED = 130


class Command(click.Command):
    """A command whose errors end in one line and an exit code: 1 for a bad model, 2 for all else, a bug too."""

    def invoke(self, context: click.Context) -> Any:
        """Runs the command."""
        # A terminated process takes the way of an interrupted one, so that what it had begun is removed
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except LengthwiseError as error:
            _end(str(error), BAD if isinstance(error, ModelError) else NOT_CHECKED)
        except KeyboardInterrupt:
            _end("interrupted", INTERRUPTED)
        except Exception:
            traceback.print_exc()
            _end("this is a defect of lengthwise, not of what it was given", NOT_CHECKED)
        finally:
            signal.signal(signal.SIGTERM, before)


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


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)
