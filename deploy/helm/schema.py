"""Writes the options of the service into the chart's schema of values: `python deploy/helm/schema.py`.

The rest of the file is written by hand; `settings` is made of `lengthwise.settings`, so that an option that the service
does not know, and a value out of its bounds, is refused before anything is installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lengthwise.settings import Settings

FILE = Path(__file__).resolve().parent / "lengthwise" / "values.schema.json"
OF_THE_CHART = {"host", "port", "models", "drain_seconds"}
"""Options that the chart sets itself."""
BOUNDS = ("enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def options() -> dict[str, Any]:
    """The schema of `settings`: each option with its kind and bounds, and no other name."""
    made = Settings.model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _value(made[name]) for name in made if name not in OF_THE_CHART},
    }


def _value(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of one option, as a scalar; null is the option's own default.

    Raises:
        ValueError: The option has a form that is new here.
    """
    (kind,) = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    made: dict[str, Any] = {"type": ["string" if kind["type"] == "array" else kind["type"], "null"]}
    made |= {name: kind[name] for name in BOUNDS if name in kind}
    if kind["type"] == "number":  # `helm --set` makes a text of 0.5
        made["type"].append("string")
        made["pattern"] = r"^[0-9]+(\.[0-9]+)?$"
        if kind.get("maximum") == 1:  # a share; YAML reads a bare off as false
            made["type"].append("boolean")
            made["not"] = {"const": True}
            made["pattern"] = r"^(off|false|0(\.[0-9]+)?|1(\.0+)?)$"
    if "enum" in made:
        made["enum"] = [*made["enum"], None]
    return {"description": field["description"], **made}


def text() -> str:
    """The file's text."""
    schema = json.loads(FILE.read_text())
    schema["properties"]["settings"] = options()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
    print(FILE)
