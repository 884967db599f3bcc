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

from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.report import Report, Verdict, finite, number
from lengthwise_export.tracing.source_lines import relative_path

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
ROOT: Final = "%SRCROOT%"
"""The name of the folder that paths are relative to: the working directory of the check, the root of the repository."""


def _rule(key: str, name: str, level: str, short: str, full: str) -> dict[str, Any]:
    return {
        "id": key,
        "name": name,
        "shortDescription": {"text": short},
        "fullDescription": {"text": full},
        "help": {"text": f"{full} The page docs/masking.md of Lengthwise says what to write instead."},
        "defaultConfiguration": {"level": level},
        "properties": {"tags": ["correctness", "padding"], "precision": "very-high"},
    }


_RULES: Final[dict[Verdict, dict[str, Any]]] = {
    "leak": _rule(
        "padding-leak",
        "PaddingLeak",
        "error",
        "Padding, or another row of the batch, changes an answer",
        "The answer to a sequence is not the same in every padded batch. The result is at the first operator whose "
        "output changes at a valid step.",
    ),
    "warning": _rule(
        "padding-not-finite",
        "PaddingNotFinite",
        "warning",
        "NaN, infinity or 1e30 in the padding, or values past a mask's number, change an answer",
        "Finite padding changes no answer to values of an ordinary size. Lengthwise pads with zeros, so NaN in the "
        "padding does not concern its service; a mask with a finite number does, once scores come near it.",
    ),
    "uncheckable": _rule(
        "padding-not-checked",
        "PaddingNotChecked",
        "warning",
        "Whether padding changes an answer could not be checked",
        "The model cannot be run on padded batches, or takes neither lengths nor a mask. The message says why.",
    ),
}


def as_sarif(report: Report, target: str, *, version: str, exit_code: int, file: str | None = None) -> dict[str, Any]:
    """The report as one SARIF log with one run. A sound model has no result, so that its earlier alerts are closed."""
    file = _file_of(target) if file is None else file
    results = [_result(leak, report, target, file) for leak in report.leaks]
    if not results and report.verdict != "sound":
        results = [_whole(report, target, file)]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "lengthwise",
                        "semanticVersion": version,
                        "rules": [*_RULES.values()],
                    }
                },
                "automationDetails": {"id": f"lengthwise-check/{target}/"},
                "invocations": [{"executionSuccessful": report.verdict != "uncheckable", "exitCode": exit_code}],
                "originalUriBaseIds": {ROOT: {"description": {"text": "The folder in which the check ran."}}},
                "results": results,
            }
        ],
    }


def _result(leak: Leak, report: Report, target: str, file: str) -> dict[str, Any]:
    moved = number(leak.difference)
    why = leak.cause.why.rstrip(".")
    since = "" if leak.cause_at is None else f" Padding stopped being 0 at {leak.cause_at}."
    return {
        **_kind(report),
        "message": {
            "text": f"{leak.operator}: its output moves by {moved} with {leak.trial}. {why}.{since}\n\n"
            f"Fix:\n{leak.cause.fix}"
        },
        "locations": [_location(leak, file)],
        "partialFingerprints": {"paddingLeak/v1": _fingerprint(leak, target)},
        "properties": {
            "operator": leak.operator,
            "kind": leak.kind,
            "trial": leak.trial,
            "difference": finite(leak.difference),
        },
    }


def _whole(report: Report, target: str, file: str) -> dict[str, Any]:
    """The result about a model as a whole."""
    said = f"{target}: {report.reason}"
    return {
        **_kind(report),
        "message": {"text": said},
        "locations": [_physical(file)],
        "partialFingerprints": {"paddingLeak/v1": _digest(target, report.verdict)},
    }


def _kind(report: Report) -> dict[str, Any]:
    rule, place = _RULES[report.verdict], [*_RULES].index(report.verdict)
    return {"ruleId": rule["id"], "ruleIndex": place, **rule["defaultConfiguration"]}


def _location(leak: Leak, file: str) -> dict[str, Any]:
    named = {"name": leak.operator, "fullyQualifiedName": leak.place or leak.operator, "kind": "operator"}
    if leak.location is None:
        return {**_physical(file), "logicalLocations": [named]}
    found = leak.location
    return {**_physical(found.file, found.line, found.source), "logicalLocations": [named]}


def _physical(file: str, line: int = 1, source: str = "") -> dict[str, Any]:
    relative = relative_path(file)
    path = PurePath(relative)
    where = {"uri": path.as_uri()} if path.is_absolute() else {"uri": quote(path.as_posix()), "uriBaseId": ROOT}
    region: dict[str, Any] = {"startLine": line}
    if source:
        region["snippet"] = {"text": source}
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


def _fingerprint(leak: Leak, target: str) -> str:
    """What stays the same while lines above the leak are added or removed."""
    if leak.location is None:
        return _digest(target, leak.place or leak.operator, leak.kind)
    return _digest(relative_path(leak.location.file), leak.location.source, leak.kind)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
