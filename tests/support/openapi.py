"""`/openapi.json` as tests read it: checks of values against its named schemas."""

from typing import Any

from jsonschema import Draft202012Validator

JSON = "application/json"


def checker(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    """Checks values against a schema of the document, which may refer to its components."""
    return Draft202012Validator({**schema, "components": document["components"]})


def body(document: dict[str, Any], path: str) -> Draft202012Validator:
    """Checks the JSON bodies of `POST` at a path."""
    return checker(document, document["paths"][path]["post"]["requestBody"]["content"][JSON]["schema"])


def answer(document: dict[str, Any], path: str, status: int = 200, kind: str = JSON) -> Draft202012Validator:
    """Checks the answers of `POST` at a path."""
    return checker(document, document["paths"][path]["post"]["responses"][str(status)]["content"][kind]["schema"])
