"""Formats reports for code scanning: as SARIF 2.1.0, and as workflow commands of GitHub.

SARIF is read by GitHub, GitLab and Azure DevOps: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html. One
leak is one result, at the line of the user's code that calls its first operator. A leak of an ONNX graph or of a Keras
layer has no line: its result is at the first line of the file of the model, with the operator as its logical location.

GitHub shows workflow commands at the lines of a pull request:

    ::error file=models/net.py,line=12,title=LW201 mean-over-padding::The mean over the steps includes the padding, ...

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, Final
from urllib.parse import quote

import lengthwise_export
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.page import as_markdown
from lengthwise_export.checking.report import Report, finite, level_of, number, rule_without_leak
from lengthwise_export.checking.rule import NOT_CHECKED, LeakRule, Severity, rules
from lengthwise_export.tracing.source_lines import relative_path

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
ROOT: Final = "%SRCROOT%"  # The folder that paths are relative to: the working directory of the check


def _rule_metadata(rule: LeakRule) -> dict[str, Any]:
    """A rule as a SARIF `reportingDescriptor`: the metadata of a rule of the tool."""
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
        file: The file that is shown for a leak without a line; None for the file of its target.
    """
    all_rules = [*rules().values(), NOT_CHECKED]
    numbers = {rule.code: number for number, rule in enumerate(all_rules)}
    results = [
        {"ruleId": code, "ruleIndex": numbers[code], **result}
        for report in reports
        for code, result in _results(report, file_of(report.target) if file is None else file)
    ]
    descriptions = [_rule_metadata(rule) for rule in all_rules]
    target_path = f"{reports[0].target}/" if len(reports) == 1 else ""
    is_successful = not any(report.verdict == "uncheckable" for report in reports)
    run = {
        "tool": {
            "driver": {"name": "lengthwise", "semanticVersion": lengthwise_export.__version__, "rules": descriptions}
        },
        "automationDetails": {"id": f"lengthwise-check/{target_path}"},
        "invocations": [{"executionSuccessful": is_successful, "exitCode": exit_code}],
        "originalUriBaseIds": {ROOT: {"description": {"text": "The folder in which the check ran."}}},
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _results(report: Report, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields a SARIF result for each leak of a report, as (code of its rule, result).

    For a report without a leak whose verdict is not sound, it yields one, at the first line of `file`.
    """
    level = {"level": level_of(report)}
    yield from ((leak.code, level | _of_leak(leak, report.target, file)) for leak in report.leaks)
    if not report.leaks and report.verdict != "sound":
        message, fingerprint_parts = f"{report.target}: {report.reason}", (report.target, report.verdict)
        yield rule_without_leak(report).code, level | _result(message, _physical_location(file), fingerprint_parts)


def _of_leak(leak: Leak, target: str, file: str) -> dict[str, Any]:
    """The SARIF result of a leak; `file` is shown for a leak without a line."""
    since = f" {leak.since[0].upper()}{leak.since[1:]} at {leak.cause_at}." if leak.since else ""
    message = (
        f"{leak.operator}: its output moves by {number(leak.difference)} with {leak.trial}. "
        f"{leak.cause.why.rstrip('.')}.{since}\n\nFix:\n{leak.cause.fix}"
    )
    location = leak.location
    # The fingerprint stays the same while lines above the leak are added or removed.
    fingerprint_parts = (
        (target, leak.layer or leak.operator) if location is None else (relative_path(location.file), location.source)
    )
    physical_location = (
        _physical_location(file)
        if location is None
        else _physical_location(location.file, location.line, location.source)
    )
    logical_location = {"name": leak.operator, "fullyQualifiedName": leak.layer or leak.operator, "kind": "operator"}
    properties = {key: getattr(leak, key) for key in ("operator", "kind", "trial")}
    result = _result(
        message, {**physical_location, "logicalLocations": [logical_location]}, (*fingerprint_parts, leak.kind)
    )
    return {**result, "properties": {**properties, "difference": finite(leak.difference)}}


def _result(message: str, location: dict[str, Any], fingerprint_parts: tuple[str, ...]) -> dict[str, Any]:
    """A SARIF result.

    `fingerprint_parts` are the texts by which code scanning recognises the result after the file has changed.
    """
    digest = hashlib.sha256("\0".join(fingerprint_parts).encode()).hexdigest()[:32]
    return {"message": {"text": message}, "locations": [location], "partialFingerprints": {"paddingLeak/v1": digest}}


def _physical_location(file: str, line: int = 1, source: str = "") -> dict[str, Any]:
    """A SARIF location: a line of a file, with its text. Its path is relative to the working directory, if below it."""
    path = PurePath(relative_path(file))
    artifact = {"uri": path.as_uri()} if path.is_absolute() else {"uri": quote(path.as_posix()), "uriBaseId": ROOT}
    region = {"startLine": line} | ({"snippet": {"text": source}} if source else {})
    return {"physicalLocation": {"artifactLocation": artifact, "region": region}}


def file_of(target: str) -> str:
    """The file of a target: the target itself, the file of its factory, or the graph in a model directory."""
    module_or_file, colon, _ = target.rpartition(":")
    path = Path(module_or_file if colon and not Path(target).exists() else target)
    if colon and not path.exists():
        try:
            spec = importlib.util.find_spec(module_or_file)
        except (ImportError, ValueError):
            spec = None
        if spec is not None and spec.origin is not None:
            return spec.origin
    return str(path / "model.onnx" if path.is_dir() else path)


def as_github(reports: Sequence[Report]) -> Iterator[str]:
    """Yields a workflow command for each leak, and for each report without a leak whose verdict is not sound."""
    for report in reports:
        file = file_of(report.target)
        for leak in report.leaks:
            leak_file, line = (file, 1) if leak.location is None else (leak.location.file, leak.location.line)
            text = f"{leak.operator}: {leak.cause.why}\n\nFix:\n{leak.cause.fix}"
            yield _command(level_of(report), leak_file, line, rules()[leak.code], text)
        if not report.leaks and report.verdict != "sound":
            yield _command("error", file, 1, rule_without_leak(report), f"{report.target}: {report.reason}")


def _command(level: Severity, file: str, line: int, rule: LeakRule, message: str) -> str:
    """A workflow command that shows a message at a line, with the rule as its title."""
    title = rule.name if rule.code == rule.name else rule.title
    properties = {"file": relative_path(file), "line": str(line), "title": title}
    listed = ",".join(f"{name}={_escape(value, property=True)}" for name, value in properties.items())
    return f"::{level} {listed}::{_escape(message)}"


def _escape(text: str, *, property: bool = False) -> str:
    """The text percent-encoded as in a workflow command: `%` and line ends, and in a property also `:` and `,`."""
    return text.translate(
        {ord(character): f"%{ord(character):02X}" for character in ("%\r\n:," if property else "%\r\n")}
    )
