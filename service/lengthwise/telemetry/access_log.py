"""A line in the log for each inference call, or for a share of them: ids, status and lengths, never a payload."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

log = logging.getLogger("lengthwise.access")

MOST_LENGTHS: Final = 20  # that a line shows; the number of sequences is always shown


class AccessLog:
    """Writes the lines, of a share of the calls; `draw` draws a number from 0 up to 1."""

    def __init__(self, share: float, draw: Callable[[], float] = random.random) -> None:
        self._share = share
        self._draw = draw

    def note(
        self,
        request_id: str,
        call: str,
        status: int,
        seconds: float,
        model: Sequence[str],
        *,
        lengths: Sequence[int],
        reason: str | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Writes a call's line, if it is in the random share; `model` is name and version, or two empty texts."""
        if self._draw() >= self._share:
            return
        name, version = model
        fields: dict[str, Any] = {
            "request_id": request_id,
            "call": call,
            "status": status,
            "duration_ms": round(seconds * 1000, 3),
        }
        if name:
            fields |= {"model": name, "version": version}
        if lengths:
            fields |= {"sequences": len(lengths), "lengths": list(lengths[:MOST_LENGTHS])}
        if reason is not None:
            fields["reason"] = reason
        if trace_id is not None:
            fields["trace_id"] = trace_id
        text = " ".join(f"{key}={_shown(value)}" for key, value in fields.items())
        log.info("%s", text, extra={"fields": fields})


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f'"{value}"' if isinstance(value, str) and " " in value else str(value)
