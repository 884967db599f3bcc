"""Other ways to call a model, tried where the way that was said raises or leaks: which of them would be right.

Nothing is concluded from them but a sentence: the caller says how a model is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from lengthwise_export.tracing.call_signature import ArgumentFormat, CallSignature, Role

_FORMS: Final[dict[ArgumentFormat, str]] = {
    "float mask": "where its mask is float32, and it is given a bool mask: begin forward with mask = mask.to(x.dtype)",
    "int64 mask": "where its mask is int64, and it is given a bool mask: begin forward with mask = mask.long()",
    "float lengths": "where its lengths are float32, and it is given int64: begin forward with lengths = "
    "lengths.to(x.dtype)",
    "share of the width": "where its lengths are shares of the width, and it is given steps (int64): begin forward "
    "with lengths = lengths / x.size(1)",
    "share of the longest": "where its lengths are shares of the longest, and it is given steps (int64): take them "
    "from the width, which no neighbour changes, and begin forward with lengths = lengths / x.size(1)",
}


@dataclass(frozen=True, slots=True)
class AlternativeCall:
    """Another way to call a module.

    Attributes:
        signature: The way.
        runs: When it runs, and what to say or write then: the end of a sentence.
        is_option: Whether an option says it; else the module's own code must change.
    """

    signature: CallSignature
    runs: str
    is_option: bool = True


def alternative_calls(signature: CallSignature) -> Iterator[AlternativeCall]:
    """The ways in which a module may be meant to be called, apart from this one."""
    if signature.form != "as promised":
        return
    plain = replace(signature, time_first=False, channels_first=False, classes_first=False, features_axis=True)
    if not signature.channels_first:
        yield AlternativeCall(
            replace(plain, channels_first=True),
            "where steps are [rows, features, width]: if that is meant, say --channels-first",
        )
    if not signature.time_first:
        yield AlternativeCall(
            replace(plain, time_first=True),
            "where steps are [width, rows, features]: if that is meant, say --time-first",
        )
    if signature.time_first or signature.channels_first:
        said = "--time-first" if signature.time_first else "--channels-first"
        yield AlternativeCall(plain, f"where steps are [rows, width, features]: if that is meant, leave {said} out")
    if signature.second in ("mask", "padding-mask"):
        other: Literal["mask", "padding-mask"] = "padding-mask" if signature.second == "mask" else "mask"
        place = "padding" if other == "padding-mask" else "valid steps"
        names: tuple[tuple[Role, str | None], ...] = tuple(
            (role if role == "steps" else other, name) for role, name in signature.arguments
        )
        yield AlternativeCall(
            replace(signature, second=other, arguments=names),
            f"where its mask is true at {place}: if that is meant, say --second {other}",
        )
    for form, runs in _FORMS.items():
        if ("mask" in form) == (signature.second in ("mask", "padding-mask")) or signature.second == "both":
            yield AlternativeCall(replace(signature, form=form), runs, is_option=False)
