"""What is promised of company: judged of a proof's cases, and held against the golden sequences at every load.

    the device's own promise, kept ── or the manifest's ──> golden sequences ──> served under it
                       none ──────────> proved here ─────────────┘ and kept

The exporter's proof is of the device that exported. On a device of another kind the service proves the graph itself
before it answers anything: the same bits are promised where no case moved one, else twice the largest difference seen.
A promise of the CPU is taken for every processor, and proved anew where the golden sequences do not keep it, and where
other kernels run its recurrent layers than did for the exporter: with other instructions, or onnxruntime's own. The
device's own promise is never made weaker: a model that breaks it is not served.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import PromiseBroken, VerificationError
from lengthwise.runtime.manifest import Manifest, Precision, Promise
from lengthwise.runtime.session import CPU, Session
from lengthwise.verification import golden, kept_promises
from lengthwise.verification.golden import Difference, Golden
from lengthwise.verification.proof import Case, Trial

log = logging.getLogger("lengthwise.promises")

ROUNDING: Final = 1e-5
"""What float32 summed in another order may differ by, times max(1, the row's largest |logit|)."""

APART: Final[Mapping[Precision, float]] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 2e-1}
"""How far a precision may lie from float32, and a device from the exporter's, likewise: past it something is wrong."""
APART_TF32: Final = 2e-2
"""The same for products of float32 whose factors are rounded to ten bits, as float16 rounds them."""

_REMEDY: Final = (
    f"where its driver or libraries are others now, remove {kept_promises.FILE} from the model directory: it is then "
    "proved anew"
)

KERNELS: Final = "recurrent_kernels"
"""The entry of a manifest's `made` that says whose kernels ran recurrent layers in the exporter's proof."""

HEADROOM: Final = 2.0
"""What is promised, times what was seen: other sequences round otherwise than those of the proof."""


def failures(cases: Sequence[Case], *, tolerance: float | None = None, apart: float = ROUNDING) -> list[Case]:
    """The cases that do not hold.

    Args:
        cases: As measured.
        tolerance: None asks for the same bits wherever nothing but company changed, as the built-in layers give them. A
            number is what may move an answer beyond rounding; extreme padding is then left to `check`, which warns.
        apart: How far the graph may lie from what it was made from.
    """
    return [case for case in cases if not _holds(case, tolerance, apart)]


def _holds(case: Case, tolerance: float | None, apart: float) -> bool:
    if case.varied == "at padding":
        return case.bits  # a masked softmax leaves exactly nothing there: no sum of it rounds
    if case.varied == "missing":
        return True  # the exporter judged it before it published anything
    if case.of_company and tolerance is None:
        return case.bits
    if case.of_company and case.extreme:
        return True
    return case.relative <= (apart if case.varied == "reference" else ROUNDING) + (tolerance or 0.0)


def promise(cases: Sequence[Case], seen: Sequence[Difference] = (), *, golden: float = 0.0) -> Promise:
    """What was measured about a sequence alone against the same in company, without extreme padding.

    Args:
        cases: The proof's.
        seen: What the golden sequences came out as.
        golden: How far an answer may lie from the stored golden logits.
    """
    moved = [case for case in cases if case.of_company and not case.extreme]
    bits = all(case.bits for case in moved) and all(one.bits for one in seen)
    largest = 0.0 if bits else max([case.difference for case in moved] + [one.apart for one in seen])
    return Promise(provider=moved[0].provider, bits=bits, tolerance=HEADROOM * largest, seen=largest, golden=golden)


def held(
    session: Session, expected: Golden, manifest: Manifest, kept: bytes | None, *, tf32: bool = False
) -> tuple[Promise, list[Case]]:
    """The promise under which a model is served here, seen to hold of its golden sequences.

    Args:
        session: Runs the graph.
        expected: The golden sequences.
        manifest: The model's.
        kept: The content of the model's `promises.json`, where it has one.
        tf32: Whether the session rounds the factors of float32 products.

    Returns:
        The promise, and the cases of its proof where it is a new one, to be kept.

    Raises:
        VerificationError: No promise can be made here, or the one that was made is broken; says what moved and how far.
    """
    own = kept_promises.of(kept, kept_promises.conditions(manifest, session))
    known = own or manifest.promise(session.provider)
    if known is not None:
        try:
            golden.check(session, expected, manifest, known)
        except PromiseBroken as broken:
            # The manifest's word for the CPU is of the exporter's processor: this one may be of another family.
            if own is not None:
                raise PromiseBroken(f"{broken}; {_REMEDY}") from broken
            if session.provider != CPU:
                raise
            log.warning("%s; it is proved anew on this processor", broken)
        else:
            if own is not None or not _of_other_kernels(manifest, session):
                return known, []
    found, cases = prove(session, expected, manifest, apart=APART_TF32 if tf32 else APART[manifest.precision])
    what = "the same bits" if found.bits else f"answers within {found.tolerance:.3g}"
    log.info(
        "%s is proved on %s (recurrent kernels: %s): %s alone and in company",
        manifest.key,
        session.provider,
        session.kernels,
        what,
    )
    return found, cases


def keep(directory: Path, session: Session, manifest: Manifest, promise: Promise, cases: Sequence[Any]) -> None:
    """Keeps a new promise in the model's directory, where that can be written: the next start need not prove it.

    Args:
        directory: The model's.
        session: Where the promise holds.
        manifest: The model's.
        promise: What was proved.
        cases: What was measured, as `Case.as_json` writes it.
    """
    try:
        kept_promises.write(directory, kept_promises.conditions(manifest, session), promise, cases)
    except OSError as error:
        log.info("the proof cannot be kept in %s, and is made at every start: %s", directory, error.strerror)


def _of_other_kernels(manifest: Manifest, session: Session) -> bool:
    """Whether other kernels run the recurrent layers than did when the manifest's promise was measured.

    The bits of one kernel say nothing of those of another. A manifest that does not say whose they were is older than
    the entry.
    """
    return session.provider == CPU and session.recurrent and session.kernels != manifest.made.get(KERNELS)


def prove(
    session: Session, expected: Golden, manifest: Manifest, *, apart: float, seed: int = 0
) -> tuple[Promise, list[Case]]:
    """Proves a graph on the device that will serve it.

    Raises:
        VerificationError: A case does not hold, or the golden sequences come out as of another graph.
    """
    cases = list(Trial(session, manifest, seed).all_of_company())
    bad = failures(cases, tolerance=apart)
    if bad:
        worst = max(bad, key=lambda case: case.relative)
        raise VerificationError(
            f"{manifest.key}: {len(bad)} of {len(cases)} cases of its proof do not hold on {session.provider}; "
            f"the worst: {worst.name}, {worst.difference:.3g}"
        )
    seen = golden.compare(session, expected, manifest)
    for one in seen:
        if not (one.alone <= apart * one.size and one.together <= apart * one.size):  # "not <=": NaN fails too
            raise VerificationError(
                f"{manifest.key}: golden sequence {one.sequence} ({one.length} steps) differs on {session.provider} "
                f"from its stored logits by {max(one.alone, one.together):.3g}, where {apart * one.size:.3g} is the "
                "most that another device may round by"
            )
    return promise(cases, seen, golden=HEADROOM * max(max(one.alone, one.together) for one in seen)), cases
