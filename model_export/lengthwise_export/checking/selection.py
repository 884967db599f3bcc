"""Which leaks a report shows: `--select` and `--ignore`, and comments in the code of the model.

    pooled = hidden.mean(1)  # lengthwise: ignore[LW201]
    pooled = hidden.mean(1)  # lengthwise: ignore[LW2, LW802]

A comment counts for the statement that it stands in, on any of its lines. What is ignored stays in the report, as a
count. The search ends at the first operator that differs, so an ignored leak may hide others behind it.
"""

from __future__ import annotations

import linecache
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from lengthwise.errors import ConfigurationError
from lengthwise.wrong_values import counted, nearest
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.report import IgnoredLeak, Report
from lengthwise_export.checking.rule import rules
from lengthwise_export.options import selects_rules
from lengthwise_export.tracing.source_lines import CodeLocation

_COMMENT: Final = re.compile(r"#\s*lengthwise\s*:\s*ignore\b\s*(?:\[([^\]]*)\])?")
_BETWEEN: Final = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)  # tokens that begin no statement


class RefusedCommentError(ConfigurationError):
    """A comment at a leak names no rule, or an unknown one.

    Attributes:
        report: The report, in which nothing is ignored.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def select_leaks(report: Report, select: Sequence[str] | None, ignore: Sequence[str] | None) -> Report:
    """The report with each cause once, without the leaks that are ignored, and with the verdict on those that are left.

    Args:
        report: That of a check.
        select: Codes of rules, or their beginnings: no others are shown. None for all.
        ignore: Codes of rules, or their beginnings, that are not shown.

    Raises:
        RefusedCommentError: A comment at a leak names no rule, or an unknown one.
    """
    causes: dict[Any, Leak] = {}
    for leak in report.leaks:
        causes.setdefault((leak.code, leak.location or leak.operator, leak.layer), leak)
    try:
        reasons = [(leak, _ignored_by(leak, select, ignore)) for leak in causes.values()]
    except ConfigurationError as error:
        raise RefusedCommentError(str(error), replace(report, leaks=tuple(causes.values()))) from error
    leaks = tuple(leak for leak, by in reasons if by is None)
    ignored = tuple(IgnoredLeak(leak, by) for leak, by in reasons if by is not None)
    if leaks or not ignored or report.verdict == "uncheckable":
        return replace(report, leaks=leaks, ignored=ignored)
    reason = f"{counted(len(ignored), 'leak')} ignored, and no other is known"
    return replace(report, verdict="sound", reason=reason, leaks=leaks, ignored=ignored)


def _ignored_by(
    leak: Leak, select: Sequence[str] | None, ignore: Sequence[str] | None
) -> Literal["select", "ignore", "comment"] | None:
    if select is not None and not leak.code.startswith(tuple(select)):
        return "select"
    if leak.code.startswith(tuple(ignore or ())):
        return "ignore"
    in_comments = () if leak.location is None else _codes_of_comments(leak.location)
    return "comment" if leak.code.startswith(in_comments) else None


def _codes_of_comments(location: CodeLocation) -> tuple[str, ...]:
    """The codes, or their beginnings, that the comments of a statement ignore.

    Raises:
        ConfigurationError: A comment names no rule, or an unknown one.
    """
    codes: list[str] = []
    for comment in _comments(location):
        for match in _COMMENT.finditer(comment):
            here = f"{location.file_and_line}: '# lengthwise: ignore"
            named = [code.strip() for code in (match[1] or "").split(",")]
            if not all(named):
                raise ConfigurationError(f"{here}' must name the rules that it is for, such as ignore[LW201]")
            for code in named:
                if not selects_rules(code):
                    raise ConfigurationError(f"{here}[{code}]': there is no rule {code}{nearest(code, rules())}")
            codes += named
    return tuple(codes)


def _comments(location: CodeLocation) -> Iterator[str]:
    """The comments in the lines of the statement that a line belongs to; none if its file is no longer there."""
    lines = iter(linecache.getlines(location.file))
    statement: list[tokenize.TokenInfo] = []
    try:
        for token in tokenize.generate_tokens(lambda: next(lines, "")):
            if not statement and token.type in _BETWEEN:
                continue
            statement.append(token)
            if token.type == tokenize.NEWLINE:
                if token.start[0] >= location.line:
                    break
                statement = []
    except (tokenize.TokenError, SyntaxError):  # it was changed since it ran
        return
    if statement and statement[0].start[0] <= location.line:
        yield from (token.string for token in statement if token.type == tokenize.COMMENT)
