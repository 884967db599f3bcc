"""Which of two media types an `accept` header prefers (RFC 9110, section 12.5.1)."""

from __future__ import annotations


def prefers(accept: bytes, media_type: bytes, default: bytes) -> bool:
    """Whether an answer is written as `media_type`: it is named, and liked at least as much as the default.

    A range such as `*/*` covers the default only. A part of the header that is malformed is left out.

    Args:
        accept: The header.
        media_type: A media type in lower case.
        default: The media type of the answer otherwise.
    """
    quality = _qualities(accept.lower())
    wanted = quality.get(media_type, 0.0)
    kind = default.partition(b"/")[0]
    others = next((quality[one] for one in (default, kind + b"/*", b"*/*") if one in quality), 0.0)
    return wanted > 0 and wanted >= others


def _qualities(accept: bytes) -> dict[bytes, float]:
    """The quality of each media range in a header, 0 to 1."""
    found: dict[bytes, float] = {}
    for part in accept.split(b","):
        name, *parameters = [one.strip() for one in part.split(b";")]
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith(b"q="):
                quality = _quality(parameter[2:])
        if quality >= 0:
            found[name] = quality
    return found


def _quality(text: bytes) -> float:
    """A quality value; negative where it is malformed."""
    digits = text.replace(b".", b"", 1)
    if not digits.isdigit() or len(text) > 5:  # "0.125" is the longest
        return -1.0
    return quality if (quality := float(text)) <= 1 else -1.0
