"""JSON output of the commands of this package."""

from __future__ import annotations

import json
from typing import Any

import click


def show_json(value: Any) -> None:
    """Prints the output of `--json`."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
