"""Formats a check's report as SARIF 2.1.0, which code scanning of GitHub, GitLab and Azure DevOps reads.

One leak is one result, at the line of the user's code that calls its first operator. A leak of an ONNX graph or of a
Keras layer has no line: it stands at the first line of the file of the model, with the operator as its logical
location. SARIF: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, Final
from urllib.parse import quote

import lengthwise
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.report import Report, finite, level_of, number, rule_without_leak
from lengthwise_export.checking.rule import NOT_CHECKED, LeakRule, rules
from lengthwise_export.checking.rule_page import as_markdown
from lengthwise_export.tracing.source_lines import relative_path

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
ROOT: Final = "%SRCROOT%"  # The folder that paths are relative to: the working directory of the check


def _described(rule: LeakRule) -> dict[str, Any]:
    """A rule as the metadata of a tool."""
    return {
        "id": rule.code,
        "name": rule.name.title().replace("-", ""),
        "shortDescription": {"text": rule.name.replace("-", " ").capitalize()},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.why} {rule.cure}".strip(), "markdown": as_markdown(rule)},
        "defaultConfiguration": {"level": rule.severity},
        "properties": {"tags": ["correctness", "padding"], "precision": "very-high"},
    } | ({} if rule.address is None else {"helpUri": rule.address})


def as_sarif(reports: Sequence[Report], *, exit_code: int, file: str | None = None) -> dict[str, Any]:
    """The reports as one SARIF log with one run. A sound model has no result, so that its earlier alerts are closed.

    Args:
        reports: One for each target.
        exit_code: That of the command.
        file: The file of a model without a line; None for that of its target.
    """
    every = [*rules().values(), NOT_CHECKED]
    numbers = {rule.code: number for number, rule in enumerate(every)}
    results = [
        {"ruleId": code, "ruleIndex": numbers[code], **result}
        for report in reports
        for code, result in _results(report, file_of(report.target) if file is None else file)
    ]
    described = [_described(rule) for rule in every]
    only = f"{reports[0].target}/" if len(reports) == 1 else ""
    is_successful = not any(report.verdict == "uncheckable" for report in reports)
    run = {
        "tool": {"driver": {"name": "lengthwise", "semanticVersion": lengthwise.__version__, "rules": described}},
        "automationDetails": {"id": f"lengthwise-check/{only}"},
        "invocations": [{"executionSuccessful": is_successful, "exitCode": exit_code}],
        "originalUriBaseIds": {ROOT: {"description": {"text": "The folder in which the check ran."}}},
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _results(report: Report, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of a report, each with the code of its rule: one for each leak.

    A report without a leak that is not sound has one, at the first line of its file.
    """
    level = {"level": level_of(report)}
    yield from ((leak.code, level | _of_leak(leak, report.target, file)) for leak in report.leaks)
    if not report.leaks and report.verdict != "sound":
        message, fingerprint = f"{report.target}: {report.reason}", (report.target, report.verdict)
        yield rule_without_leak(report).code, level | _result(message, _physical(file), fingerprint)


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
    path = PurePath(relative_path(file))
    where = {"uri": path.as_uri()} if path.is_absolute() else {"uri": quote(path.as_posix()), "uriBaseId": ROOT}
    region = {"startLine": line} | ({"snippet": {"text": source}} if source else {})
    return {"physicalLocation": {"artifactLocation": where, "region": region}}


def file_of(target: str) -> str:
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
