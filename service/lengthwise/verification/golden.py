"""Golden sequences: a few sequences with the logits that the exporter computed, run again at every load.

`golden.npz` holds three arrays: `steps`, all sequences concatenated (`[steps, features]` float32, or `[steps]`
int64 for tokens); `lengths` `[sequences]` int32; `logits` `[sequences, classes]` float32, or
concatenated `[steps, classes]` for a per-step model. Where the graph has further inputs, their arrays are there under
their names with `beside.` before, each `[sequences, ...]`; a further sequence is padded. Every load runs them through
the padding and the session that will serve. So it checks that this machine's kernels give the verified answers, and
that batching does not change them here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise import files
from lengthwise.errors import PromiseBroken, VerificationError
from lengthwise.padding import LENGTHS, RowInput, Sample, Steps, batches, pad, steps_of
from lengthwise.runtime.answers import by_row
from lengthwise.runtime.feature_names import listed
from lengthwise.runtime.manifest import GOLDEN_FILE, Manifest, Promise
from lengthwise.runtime.session import Session
from lengthwise.verification.random_sequences import largest_difference, scale_of

TOLERANCE = 1e-4
"""Allowed difference of a logit, times max(1, the largest stored |logit|): processor families round differently by
less, and wrong weights differ by more."""

MOST_BYTES: Final = 2**26
"""Largest file that is read, and most bytes of its arrays together: the serving process keeps them. The exporter writes
some kilobytes."""

_ARRAYS = ("steps", "lengths", "logits")
_BESIDE: Final = "beside."  # begins the names of further arrays


@dataclass(frozen=True, slots=True)
class Golden:
    """Sequences with their expected answers."""

    sequences: tuple[RowInput, ...]  # each `[length, features]` float32 or `[length]` int64, or a sample
    logits: tuple[NDArray[np.float32], ...]  # of each sequence, `[classes]`; `[length, classes]` of a per-step model

    def write(self, path: Path) -> None:
        """Writes `golden.npz`; the same golden sequences give the same bytes."""
        per_step = self.logits[0].ndim == 2
        with files.naming(path):
            beside: Any = {f"{_BESIDE}{name}": array for name, array in pad(self.sequences).beside.items()}
            np.savez(
                path,
                steps=np.concatenate([steps_of(sequence) for sequence in self.sequences]),
                lengths=np.asarray([len(steps) for steps in self.sequences], dtype=np.int32),
                logits=np.concatenate(self.logits) if per_step else np.stack(self.logits),
                **beside,
            )

    @classmethod
    def read(cls, path: Path, manifest: Manifest) -> Golden:
        """Reads the file `golden.npz`, and checks its shapes by the manifest.

        Raises:
            VerificationError: It cannot be read, or its arrays have other shapes.
        """
        try:
            content = files.read(path, MOST_BYTES)
        except OSError as error:
            raise VerificationError(f"{path} cannot be read as golden sequences: {error.strerror}") from error
        return cls.of(content, manifest, source=str(path))

    @classmethod
    def of(cls, content: bytes, manifest: Manifest, *, source: str = GOLDEN_FILE) -> Golden:
        """Parses the content of a file `golden.npz`, and checks its shapes by the manifest.

        A file that is malformed, or has other shapes, raises a VerificationError; `source` is its name in the message.
        """
        arrays = _arrays(content, source, [*_ARRAYS, *(f"{_BESIDE}{name}" for name in manifest.inputs_beside)])
        _check_shapes(arrays, manifest, source)
        ends = np.cumsum(arrays["lengths"], dtype=np.int64)[:-1]
        logits = arrays["logits"]
        return cls(
            sequences=_with_beside(np.split(arrays["steps"], ends), arrays, manifest, source),
            logits=tuple(np.split(logits, ends) if manifest.task == "per-step" else logits),
        )


@dataclass(frozen=True, slots=True)
class GoldenDifference:
    """How much one golden sequence's logits differ from the stored ones, and batched from unbatched."""

    sequence: int  # its index
    length: int  # in steps
    unbatched: float  # largest absolute difference of a logit from the stored one, run unbatched
    batched: float  # the same, run in one batch with the other golden sequences
    between: float  # largest absolute difference of a logit between these two runs
    same_bits: bool  # whether these two runs gave the same bits
    scale: float  # the largest stored |logit|, at least 1; rounding errors are relative to it

    @property
    def from_stored(self) -> float:
        """The larger of the two differences from the stored logits, unbatched and batched."""
        return max(self.unbatched, self.batched)


def compare(session: Session, golden: Golden, manifest: Manifest) -> list[GoldenDifference]:
    """Runs the golden sequences, each unbatched and all in one batch; returns the differences for each sequence.

    The logits of both runs are compared with the stored ones, and with each other.
    """
    unbatched = answers(session, golden.sequences, manifest).logits
    batched = answers(session, golden.sequences, manifest, most_rows=manifest.max_batch_rows).logits
    return [
        GoldenDifference(
            sequence=index,
            length=len(steps),
            unbatched=largest_difference(unbatched_logits, expected),
            batched=largest_difference(batched_logits, expected),
            between=largest_difference(batched_logits, unbatched_logits),
            same_bits=batched_logits.tobytes() == unbatched_logits.tobytes(),
            scale=scale_of(expected),
        )
        for index, (steps, expected, batched_logits, unbatched_logits) in enumerate(
            zip(golden.sequences, golden.logits, batched, unbatched, strict=True)
        )
    ]


def check(
    session: Session, golden: Golden, manifest: Manifest, promise: Promise | None = None
) -> list[GoldenDifference]:
    """Runs the golden sequences, and checks the logits against the stored ones and against a promise.

    Args:
        session: The session that runs them.
        golden: The golden sequences, with the stored logits.
        manifest: The manifest of the model.
        promise: The promise; by default that of the manifest for the session's provider. If there is none, batching is
            not checked.

    Returns:
        The differences that were measured, for each golden sequence.

    Raises:
        VerificationError: A sequence's logits are not finite, or differ too much from the stored ones.
        PromiseBroken: Batching changed a sequence's logits by more than was promised.
    """
    promise = promise or manifest.promise(session.provider)
    differences = compare(session, golden, manifest)
    for difference in differences:
        # 1. Against the stored logits: the float32 tolerance, or what the promise allows if that is more
        name = f"{manifest.key}: golden sequence {difference.sequence} ({difference.length} steps)"
        tolerance = 0.0 if promise is None else promise.tolerance
        if promise is not None and promise.amplified:
            # The promise allows for ill-conditioned sequences, such as a constant. Golden sequences are ordinary.
            tolerance = min(tolerance, TOLERANCE * difference.scale)
        allowed = max(TOLERANCE * difference.scale, tolerance, 0.0 if promise is None else promise.golden)
        if difference.from_stored > allowed:
            raise VerificationError(
                f"{name} differs from its stored logits by {difference.unbatched:.3g} unbatched and "
                f"{difference.batched:.3g} batched; {allowed:.3g} is allowed. This is not the verified graph, or other "
                "kernels run it."
            )
        # 2. Batched against unbatched: the same bits, or within the tolerance, whichever is promised
        if promise is not None and not (difference.same_bits or (not promise.bits and difference.between <= tolerance)):
            promised = "the same bits" if promise.bits else f"{tolerance:.3g} at most"
            raise PromiseBroken(
                f"{name} differs by {difference.between:.3g} between batched and unbatched on {session.provider}, "
                f"where {promised} were promised"
            )
    return differences


def answers(
    session: Session, sequences: Sequence[RowInput], manifest: Manifest, *, most_rows: int | None = 1
) -> Golden:
    """Runs sequences in a session; returns them with their logits, as `Golden`.

    Args:
        session: The session.
        sequences: The sequences.
        manifest: The manifest of the model.
        most_rows: The largest number of rows in a batch: 1, the default, for unbatched; None for all in one batch.
    """
    runs = batches(sequences, multiple=manifest.width_multiple, most_rows=most_rows, blank=manifest.blank)
    logits = [row for batch in runs for row in by_row(session.run(batch).logits, batch.lengths, manifest)]
    return Golden(tuple(sequences), tuple(logits))


def _arrays(content: bytes, source: str, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Reads the arrays of the file with these names, without unpickling. Their shapes are not checked yet.

    Raises:
        VerificationError: The file is malformed, too large, or lacks an array.
        ValueError: It is caught here, like every other error, and becomes a VerificationError.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())  # no more is decompressed
            if size > MOST_BYTES:
                raise ValueError(f"its arrays have {size} bytes, and at most {MOST_BYTES} are read")
            for name in names:
                if f"{name}.npy" not in archive.namelist():
                    raise ValueError(f"it has no array {name!r}")
                file = io.BytesIO(archive.read(f"{name}.npy"))
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)  # type: ignore[no-untyped-call]
                if file.read(1):
                    raise ValueError(f"{name}.npy has more bytes than its array")
    except Exception as error:  # zipfile, zlib and numpy raise many types for a malformed file
        raise VerificationError(f"{source} cannot be read as golden sequences: {error}") from error
    return arrays


def _check_shapes(arrays: dict[str, NDArray[Any]], manifest: Manifest, source: str) -> None:
    """Checks that the types and shapes of the arrays fit each other and the manifest.

    Raises:
        VerificationError: An array does not fit; the message names the first of them.
    """
    steps, lengths, logits = (arrays[name] for name in _ARRAYS)
    if lengths.dtype != np.int32 or lengths.ndim != 1 or not len(lengths) or int(lengths.min()) < manifest.min_length:
        raise VerificationError(f"{source}: lengths must be int32 [sequences], each at least {manifest.min_length}")
    total = int(lengths.sum(dtype=np.int64))
    rows = total if manifest.task == "per-step" else len(lengths)
    expected_steps = (
        ("int64", (total,)) if manifest.input.kind == "tokens" else ("float32", (total, manifest.input.features))
    )
    for name, array, (kind, shape) in (
        ("steps", steps, expected_steps),
        ("logits", logits, ("float32", (rows, manifest.classes))),
    ):
        if (str(array.dtype), array.shape) != (kind, shape):
            raise VerificationError(
                f"{source}: {name} are {array.dtype} {array.shape}, lengths and manifest say {kind} {shape}"
            )


def _with_beside(
    steps: Sequence[Steps], arrays: Mapping[str, NDArray[Any]], manifest: Manifest, source: str
) -> tuple[RowInput, ...]:
    """Puts what the file has beside the steps of each sequence to them; without it, the steps are the sequences.

    Raises:
        VerificationError: An array has another type or shape than the manifest says, or a length is not of its steps.
    """
    if manifest.blank is None:
        return tuple(steps)
    beside = {name: arrays[f"{_BESIDE}{name}"] for name in manifest.inputs_beside}
    expected = pad([manifest.blank] * len(steps)).beside
    for name, array in beside.items():
        fixed = slice(2, None) if name in manifest.further else slice(1, None)  # the axes of a size that is known
        form = (array.dtype, len(array), array.ndim, array.shape[fixed])
        if form != (expected[name].dtype, len(steps), expected[name].ndim, expected[name].shape[fixed]):
            raise VerificationError(f"{source}: {name} is {array.dtype} {array.shape}, and not as the manifest says")
    ends = {name: beside[LENGTHS.format(name)] for name in manifest.further}
    if any(not ((lengths >= 1) & (lengths <= beside[name].shape[1])).all() for name, lengths in ends.items()):
        raise VerificationError(f"{source}: a length of {listed([*ends])} is not of its steps")
    return tuple(
        Sample(
            one,
            {name: beside[name][row] for name in manifest.blank.beside},
            {name: beside[name][row, : lengths[row]] for name, lengths in ends.items()},
        )
        for row, one in enumerate(steps)
    )
