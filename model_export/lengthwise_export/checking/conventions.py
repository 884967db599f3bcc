"""Other ways to call a model, tried where the way that was said raises or leaks: which of them would be right.

Nothing is concluded from them but a sentence: the caller says how a model is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from lengthwise_export.tracing.call_signature import Calling, Form, Role

_FORMS: Final[dict[Form, str]] = {
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
class Other:
    """Another way to call a module.

    Attributes:
        calling: The way.
        runs: When it runs, and what to say or write then: the end of a sentence.
        is_option: Whether an option says it; else the module's own code must change.
    """

    calling: Calling
    runs: str
    is_option: bool = True


def other_callings(calling: Calling) -> Iterator[Other]:
    """The ways in which a module may be meant to be called, apart from this one."""
    if calling.form != "as promised":
        return
    plain = replace(calling, time_first=False, channels_first=False, classes_first=False, features_axis=True)
    if not calling.channels_first:
        yield Other(
            replace(plain, channels_first=True),
            "where steps are [rows, features, width]: if that is meant, say --channels-first",
        )
    if not calling.time_first:
        yield Other(
            replace(plain, time_first=True),
            "where steps are [width, rows, features]: if that is meant, say --time-first",
        )
    if calling.time_first or calling.channels_first:
        said = "--time-first" if calling.time_first else "--channels-first"
        yield Other(plain, f"where steps are [rows, width, features]: if that is meant, leave {said} out")
    if calling.second in ("mask", "padding-mask"):
        other: Literal["mask", "padding-mask"] = "padding-mask" if calling.second == "mask" else "mask"
        place = "padding" if other == "padding-mask" else "valid steps"
        names: tuple[tuple[Role, str | None], ...] = tuple(
            (role if role == "steps" else other, name) for role, name in calling.arguments
        )
        yield Other(
            replace(calling, second=other, arguments=names),
            f"where its mask is true at {place}: if that is meant, say --second {other}",
        )
    for form, runs in _FORMS.items():
        if ("mask" in form) == (calling.second in ("mask", "padding-mask")) or calling.second == "both":
            yield Other(replace(calling, form=form), runs, is_option=False)
