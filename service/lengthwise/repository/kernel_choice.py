"""Which kernels run a model's recurrent layers on a CPU: Lengthwise's, or onnxruntime's where those are faster.

Both are timed at load, in turns, in processor time, so that a busy machine delays both alike. Lengthwise's serve unless
onnxruntime's are faster by `MARGIN`: nearer, chance would decide, and Lengthwise's gain more where lengths differ more.
The two round differently, so the choice is stored (`kernels.json`), for the same bits at every load under the same
conditions, and made before the promise, the golden sequences and the costs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from lengthwise.padding import PaddedBatch, pad, rounded_width
from lengthwise.repository import stored_measurements
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.recurrent_kernels import ONNXRUNTIME
from lengthwise.runtime.session import Session
from lengthwise.verification.random_sequences import draw

log = logging.getLogger("lengthwise.kernels")

MARGIN: Final = 1.1  # how many times as long Lengthwise's may take before onnxruntime's serve
_TURNS: Final = 5  # how often each batch runs in each session; twice if the choice is clear then
_CLEAR: Final = 1.5  # a ratio that is so many times `MARGIN` or more, or so many times less, is clear
_SECONDS: Final = 0.15  # after which no further batch is run; runs that take so long differ little
_WIDTH: Final = 32  # longest sequence of the batches
_ROWS: Final = 8  # most rows of the batches


def choose(
    with_kernels: Session, open_plain: Callable[[], Session], manifest: Manifest, stored: bytes | None
) -> tuple[Session, dict[str, Any] | None]:
    """Chooses the session that serves a model: with Lengthwise's kernels, or a plain one with onnxruntime's.

    Args:
        with_kernels: The session with Lengthwise's kernels.
        open_plain: Opens the plain session.
        manifest: The manifest of the model.
        stored: The content of `kernels.json`; None if there is no such file.

    Returns:
        The session; and what to store in `kernels.json`, or None if the choice was stored there already.
    """
    # 1. The stored choice
    conditions = stored_measurements.kernel_conditions(manifest, with_kernels)
    kernels = stored_measurements.read(
        stored, conditions, lambda content: content["kernels"], stored_measurements.KERNELS_FILE
    )
    if kernels in (ONNXRUNTIME, with_kernels.kernels):
        return (open_plain() if kernels == ONNXRUNTIME else with_kernels), None
    # 2. A new choice
    plain = open_plain()
    ratio = time_ratio(with_kernels, plain, manifest)
    session = plain if ratio > MARGIN else with_kernels
    message = "%s: its layers run in the kernels of %s; Lengthwise's take %.2f times as long as onnxruntime's"
    log.info(message, manifest.key, session.kernels, ratio)
    return session, {"conditions": conditions, "kernels": session.kernels, "own_over_onnxruntime": round(ratio, 3)}


def time_ratio(with_kernels: Session, plain: Session, manifest: Manifest) -> float:
    """Measures the run time with Lengthwise's kernels, divided by that of the plain session.

    It is the geometric mean over a few batches of the ratio of their fastest runs. Each batch runs in turn, once at
    least, until `_SECONDS` are over, or each ran twice and the ratio is clear, or each ran `_TURNS` times.
    """
    batches = _batches(manifest)
    fastest = np.full((2, len(batches)), np.inf)  # [sessions, batches], in seconds
    end = with_kernels.clock() + _SECONDS
    for runs, index in enumerate([*range(len(batches))] * _TURNS, 1):
        for times, session in zip(fastest, (with_kernels, plain), strict=True):
            start = session.clock()
            session.run(batches[index])
            times[index] = min(times[index], session.clock() - start)
        own, others = np.maximum(fastest[:, :runs], 1e-9)  # of the batches that ran
        ratio = math.exp(np.log(own / others).mean())
        is_clear = runs >= 2 * len(batches) and not MARGIN / _CLEAR < ratio < MARGIN * _CLEAR
        if is_clear or (runs >= len(batches) and with_kernels.clock() > end):
            break
    return ratio


def _batches(manifest: Manifest) -> list[PaddedBatch]:
    """Makes three random batches for timing: one sequence; several of one length; several of different lengths."""
    longest = min(max(_WIDTH, manifest.min_length), manifest.max_length)
    rows = min(_ROWS, manifest.max_batch_rows or _ROWS)
    mixed = [max(manifest.min_length, round(longest * row / rows)) for row in range(1, rows + 1)]
    width = rounded_width(longest, manifest.width_multiple)
    return [pad(draw(manifest, lengths, 0), width=width) for lengths in ([longest], [longest] * rows, mixed)]
