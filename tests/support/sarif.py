"""Holds a SARIF log against what SARIF 2.1.0 and code scanning require of the parts that `check --sarif` writes.

The schema here is written from the specification for these parts alone, and refuses every other property.
"""

from typing import Any

import jsonschema

_TEXT = {"type": "string", "minLength": 1}


def _table(properties: dict[str, Any], *needed: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(needed), "additionalProperties": False}


def _list(items: dict[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


_MESSAGE = _table({"text": _TEXT}, "text")
_LEVEL = {"enum": ["none", "note", "warning", "error"]}
_ARTIFACT = _table({"uri": {"type": "string", "format": "uri-reference"}, "uriBaseId": _TEXT}, "uri")
_REGION = _table({"startLine": {"type": "integer", "minimum": 1}, "snippet": _MESSAGE}, "startLine")
_PHYSICAL = _table({"artifactLocation": _ARTIFACT, "region": _REGION}, "artifactLocation", "region")
_LOGICAL = _table({"name": _TEXT, "fullyQualifiedName": _TEXT, "kind": _TEXT}, "name")
_LOCATION = _table({"physicalLocation": _PHYSICAL, "logicalLocations": _list(_LOGICAL)}, "physicalLocation")
_RULE = _table(
    {
        "id": _TEXT,
        "name": {"type": "string", "pattern": "^[A-Z][A-Za-z]+$"},
        "shortDescription": _MESSAGE,
        "fullDescription": _MESSAGE,
        "help": _table({"text": _TEXT, "markdown": _TEXT}, "text"),
        "helpUri": {"type": "string", "format": "uri"},
        "defaultConfiguration": _table({"level": _LEVEL}, "level"),
        "properties": {"type": "object"},
    },
    "id",
    "shortDescription",
    "fullDescription",
    "help",
    "defaultConfiguration",
)
_RESULT = _table(
    {
        "ruleId": _TEXT,
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": _LEVEL,
        "message": _MESSAGE,
        "locations": _list(_LOCATION, 1),
        "partialFingerprints": {"type": "object", "minProperties": 1, "additionalProperties": _TEXT},
        "properties": {"type": "object"},
    },
    "ruleId",
    "level",
    "message",
    "locations",
    "partialFingerprints",
)
_DRIVER = _table({"name": _TEXT, "semanticVersion": _TEXT, "rules": _list(_RULE, 1)}, "name", "rules")
_RUN = _table(
    {
        "tool": _table({"driver": _DRIVER}, "driver"),
        "automationDetails": _table({"id": _TEXT}, "id"),
        "invocations": _list(
            _table({"executionSuccessful": {"type": "boolean"}, "exitCode": {"type": "integer"}}, "executionSuccessful")
        ),
        "originalUriBaseIds": {"type": "object", "additionalProperties": _table({"description": _MESSAGE})},
        "results": _list(_RESULT),
    },
    "tool",
    "results",
)
SCHEMA = _table(
    {"$schema": {"type": "string", "format": "uri"}, "version": {"const": "2.1.0"}, "runs": _list(_RUN, 1)},
    "version",
    "runs",
)


def validate(log: dict[str, Any]) -> None:
    """Fails if a log is not what the schema says, or if a result names a rule that is not there."""
    jsonschema.validate(log, SCHEMA, format_checker=jsonschema.FormatChecker())
    for run in log["runs"]:
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert len({*rules}) == len(rules)
        assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
