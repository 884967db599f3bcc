"""Promises of batch invariance: derived from the measured cases, and checked with the golden sequences at every load.

    a promise of this device (promises.json), or of the manifest ──> golden sequences keep it? ──> served under it
                                                  none, or broken ──> measured here, stored ────────────┘

A promise is valid for one kind of device. It says "the same bits" if no case changed a bit, and else a tolerance:
`HEADROOM` times the largest difference measured. The exporter makes the first promise, on its own device. The service
measures again, before it answers anything:

- on a device of a kind that has no promise;
- on a CPU, if the golden sequences break the manifest's promise: the exporter's processor may be of another family;
- on a CPU, if other kernels run the recurrent layers than in the exporter.

A device's own stored promise is never made weaker: a model that breaks it is not served.

`promises.json` is in the model directory. The exporter does not publish it, so the manifest has no digest of it. Each
of its entries has a promise, the measured cases, and the conditions under which it is valid: provider and device,
kernels, processor, onnxruntime and graph. If the directory is not writable, every start measures again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lengthwise import files
from lengthwise.errors import PromiseBroken, VerificationError
from lengthwise.runtime.installation import processor
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest, Precision, Promise
from lengthwise.runtime.opening import RUNTIME_VERSION
from lengthwise.runtime.session import CPU_LABEL, Session
from lengthwise.verification import golden
from lengthwise.verification.golden import Golden, GoldenDifference
from lengthwise.verification.measurement import BatchVariations, Case
from lengthwise.verification.random_sequences import ROUNDING

log = logging.getLogger("lengthwise.promises")

FILE: Final = "promises.json"
MOST_BYTES: Final = 2**24
"""Largest file beside a model that is read, in bytes: of promises, costs and kernels."""
MAX_DIFFERENCE: Final[Mapping[Precision, float]] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 2e-1}
"""Largest relative difference (`Case.relative`) of a precision from float32, and of a device from the exporter's.
Larger ones are errors."""
MAX_DIFFERENCE_TF32: Final = 2e-2
"""The same for float32 products in TF32, whose factors are rounded to ten bits, as float16 is."""

_REMEDY: Final = (
    f"if its driver or libraries have changed, remove {FILE} from the model directory: the model is then verified again"
)

KERNELS: Final = "recurrent_kernels"
"""The key of a manifest's `made` that names the kernels of the recurrent layers in the exporter."""

HEADROOM: Final = 2.0
"""The promised tolerance as a multiple of the largest difference measured: other sequences may differ by more."""


def failures(
    cases: Sequence[Case], *, tolerance: float | None = None, most_from_reference: float = ROUNDING
) -> list[Case]:
    """Selects the cases that do not hold.

    Args:
        cases: The measured cases.
        tolerance: None requires the same bits in all cases of batch invariance, as the built-in layers give them. A
            number is the allowed relative difference beyond rounding; cases of extreme padding then always hold,
            because `check` warns about them.
        most_from_reference: The allowed relative difference from the reference, to which a tolerance is added.
    """
    return [case for case in cases if not _holds(case, tolerance, most_from_reference)]


def _holds(case: Case, tolerance: float | None, most_from_reference: float) -> bool:
    """Whether a case holds, with the tolerances of `failures`."""
    if case.varied == "at padding":
        return case.bits  # a masked softmax gives exactly 0 there, so nothing rounds
    if case.varied == "missing":
        return True  # only the exporter measures this case, and it publishes no model for which the case fails
    if case.is_invariance and tolerance is None:
        return case.bits
    if case.is_invariance and case.extreme:
        return True
    return case.relative <= (most_from_reference if case.varied == "reference" else ROUNDING) + (tolerance or 0.0)


def promise(cases: Sequence[Case], differences: Sequence[GoldenDifference] = (), *, golden: float = 0.0) -> Promise:
    """Derives a promise from the measured cases of batch invariance; those of extreme padding do not count.

    Args:
        cases: The measured cases.
        differences: The measured differences of the golden sequences.
        golden: How much the golden sequences may differ from their stored logits at later loads.
    """
    invariance = [case for case in cases if case.is_invariance and not case.extreme]
    bits = all(case.bits for case in invariance) and all(difference.same_bits for difference in differences)
    largest = (
        0.0
        if bits
        else max([case.difference for case in invariance] + [difference.between for difference in differences])
    )
    return Promise(
        provider=invariance[0].provider,
        bits=bits,
        tolerance=HEADROOM * largest,
        seen=largest,
        golden=golden,
        amplified=0.0 if bits else max(case.amplified for case in invariance),
    )


def promise_here(
    session: Session, expected: Golden, manifest: Manifest, stored: bytes | None, *, tf32: bool = False
) -> tuple[Promise, list[Case]]:
    """Determines the promise under which a model is served on this machine.

    1. The promise that is stored for this device, if there is one: the golden sequences must keep it.
    2. Otherwise the manifest's promise for this device, if the golden sequences keep it, and it was measured with the
       same kernels.
    3. Otherwise a new one: the model is verified again here. But a GPU must keep the manifest's promise.

    Args:
        session: The session that will serve.
        expected: The golden sequences of the model.
        manifest: Its manifest.
        stored: The content of its `promises.json`; None if there is no such file.
        tf32: Whether products of float32 are computed in TF32.

    Returns:
        The promise; and the measured cases, to be stored in `promises.json`: none unless the model was verified again.

    Raises:
        PromiseBroken: The golden sequences break the stored promise, or on a GPU the manifest's. If the model cannot be
            verified here, `verify_here` raises a VerificationError.
    """
    # 1. A known promise
    own_promise = stored_promise(stored, conditions(manifest, session))
    if (known_promise := own_promise or manifest.promise(session.provider)) is not None:
        try:
            golden.check(session, expected, manifest, known_promise)
        except PromiseBroken as broken:
            if own_promise is not None:
                raise PromiseBroken(f"{broken}; {_REMEDY}") from broken
            if session.provider != CPU_LABEL:
                raise
            log.warning("%s; it is verified again on this processor", broken)
        else:
            # The manifest's promise for a CPU is valid only for the kernels that the exporter measured it with. Old
            # manifests do not name them.
            depends_on_kernels = session.provider == CPU_LABEL and session.recurrent
            if own_promise is not None or not depends_on_kernels or session.kernels == manifest.made.get(KERNELS):
                return known_promise, []
    # 2. No known promise is valid here: measure.
    most_allowed = MAX_DIFFERENCE_TF32 if tf32 else MAX_DIFFERENCE[manifest.precision]
    new_promise, cases = verify_here(session, expected, manifest, most_allowed=most_allowed)
    result = "the same bits" if new_promise.bits else f"answers within {new_promise.tolerance:.3g}"
    log.info(
        "%s is verified on %s (kernels: %s): %s batched and unbatched",
        manifest.key,
        session.provider,
        session.kernels,
        result,
    )
    return new_promise, cases


def verify_here(
    session: Session, expected: Golden, manifest: Manifest, *, most_allowed: float, seed: int = 0
) -> tuple[Promise, list[Case]]:
    """Measures the cases of batch invariance on the device that will serve; returns a new promise, and these cases.

    Args:
        session: The session that will serve.
        expected: The golden sequences, with the stored logits.
        manifest: The manifest of the model.
        most_allowed: The largest relative difference that is allowed, of a case, and of a golden sequence from its
            stored logits.
        seed: The seed of the random sequences.

    Raises:
        VerificationError: A case fails, or the golden sequences differ too much from their stored logits.
    """
    cases = list(BatchVariations(session, manifest, seed).invariance())
    if bad := failures(cases, tolerance=most_allowed):
        worst = max(bad, key=lambda case: case.relative)
        raise VerificationError(
            f"{manifest.key}: {len(bad)} of {len(cases)} cases of its verification fail on {session.provider}; "
            f"the worst: {worst.name}, {worst.difference:.3g}"
        )
    differences = golden.compare(session, expected, manifest)
    for difference in differences:
        allowed = most_allowed * difference.scale
        if difference.from_stored > allowed:
            raise VerificationError(
                f"{manifest.key}: golden sequence {difference.sequence} ({difference.length} steps) differs on "
                f"{session.provider} from its stored logits by {difference.from_stored:.3g}; another device may differ "
                f"by {allowed:.3g}"
            )
    largest = max(difference.from_stored for difference in differences)
    return promise(cases, differences, golden=HEADROOM * largest), cases


def conditions(manifest: Manifest, session: Session) -> dict[str, str]:
    """The conditions under which a promise of this session is valid; under others, it has to be measured again."""
    return {
        "provider": session.provider,
        "recurrent_kernels": session.kernels,
        "processor": processor(),
        "onnxruntime": RUNTIME_VERSION,
        "graph": manifest.digests.get(GRAPH_FILE, ""),
    }


def stored_promise(content: bytes | None, required: dict[str, str]) -> Promise | None:
    """Returns the stored promise that is valid under the required conditions; None if there is none.

    Args:
        content: The content of `promises.json`; None if there is no such file.
        required: The conditions here, as `conditions` returns them.
    """
    promises = (entry["promise"] for entry in _entries(content, FILE) if entry["conditions"] == required)
    return next(map(Promise.model_validate, promises), None)


def store(directory: Path, valid_under: dict[str, str], promise: Promise, cases: Sequence[Mapping[str, Any]]) -> None:
    """Stores a promise and its measured cases in `promises.json`, atomically.

    It replaces a stored promise that is valid under the same conditions; promises under other conditions stay.
    """
    path = directory / FILE
    entries = [
        entry
        for entry in _entries(files.read_if_any(path, MOST_BYTES), str(path))
        if entry["conditions"] != valid_under
    ]
    entries.append({"conditions": valid_under, "promise": promise.model_dump(), "cases": list(cases)})
    files.replace(path, f"{json.dumps({'promises': entries}, indent=1, allow_nan=False)}\n".encode())


def _entries(content: bytes | None, source: str) -> list[dict[str, Any]]:
    """Parses the entries of `promises.json`.

    Returns none if there is no file (`content` is None). If it is malformed, logs a warning, and returns none either.
    `source` is the file's name for the log.
    """
    if content is None:
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(content)["promises"]
        for entry in entries:
            entry["conditions"].items()
            Promise.model_validate(entry["promise"])
        json.dumps(entries, allow_nan=False)
    except Exception as error:  # no digest protects the file, so it may hold anything; the model can be verified again
        log.warning("%s is ignored, the model is verified again: %.200r", source, error)
        return []
    return entries
