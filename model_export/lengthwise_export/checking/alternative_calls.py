"""Other ways to call a module, such as time-first, tried when a model raises or leaks.

They only add a hint to the report or the error: which option the user may have meant. The check itself always uses the
original call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from lengthwise_export.tracing.call_signature import ArgumentFormat, CallSignature, Role

_FORMATS: Final[dict[ArgumentFormat, str]] = {
    "float mask": "with a float32 mask, but it gets a bool mask: begin forward with mask = mask.to(x.dtype)",
    "int64 mask": "with an int64 mask, but it gets a bool mask: begin forward with mask = mask.long()",
    "float lengths": "with float32 lengths, but it gets int64: begin forward with lengths = lengths.to(x.dtype)",
    "share of the width": "with lengths as shares of the width, but it gets steps (int64): begin forward with "
    "lengths = lengths / x.size(1)",
    "share of the longest": "with lengths as shares of the longest, but it gets steps (int64): divide by the width, "
    "which other rows do not change, and begin forward with lengths = lengths / x.size(1)",
}
"""The end of the sentence "the model runs ..." for each format of the lengths or the mask."""


@dataclass(frozen=True, slots=True)
class AlternativeCall:
    """Another way to call a module.

    Attributes:
        runs: The end of the sentence "the model runs ...", with the option to pass or the code to write.
    """

    signature: CallSignature
    runs: str
    is_option: bool = True


def alternative_calls(signature: CallSignature) -> Iterator[AlternativeCall]:
    """The other ways in which the module may have to be called."""
    if signature.form != "as promised":
        return
    plain = replace(signature, time_first=False, channels_first=False, classes_first=False, features_axis=True)
    if not signature.channels_first:
        yield AlternativeCall(
            replace(plain, channels_first=True),
            "with steps as [rows, features, width]: if that is right, pass --channels-first",
        )
    if not signature.time_first:
        yield AlternativeCall(
            replace(plain, time_first=True),
            "with steps as [width, rows, features]: if that is right, pass --time-first",
        )
    if signature.time_first or signature.channels_first:
        option = "--time-first" if signature.time_first else "--channels-first"
        yield AlternativeCall(plain, f"with steps as [rows, width, features]: if that is right, leave {option} out")
    if signature.second in ("mask", "padding-mask"):
        other: Literal["mask", "padding-mask"] = "padding-mask" if signature.second == "mask" else "mask"
        place = "padding" if other == "padding-mask" else "valid steps"
        names: tuple[tuple[Role, str | None], ...] = tuple(
            (role if role == "steps" else other, name) for role, name in signature.arguments
        )
        yield AlternativeCall(
            replace(signature, second=other, arguments=names),
            f"with a mask that is true at {place}: if that is right, pass --second {other}",
        )
    if signature.second == "none":
        return
    for argument_format, runs in _FORMATS.items():
        if ("mask" in argument_format) == (signature.second in ("mask", "padding-mask")) or signature.second == "both":
            yield AlternativeCall(replace(signature, form=argument_format), runs, is_option=False)
