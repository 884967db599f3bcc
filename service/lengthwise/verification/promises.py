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
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from lengthwise.errors import PromiseBroken, VerificationError
from lengthwise.runtime.manifest import Manifest, Precision, Promise
from lengthwise.runtime.session import CPU_LABEL, Session
from lengthwise.verification import golden, stored_promises
from lengthwise.verification.golden import Golden, GoldenDifference
from lengthwise.verification.measurement import BatchVariations, Case
from lengthwise.verification.random_sequences import ROUNDING

log = logging.getLogger("lengthwise.promises")

MAX_DIFFERENCE: Final[Mapping[Precision, float]] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 2e-1}
"""Largest difference, relative as above, of a precision from float32, and of a device from the exporter's device.
Larger ones are errors."""
MAX_DIFFERENCE_TF32: Final = 2e-2
"""The same for float32 products in TF32, whose factors are rounded to ten bits, as float16 is."""

_REMEDY: Final = (
    f"if its driver or libraries have changed, remove {stored_promises.FILE} from the model directory: the model is "
    "then verified again"
)

KERNELS: Final = "recurrent_kernels"
"""The key of a manifest's `made` that names the kernels of the recurrent layers in the exporter."""

HEADROOM: Final = 2.0
"""The promised tolerance as a multiple of the largest difference measured: other sequences may differ by more."""


def failures(cases: Sequence[Case], *, tolerance: float | None = None, most: float = ROUNDING) -> list[Case]:
    """The cases that fail: those whose relative difference is above `tolerance` or `most`.

    `tolerance`: None requires the same bits in all cases of batch invariance, as the built-in layers give them. A
    number is the allowed relative difference beyond rounding; extreme padding then decides nothing here (`check`
    warns about it).
    """
    return [case for case in cases if not _passes(case, tolerance, most)]


def _passes(case: Case, tolerance: float | None, most: float) -> bool:
    """Whether a case holds: by equal bits, or within a tolerance."""
    if case.varied == "at padding":
        return case.bits  # a masked softmax gives exactly 0 there, so nothing rounds
    if case.varied == "missing":
        return True  # the exporter verified it before it published the model
    if case.is_invariance and tolerance is None:
        return case.bits
    if case.is_invariance and case.extreme:
        return True
    return case.relative <= (most if case.varied == "reference" else ROUNDING) + (tolerance or 0.0)


def promise(cases: Sequence[Case], differences: Sequence[GoldenDifference] = (), *, golden: float = 0.0) -> Promise:
    """The promise that follows from the measured cases of batch invariance, without those of extreme padding."""
    moved = [case for case in cases if case.is_invariance and not case.extreme]
    bits = all(case.bits for case in moved) and all(one.same_bits for one in differences)
    largest = 0.0 if bits else max([case.difference for case in moved] + [one.between for one in differences])
    return Promise(
        provider=moved[0].provider,
        bits=bits,
        tolerance=HEADROOM * largest,
        seen=largest,
        golden=golden,
        amplified=0.0 if bits else max(case.amplified for case in moved),
    )


def promise_here(
    session: Session, expected: Golden, manifest: Manifest, stored: bytes | None, *, tf32: bool = False
) -> tuple[Promise, list[Case]]:
    """The promise under which a model is served here; if it is new also its cases, for `promises.json`.

    Its golden sequences have been checked against it. `stored` is the content of the model's `promises.json`, if any.

    Raises:
        PromiseBroken: The stored promise of this device, or that of another device than a CPU, is broken. That no
            promise can be made here is a VerificationError (`verify_here`).
    """
    stored_one = stored_promises.find(stored, stored_promises.conditions(manifest, session))
    if (promise_so_far := stored_one or manifest.promise(session.provider)) is not None:
        try:
            golden.check(session, expected, manifest, promise_so_far)
        except PromiseBroken as broken:
            if stored_one is not None:
                raise PromiseBroken(f"{broken}; {_REMEDY}") from broken
            if session.provider != CPU_LABEL:
                raise
            log.warning("%s; it is verified again on this processor", broken)
        else:
            # A promise of a processor says nothing about layers in other kernels than the exporter's, which an old
            # manifest does not name.
            kernels_count = session.provider == CPU_LABEL and session.recurrent
            if stored_one is not None or not kernels_count or session.kernels == manifest.made.get(KERNELS):
                return promise_so_far, []
    most = MAX_DIFFERENCE_TF32 if tf32 else MAX_DIFFERENCE[manifest.precision]
    new_promise, cases = verify_here(session, expected, manifest, most=most)
    result = "the same bits" if new_promise.bits else f"answers within {new_promise.tolerance:.3g}"
    log.info(
        "%s is verified on %s (recurrent kernels: %s): %s batched and unbatched",
        manifest.key,
        session.provider,
        session.kernels,
        result,
    )
    return new_promise, cases


def verify_here(
    session: Session, expected: Golden, manifest: Manifest, *, most: float, seed: int = 0
) -> tuple[Promise, list[Case]]:
    """Measures the cases of batch invariance on the device that will serve, and makes a promise of them.

    `most`: Largest relative difference of a case, and of the golden sequences from their stored logits.

    Raises:
        VerificationError: A case fails, or the golden sequences differ too much from their stored logits.
    """
    cases = list(BatchVariations(session, manifest, seed).invariance())
    if bad := failures(cases, tolerance=most):
        worst = max(bad, key=lambda case: case.relative)
        raise VerificationError(
            f"{manifest.key}: {len(bad)} of {len(cases)} cases of its verification fail on {session.provider}; "
            f"the worst: {worst.name}, {worst.difference:.3g}"
        )
    differences = golden.compare(session, expected, manifest)
    for one in differences:
        if not one.from_stored <= most * one.scale:  # "not <=": NaN fails too
            raise VerificationError(
                f"{manifest.key}: golden sequence {one.sequence} ({one.length} steps) differs on {session.provider} "
                f"from its stored logits by {one.from_stored:.3g}; another device may differ by {most * one.scale:.3g}"
            )
    return promise(cases, differences, golden=HEADROOM * max(one.from_stored for one in differences)), cases
