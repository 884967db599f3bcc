"""Formats reports as workflow commands of GitHub, which shows them at the lines of a pull request.

    ::error file=models/net.py,line=12,title=LW201 mean-over-padding::The mean over the steps includes the padding, ...

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lengthwise_export.checking.report import Report, level_of, rule_without_leak
from lengthwise_export.checking.rule import LeakRule, Severity, rules
from lengthwise_export.checking.sarif import file_of
from lengthwise_export.tracing.source_lines import relative_path


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
