"""The steps between the graph and its verification that annexes bring: mending, and bits that no batch changes.

This is the only module of core that imports `mending` and `steady_bits`, and only when a step is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lengthwise_export.checking.verdict import Report
from lengthwise_export.options import CheckOptions, ExportOptions
from lengthwise_export.targets.target import Target

if TYPE_CHECKING:
    import onnx
    from rich.console import RenderableType

    from lengthwise.decoding.dataset import Record
    from lengthwise.runtime.manifest import Manifest
    from lengthwise.runtime.session import Session
    from lengthwise_export.checking.recording import Subject
    from lengthwise_export.mending.fix import FixProposal
    from lengthwise_export.mending.mend_target import ProvedMend
    from lengthwise_export.mending.mended_accuracy import MendAccuracy

NOTHING_TO_MEND: Final = "nothing to mend: padding does not change an answer"


def suggestion(read: Target | None, report: Report, options: CheckOptions) -> FixProposal:
    """What a mend of a checked target would change, and whether that is proved."""
    from lengthwise_export.mending.fix import FixProposal
    from lengthwise_export.mending.mend_target import mend_target

    if read is None or (report.verdict == "uncheckable" and not read.blind):
        return FixProposal(False, report.reason)
    if not read.blind and report.verdict != "leak":
        return FixProposal(True, NOTHING_TO_MEND)
    proved = mend_target(
        read.alone or read,
        max_length=options.max_length,
        tolerance=options.tolerance,
        seed=options.seed,
        progress=options.progress,
    )
    return proved.fix


def suggestion_text(fix: FixProposal) -> RenderableType:
    """A suggestion as the command prints it."""
    from lengthwise_export.mending.fix import on_terminal

    return on_terminal(fix)


def suggestion_section(fix: FixProposal | None) -> str:
    """A suggestion as a section of the page; empty without one."""
    if fix is None:
        return ""
    from lengthwise_export.mending.fix_page import as_section

    return as_section(fix)


def mended(read: Target, options: ExportOptions, longest: int) -> ProvedMend:
    """A mend of a user's model, as `export --mend` publishes it if it holds."""
    from lengthwise_export.mending.mend_target import mend_target

    return mend_target(
        read.alone or read,
        max_length=longest,
        opset=options.opset,
        tolerance=options.tolerance or 0.0,
        seed=options.seed,
        progress=options.progress,
    )


def summary(fix: FixProposal) -> str:
    """What a mend changed, in a line."""
    from lengthwise_export.mending.fix import summary

    return summary(fix)


def mend_accuracy(
    original: Subject, session: Session, manifest: Manifest, records: Sequence[Record]
) -> MendAccuracy | None:
    """The accuracy of a mended model beside that of its original; None if no record has a label."""
    from lengthwise_export.mending import mended_accuracy

    return mended_accuracy.measure(original, session, manifest, records)


def with_steady_bits(graph: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, str] | None:
    """A graph that gives the same bits in every batch, with what was rewritten; None if there is none."""
    from lengthwise_export.steady_bits import rewriting

    said: list[str] = []
    steady, rewritten = rewriting.with_steady_bits(graph, manifest, said.append)
    return (steady, said[0]) if rewritten else None
