"""The result of a check: verdict, reason, leaks and trials; and its form in the terminal and as JSON.

`page` formats it as HTML, and `sarif` for code scanning.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Protocol

from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from lengthwise_export.checking.baseline import ROUNDING
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.rule import NOT_CHECKED, OTHER, LeakRule, Severity, rules
from lengthwise_export.checking.trials import CHANGES, Change
from lengthwise_export.errors import counted
from lengthwise_export.tracing.source_lines import location_as_json

Verdict = Literal["sound", "leak", "warning", "uncheckable"]


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The result of one trial."""

    name: str
    change: Change
    # The largest difference of an answer, in units of max(1, largest value); None if the model raised
    difference: float | None
    passed: bool
    raised: str | None = None  # The error that the model raised
    is_rounding: bool = False  # Whether a larger difference was excused, because rounding explains it

    def as_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        difference = finite(self.difference)
        return {"name": self.name, "difference": difference, "passed": self.passed, "raised": self.raised}


@dataclass(frozen=True, slots=True)
class CheckedSizes:
    """The row counts, widths and lengths of the batches that ran and whose answers were compared, without repeats."""

    rows: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()


class Suggestion(Protocol):
    """What a report has behind its leaks: how the model may be changed. It has the forms of a report."""

    def as_json(self) -> dict[str, Any]:
        """The value of `fix` in the report's JSON."""

    def on_terminal(self, report: Report) -> RenderableType:
        """What the terminal shows behind the report."""

    def as_section(self) -> str:
        """The section of the report's page, as HTML."""


@dataclass(frozen=True, slots=True)
class IgnoredLeak:
    """A leak that a report only counts."""

    leak: Leak
    by: Literal["select", "ignore", "comment"]  # What makes it ignored: an option, or a comment in the code

    def __str__(self) -> str:
        """`LW201 at net.py:12, by its comment`."""
        location = self.leak.location or self.leak.layer or self.leak.operator
        return f"{self.leak.code} at {location}, by {'its comment' if self.by == 'comment' else f'--{self.by}'}"

    def as_json(self) -> dict[str, Any]:
        """The ignored leak as JSON values: where it is, without its cause."""
        leak = _leak_as_json(self.leak)
        return {name: leak[name] for name in ("code", "operator", "place", "file", "line", "source")} | {"by": self.by}


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check.

    Attributes:
        verdict: `leak` if an answer changes with finite padding, the width or other rows; `warning` if it changes only
            with NaN, Inf or 1e30 in the padding, or with values that get past the finite number of a mask.
        reason: The reason for the verdict, as a sentence.
        leaks: The operators at which leaks begin.
        trials: The results of all trials.
        notes: Further remarks, such as lengths at which the model raises.
        max_length: The widest batch that the model accepts, in steps, at most as requested; None if not known.
        tolerance: The allowed difference of an answer.
        ran: The sizes of the batches that ran.
        min_length: The shortest sequence that the model accepts, in steps: unbatched, it raises for every shorter one.
        target: The name of what was checked.
        served: For a model directory, the promise of its manifest as a sentence; None for other targets.
        fix: What a mend would change; None if the option `suggest` was not set.
        notices: What a user should know about how the model was read.
        ignored: The leaks that are not in `leaks`, because an option or a comment says so.
    """

    verdict: Verdict
    reason: str
    leaks: tuple[Leak, ...] = ()
    trials: tuple[TrialResult, ...] = ()
    notes: tuple[str, ...] = ()
    max_length: int | None = None
    tolerance: float = ROUNDING
    ran: CheckedSizes = CheckedSizes()
    min_length: int = 1
    target: str = ""
    served: str | None = None
    fix: Suggestion | None = None
    notices: tuple[str, ...] = ()
    ignored: tuple[IgnoredLeak, ...] = ()

    @property
    def padding_safe(self) -> bool | None:
        """Whether every answer stays within the tolerance; None if the model is uncheckable.

        Ignored leaks count, except those of rules that are only warnings.
        """
        if self.verdict == "uncheckable":
            return None
        errors = (ignored for ignored in self.ignored if rules()[ignored.leak.code].severity == "error")
        return self.verdict != "leak" and not any(errors)

    @property
    def batch_invariant(self) -> bool | None:
        """Whether every answer has the same bits in all trials; None if the model is uncheckable."""
        if not self.padding_safe:
            return self.padding_safe
        return all(
            result.difference == 0 and not result.is_rounding for result in self.trials if result.difference is not None
        )

    def exit_code(self, *, strict: bool = False) -> int:
        """0: no leak; 1: a leak (with `strict`, a warning too); 2: not checkable."""
        if self.verdict == "uncheckable":
            return 2
        return int(self.verdict == "leak" or (strict and self.verdict == "warning"))

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary of JSON values, as `lengthwise check --json` prints it; infinity becomes null."""
        fix = {} if self.fix is None else {"fix": self.fix.as_json()}
        return {
            "target": self.target,
            "verdict": self.verdict,
            "reason": self.reason,
            "padding_safe": self.padding_safe,
            "batch_invariant": self.batch_invariant,
            "leaks": [*map(_leak_as_json, self.leaks)],
            "ignored": [ignored.as_json() for ignored in self.ignored],
            "trials": [result.as_json() for result in self.trials],
            "notes": list(self.notes),
            "min_length": self.min_length,
            "max_length": self.max_length,
            "ran": {name: list(sizes) for name, sizes in asdict(self.ran).items()},
            "notices": list(self.notices),
        } | fix


def _leak_as_json(leak: Leak) -> dict[str, Any]:
    """A leak as JSON values."""
    return {
        "code": leak.code,
        "operator": leak.operator,
        "kind": leak.kind,
        "place": leak.layer or None,
        **location_as_json(leak.location),
        "cause_at": leak.cause_at,
        "cause": leak.cause.why,
        "fix": leak.cause.fix,
        "difference": finite(leak.difference),
        "trial": leak.trial,
    }


def level_of(report: Report) -> Severity:
    """The level of a report's leaks: `error` if its verdict is `leak`, otherwise `warning`."""
    return "error" if report.verdict == "leak" else "warning"


def rule_without_leak(report: Report) -> LeakRule:
    """The rule that SARIF and annotations show for a report without a leak: not checked, or any other cause."""
    return NOT_CHECKED if report.verdict == "uncheckable" else rules()[OTHER]


def as_ranges(sizes: Sequence[int]) -> str:
    """Ascending sizes as text: `3, 7, 9 to 12`; three or more consecutive ones are shortened."""
    runs: list[list[int]] = []
    for size in sizes:
        if runs and size == runs[-1][-1] + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    texts = (f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return ", ".join(texts)


_COLOURS: Final[dict[Verdict, str]] = {"sound": "green", "leak": "red", "warning": "yellow", "uncheckable": "magenta"}


def on_terminal(report: Report) -> RenderableType:
    """A report for the terminal, to be printed without cropping: verdict, trials, leaks with a fix, and a mend."""
    parts: list[RenderableType] = [
        Text.assemble((report.verdict, f"bold {_COLOURS[report.verdict]}"), f"  {report.target}: {report.reason}")
    ]
    if report.padding_safe is not None:
        parts.append(Text(level_text(report)))
    if report.ignored:
        parts.append(Text(ignored_text(report)))
    if report.ran.rows:
        parts.append(Text(tested_sizes_text(report)))
    if report.trials:
        table = Table("trial", Column("the answer moves by", justify="right"), "", box=None, pad_edge=False)
        for result in one_per_kind(report.trials):
            remark = "" if result.passed else ("moved" if result.raised is None else "raised")
            table.add_row(result.name, number(result.difference), remark, style=None if result.passed else "red")
        parts += ["", table]
        if any(result.passed and result.difference for result in report.trials):
            parts.append(Text(f"{tolerance_text(report.tolerance)}{f'; {report.served}' if report.served else ''}."))
    parts += [Text(f"note: {note}") for note in report.notes]
    for leak in report.leaks:  # last, where a terminal shows them
        parts += ["", *_leak_lines(leak)]
    return Group(*parts, *(() if report.fix is None else (report.fix.on_terminal(report),)))


def summary(reports: Sequence[Report]) -> RenderableType:
    """A table of several reports for the terminal, and the number of each verdict."""
    table = Table("target", "verdict", "rules", "ignored", box=None, pad_edge=False)
    for report in reports:
        codes = ", ".join(dict.fromkeys(leak.code for leak in report.leaks))
        verdict = Text(report.verdict, _COLOURS[report.verdict])
        table.add_row(Text(report.target), verdict, codes, str(len(report.ignored) or ""))
    verdicts = Counter(report.verdict for report in reports)
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in _COLOURS if verdicts[verdict])
    return Group("", table, Text(f"{counted(len(reports), 'target')}: {counts}"))


def worst_of(exit_codes: Sequence[int]) -> int:
    """The exit code for several reports: 1 (a leak) before 2 (not checked), so that a leak is not hidden."""
    return 1 if 1 in exit_codes else max(exit_codes)


def level_text(report: Report) -> str:
    """A sentence with the level that a report shows: padding-safe, batch-invariant, or neither.

    A model that is not batch-invariant in torch may be so as a graph in the kernels of the service.
    """
    if not report.padding_safe:
        return "level: not padding-safe, as an answer moves by more than the tolerance"
    if report.batch_invariant:
        return "level: padding-safe and batch-invariant, as every answer has the same bits in all trials"
    return (
        "level: padding-safe, but not batch-invariant as it was run here: answers stay within the tolerance, their "
        "bits do not; `export` measures the bits of the graph that it publishes, as the service runs it"
    )


def ignored_text(report: Report) -> str:
    """A sentence with the leaks that are ignored."""
    listed = "; ".join(map(str, report.ignored))
    return f"ignored: {counted(len(report.ignored), 'leak')} ({listed}); what they hide is not looked for"


def tested_sizes_text(report: Report) -> str:
    """A sentence with the sizes of the batches that ran."""
    rows, widths, lengths = map(as_ranges, asdict(report.ran).values())
    return f"ran: {rows} rows, widths of {widths}, sequences of {lengths} steps"


def tolerance_text(tolerance: float) -> str:
    """A sentence with the tolerance."""
    return f"Up to {tolerance:.2g} is rounding: another width or number of rows changes the order of sums"


def one_per_kind(results: Sequence[TrialResult]) -> Iterator[TrialResult]:
    """Yields one result for each kind of change: its first failed trial, or its first trial if all passed.

    It has the largest difference of the kind. Its name counts the other failed trials, or the others if all passed.
    """
    for change in CHANGES:
        of_kind = [result for result in results if result.change == change]
        failed = [result for result in of_kind if not result.passed]
        if named := failed or of_kind:
            others = f", and {len(named) - 1} more" if len(named) > 1 else ""
            share = f" ({len(failed)} of {len(of_kind)} did not hold)" if failed and len(of_kind) > 1 else ""
            largest = max((result.difference for result in of_kind if result.difference is not None), default=None)
            yield replace(named[0], name=f"{named[0].name}{others}{share}", difference=largest)


def _leak_lines(leak: Leak) -> Iterator[RenderableType]:
    """Yields the paragraphs of a leak for the terminal: its operator and line, the rule and why, and the fix."""
    location = "" if leak.location is None else f"{leak.location}: "
    moves = f"moves by {number(leak.difference)}" if math.isfinite(leak.difference) else "is not finite"
    yield Text.assemble((f"{location}{leak.operator}", "bold"), f"  its output {moves} with {leak.trial}")
    if leak.location is not None and leak.location.source:
        yield Text(f" {leak.location.line} | {leak.location.source}", no_wrap=True, overflow="ignore")
    table = Table.grid(padding=(0, 1))  # so that a wrapped sentence stays to the right of its word
    for word, text in (
        ("rule", rules()[leak.code].title),
        ("place", leak.layer),
        ("why", leak.cause.why),
        ("since", f"{leak.since} at {leak.cause_at}" if leak.since else ""),
    ):
        if text:
            table.add_row(Text(f"  {word:<5}", style="bold"), Text(text))
    yield table
    yield Text("  fix", style="bold")
    for line in Syntax("", "python", background_color="default").highlight(leak.cause.fix).split():
        yield Text.assemble(" " * 8, line, no_wrap=True, overflow="ignore")


def number(difference: float | None) -> str:
    """A difference as text: two digits, `not finite`, or `-` for None."""
    if difference is None:
        return "-"
    return f"{difference:.2g}" if math.isfinite(difference) else "not finite"


def finite(difference: float | None) -> float | None:
    """The difference; None if it is not finite, as JSON has finite numbers only."""
    return difference if difference is not None and math.isfinite(difference) else None
