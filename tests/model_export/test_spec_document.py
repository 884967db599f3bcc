"""docs/spec.md says every key of a spec, with the type and the default that `architecture.spec` has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from lengthwise_export.architecture.spec import TABLES, Spec

DOCUMENT = Path("docs/spec.md").read_text()


def rows(place: tuple[str, ...]) -> list[list[str]]:
    """The lines below a table's heading: key, type, default, meaning."""
    (section,) = re.findall(rf"^### `\[+{re.escape('.'.join(place))}\]+`\n(.*?)(?=^#|\Z)", DOCUMENT, re.M | re.S)
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines() if "`" in line]
    return [line for line in lines if line[0] != "key"]


def type_said(schema: dict[str, Any]) -> str:
    """A key's type in the document's words, from its JSON schema."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    if len(kinds) > 1:
        return " or ".join(map(type_said, kinds))
    (kind,) = kinds
    if "enum" in kind:
        return ", ".join(f'`"{choice}"`' for choice in kind["enum"])
    if kind["type"] == "array":
        names = {"string": "strings", "integer": "integers"}
        return f"list of {names.get(kind['items'].get('type'), 'tables')}"

    bounds = f", {kind['minimum']:g} or more" if "minimum" in kind else ""
    below = f", below {kind['exclusiveMaximum']:g}" if "exclusiveMaximum" in kind else ""
    return f"{kind['type']}{bounds}{below}"


def default_said(schema: dict[str, Any], *, required: bool) -> str:
    """A key's default in the document's words."""
    if required:
        return "required"
    value = schema["default"]
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


@pytest.mark.parametrize(("place", "table"), [(place, table) for place, table in TABLES.items() if place])
def test_every_key_stands_there_with_its_type_and_default(place: tuple[str, ...], table: type[BaseModel]) -> None:
    schema = table.model_json_schema()
    expected = [
        [f"`{key}`", type_said(made), default_said(made, required=key in schema.get("required", []))]
        for key, made in schema["properties"].items()
    ]
    assert [row[:3] for row in rows(place)] == expected
    assert [row[0] for row in rows(place) if not row[3]] == []


@pytest.mark.parametrize("text", re.findall(r"^```toml\n(.*?)^```", DOCUMENT, re.M | re.S))
def test_every_example_is_a_spec(text: str) -> None:
    assert Spec.from_toml(text).input.features == 3


def test_every_task_has_an_example() -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", DOCUMENT, re.M | re.S)
    tasks = {Spec.from_toml(text).output.task for text in examples}
    assert tasks == {"single-label", "multi-label", "per-step"}
