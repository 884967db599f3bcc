"""Formats a check's report as SARIF 2.1.0, which code scanning of GitHub, GitLab and Azure DevOps reads.

One leak is one result, at the line of the user's code that calls its first operator. A leak of an ONNX graph or of a
Keras layer has no line: it stands at the first line of the file of the model, with the operator as its logical
location. SARIF: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path, PurePath
from typing import Any, Final
from urllib.parse import quote

import lengthwise
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.report import Report, finite, number
from lengthwise_export.checking.rule import OTHER, LeakRule, rules
from lengthwise_export.tracing.source_lines import relative_path

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
ROOT: Final = "%SRCROOT%"  # The folder that paths are relative to: the working directory of the check


NOT_CHECKED: Final = LeakRule(
    "padding-not-checked",
    "padding-not-checked",
    "warning",
    "Whether padding changes an answer could not be checked: the model cannot be run on padded batches, or takes "
    "neither lengths nor a mask. The message says why.",
)
"""What SARIF shows as the rule of a model that is uncheckable."""


def _described(rule: LeakRule) -> dict[str, Any]:
    """A rule as the metadata of a tool."""
    return {
        "id": rule.code,
        "name": rule.name.title().replace("-", ""),
        "shortDescription": {"text": rule.name.replace("-", " ").capitalize()},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.why} `lengthwise check --explain {rule.code}` says what to write instead."},
        "defaultConfiguration": {"level": rule.severity},
        "properties": {"tags": ["correctness", "padding"], "precision": "very-high"},
    }


def as_sarif(report: Report, *, exit_code: int, file: str | None = None) -> dict[str, Any]:
    """The report as one SARIF log with one run. A sound model has no result, so that its earlier alerts are closed."""
    file = _file_of(report.target) if file is None else file
    every = {**rules(), NOT_CHECKED.code: NOT_CHECKED}
    of_each = [(leak.code, _of_leak(leak, report.target, file)) for leak in report.leaks]
    if not of_each and report.verdict != "sound":
        message, known = f"{report.target}: {report.reason}", (report.target, report.verdict)
        code = NOT_CHECKED.code if report.verdict == "uncheckable" else OTHER
        of_each = [(code, _result(message, _physical(file), known))]
    level = "error" if report.verdict == "leak" else "warning"
    results = [
        {"ruleId": code, "ruleIndex": [*every].index(code), "level": level, **result} for code, result in of_each
    ]
    described = [_described(rule) for rule in every.values()]
    run = {
        "tool": {
            "driver": {
                "name": "lengthwise",
                "semanticVersion": lengthwise.__version__,
                "rules": described,
            }
        },
        "automationDetails": {"id": f"lengthwise-check/{report.target}/"},
        "invocations": [{"executionSuccessful": report.verdict != "uncheckable", "exitCode": exit_code}],
        "originalUriBaseIds": {ROOT: {"description": {"text": "The folder in which the check ran."}}},
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _of_leak(leak: Leak, target: str, file: str) -> dict[str, Any]:
    since = "" if leak.cause_at is None else f" Padding stopped being 0 at {leak.cause_at}."
    message = (
        f"{leak.operator}: its output moves by {number(leak.difference)} with {leak.trial}. "
        f"{leak.cause.why.rstrip('.')}.{since}\n\nFix:\n{leak.cause.fix}"
    )
    location = leak.location
    # The fingerprint stays the same while lines above the leak are added or removed.
    known = (
        (target, leak.layer or leak.operator) if location is None else (relative_path(location.file), location.source)
    )
    where = _physical(file) if location is None else _physical(location.file, location.line, location.source)
    named = {"name": leak.operator, "fullyQualifiedName": leak.layer or leak.operator, "kind": "operator"}
    properties = {key: getattr(leak, key) for key in ("operator", "kind", "trial")}
    result = _result(message, {**where, "logicalLocations": [named]}, (*known, leak.kind))
    return {**result, "properties": {**properties, "difference": finite(leak.difference)}}


def _result(message: str, where: dict[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """A result; `known` is what tells it from others when the file has changed."""
    digest = hashlib.sha256("\0".join(known).encode()).hexdigest()[:32]
    return {"message": {"text": message}, "locations": [where], "partialFingerprints": {"paddingLeak/v1": digest}}


def _physical(file: str, line: int = 1, source: str = "") -> dict[str, Any]:
    relative = relative_path(file)
    path = PurePath(relative)
    where = {"uri": path.as_uri()} if path.is_absolute() else {"uri": quote(path.as_posix()), "uriBaseId": ROOT}
    region = {"startLine": line} | ({"snippet": {"text": source}} if source else {})
    return {"physicalLocation": {"artifactLocation": where, "region": region}}


def _file_of(target: str) -> str:
    """The file of a target: itself, the file of its factory, or the graph in a model directory."""
    before, colon, _ = target.rpartition(":")
    path = Path(before if colon and not Path(target).exists() else target)
    if colon and not path.exists():
        try:
            spec = importlib.util.find_spec(before)
        except (ImportError, ValueError):
            spec = None
        if spec is not None and spec.origin is not None:
            return spec.origin
    return str(path / "model.onnx" if path.is_dir() else path)
