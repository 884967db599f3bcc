"""A mended model to be exported: its graph is the mended one, its reference the original with each sequence alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lengthwise.errors import VerificationError
from lengthwise.verification.measurement import ROUNDING
from lengthwise_export.errors import ExportError, UnmendableError
from lengthwise_export.exporting.candidate import Candidate, from_target, made_from
from lengthwise_export.mending.fix import operators_text
from lengthwise_export.mending.mend_target import ProvedMend, alone


def from_mend(proved: ProvedMend, **options: Any) -> Candidate:
    """A user's model after its mend. Its reference is the original, with each sequence alone and unpadded.

    Args:
        proved: The mend, whose proof holds.
        options: As for `from_target`.

    Raises:
        UnmendableError: It cannot be mended at one operator.
        ExportError: It cannot be mended for another reason.
        VerificationError: The proof does not hold, or the check of the mended graph finds a leak.
        ConfigurationError: As `from_target` does.
    """
    target, original, fix = proved.target, proved.original, proved.fix
    if target is None:
        if fix.operator is not None:
            raise UnmendableError(fix.operator, fix.reason, fix.location)
        if fix.proof is not None:
            raise VerificationError(f"{original.text}: {fix.reason}, so nothing was published")
        raise ExportError("mend", fix.reason)
    source = from_target(target, report=proved.report, **options)
    allowed = 0.0 if fix.proof is None else fix.proof.tolerance - ROUNDING
    made = made_from(original) | {"mended": operators_text(len(fix.changes))}
    return replace(
        source,
        manifest=source.manifest.model_copy(update={"made": made}),
        reference=alone(proved.reference or original.subject, per_step=original.per_step),
        tolerance=max(source.tolerance or 0.0, allowed),
        notices=(*source.notices, *([fix.notice] if fix.notice is not None else [])),
        mend=fix,
        original=original.subject,
    )
