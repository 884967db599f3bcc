"""What a benchmark's command prints: a page, which it may write too, or its figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from benchmarks import pages

_Command = TypeVar("_Command", bound=Callable[..., Any])


class PagePath(click.Path):
    """The path of a page: one among the results is refused where the sources have uncommitted changes."""

    def __init__(self, **checks: bool) -> None:
        super().__init__(**checks, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses before anything is measured."""
        path = super().convert(value, param, ctx)
        pages.require_clean(path)
        return path


def as_json_or_page(page: Path) -> Callable[[_Command], _Command]:
    """The options `--json` and `--out` of a command that measures; `page` is where its results stand."""

    def add(command: _Command) -> _Command:
        written = click.option("--out", type=PagePath(dir_okay=False), help=f"Page to write, {page} for one.")
        return click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")(written(command))

    return add


def tell(text: str, figures: Any = None, *, as_json: bool = False, out: Path | None) -> None:
    """Writes the page where it is wanted, and prints it, or the figures as JSON."""
    if out is not None:
        pages.write(out, text)
    click.echo(json.dumps(figures, indent=2) if as_json else text)
