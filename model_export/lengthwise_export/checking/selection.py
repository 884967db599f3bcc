"""Selects the leaks that a report shows, by `--select` and `--ignore`, and by comments in the code of the model.

    pooled = hidden.mean(1)  # lengthwise: ignore[LW201]
    pooled = hidden.mean(1)  # lengthwise: ignore[LW2, LW802]

A comment counts for the statement that it stands in, on any of its lines. What is ignored stays in the report, as a
count. The search ends at the first operator that differs, so an ignored leak may hide others after it.
"""

from __future__ import annotations

import linecache
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.report import IgnoredLeak, Report
from lengthwise_export.checking.rule import rules
from lengthwise_export.errors import ConfigurationError, counted, nearest
from lengthwise_export.options import selects_rules
from lengthwise_export.tracing.source_lines import CodeLocation

_COMMENT: Final = re.compile(r"#\s*lengthwise\s*:\s*ignore\b\s*(?:\[([^\]]*)\])?")
_OUTSIDE_STATEMENTS: Final = (
    tokenize.NL,
    tokenize.COMMENT,
    tokenize.INDENT,
    tokenize.DEDENT,
)  # no statement begins with such a token


class RefusedCommentError(ConfigurationError):
    """A comment at a leak names no rule, or an unknown one.

    Attributes:
        report: The report, in which nothing is ignored.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def select_leaks(report: Report, select: Sequence[str] | None, ignore: Sequence[str] | None) -> Report:
    """The report without the leaks that are ignored. They are counted in `ignored`.

    Of leaks with the same rule, line and layer only the first stays. If all are ignored, the verdict is sound.

    Args:
        report: The report of a check.
        select: Codes of rules, or their beginnings: no others are shown. None for all.
        ignore: Codes of rules, or their beginnings, that are not shown.

    Raises:
        RefusedCommentError: A comment at a leak names no rule, or an unknown one.
    """
    leaks_by_cause: dict[Any, Leak] = {}
    for leak in report.leaks:
        leaks_by_cause.setdefault((leak.code, leak.location or leak.operator, leak.layer), leak)
    try:
        reasons = [(leak, _reason_to_ignore(leak, select, ignore)) for leak in leaks_by_cause.values()]
    except ConfigurationError as error:
        raise RefusedCommentError(str(error), replace(report, leaks=tuple(leaks_by_cause.values()))) from error
    leaks = tuple(leak for leak, ignored_by in reasons if ignored_by is None)
    ignored = tuple(IgnoredLeak(leak, ignored_by) for leak, ignored_by in reasons if ignored_by is not None)
    if leaks or not ignored or report.verdict == "uncheckable":
        return replace(report, leaks=leaks, ignored=ignored)
    reason = f"{counted(len(ignored), 'leak')} ignored, and no other is known"
    return replace(report, verdict="sound", reason=reason, leaks=leaks, ignored=ignored)


def _reason_to_ignore(
    leak: Leak, select: Sequence[str] | None, ignore: Sequence[str] | None
) -> Literal["select", "ignore", "comment"] | None:
    """What makes a leak ignored: the option `select` or `ignore`, or a comment; None if it is shown.

    Raises:
        ConfigurationError: A comment names no rule, or an unknown one.
    """  # noqa: DOC502 - what it calls raises it
    if select is not None and not leak.code.startswith(tuple(select)):
        return "select"
    if leak.code.startswith(tuple(ignore or ())):
        return "ignore"
    in_comments = () if leak.location is None else _codes_of_comments(leak.location)
    return "comment" if leak.code.startswith(in_comments) else None


def _codes_of_comments(location: CodeLocation) -> tuple[str, ...]:
    """The codes, or beginnings of codes, that the comments of the statement at a line ignore.

    Raises:
        ConfigurationError: A comment names no rule, or an unknown one.
    """
    codes: list[str] = []
    for comment in _comments_of_statement(location):
        for match in _COMMENT.finditer(comment):
            comment_start = f"{location.file_and_line}: '# lengthwise: ignore"
            codes_in_comment = [code.strip() for code in (match[1] or "").split(",")]
            if not all(codes_in_comment):
                raise ConfigurationError(f"{comment_start}' must name the rules that it is for, such as ignore[LW201]")
            for code in codes_in_comment:
                if not selects_rules(code):
                    raise ConfigurationError(
                        f"{comment_start}[{code}]': there is no rule {code}{nearest(code, rules())}"
                    )
            codes += codes_in_comment
    return tuple(codes)


def _comments_of_statement(location: CodeLocation) -> Iterator[str]:
    """Yields the comments in the statement to which a line belongs, on all of its lines.

    Yields none if the file is not there any more, or is no Python.
    """
    lines = iter(linecache.getlines(location.file))
    statement: list[tokenize.TokenInfo] = []  # The tokens of the statement that is read
    try:
        for token in tokenize.generate_tokens(lambda: next(lines, "")):
            if not statement and token.type in _OUTSIDE_STATEMENTS:
                continue
            statement.append(token)
            if token.type == tokenize.NEWLINE:  # the end of a statement
                if token.start[0] >= location.line:
                    break
                statement = []
    except (tokenize.TokenError, SyntaxError):  # the file was changed after it ran
        return
    if statement and statement[0].start[0] <= location.line:
        yield from (token.string for token in statement if token.type == tokenize.COMMENT)
