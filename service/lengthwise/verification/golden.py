"""Golden sequences: a few sequences with the logits that the exporter saw, run again at every load.

`golden.npz` holds three plain arrays: `steps`, all sequences end to end (`[steps, features]` float32, or `[steps]`
int64 for tokens); `lengths` `[sequences]` int32; `logits` `[sequences, classes]` float32, or end to end
`[steps, classes]` for a per-step model. A load that runs them through the padding and the session that will serve
shows that this machine's kernels answer what was proved, and that company changes nothing here either.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib import format as numpy_format
from numpy.typing import NDArray

from lengthwise import files
from lengthwise.errors import PromiseBroken, VerificationError
from lengthwise.padding import PaddedBatch, Steps, batches, pad
from lengthwise.runtime.manifest import GOLDEN_FILE, Manifest, Promise
from lengthwise.runtime.session import Session

TOLERANCE = 1e-4
"""Allowed difference, times max(1, |logit|): CPU families round differently, wrong weights are further off."""

npy: Any = numpy_format  # it says no types
MOST_BYTES: Final = 2**28
"""Largest file, and largest array in it, that is read: the exporter writes some kilobytes."""

_ARRAYS = ("steps", "lengths", "logits")


@dataclass(frozen=True, slots=True)
class Golden:
    """Sequences with their expected answers.

    Attributes:
        sequences: Each `[length, features]` float32 or `[length]` int64.
        logits: Of each sequence `[classes]` float32, or `[length, classes]` of a per-step model.
    """

    sequences: tuple[Steps, ...]
    logits: tuple[NDArray[np.float32], ...]

    def write(self, path: Path) -> None:
        """Writes `golden.npz`; the same golden sequences give the same bytes."""
        per_step = self.logits[0].ndim == 2
        np.savez(
            path,
            steps=np.concatenate(self.sequences),
            lengths=np.asarray([len(steps) for steps in self.sequences], dtype=np.int32),
            logits=np.concatenate(self.logits) if per_step else np.stack(self.logits),
        )

    @classmethod
    def read(cls, path: Path, manifest: Manifest) -> Golden:
        """Reads `golden.npz`; nothing in it is unpickled.

        Raises:
            VerificationError: The file cannot be read, or does not hold sequences and logits of the manifest's shapes.
        """
        try:
            content = files.read(path, MOST_BYTES)
        except OSError as error:
            raise VerificationError(f"{path} cannot be read as golden sequences: {error.strerror}") from error
        return cls.of(content, manifest, source=str(path))

    @classmethod
    def of(cls, content: bytes, manifest: Manifest, *, source: str = GOLDEN_FILE) -> Golden:
        """The same of the file's content.

        Raises:
            VerificationError: As `read` says.
        """
        arrays = _arrays(content, source)
        _check_shapes(arrays, manifest, source)
        ends = np.cumsum(arrays["lengths"], dtype=np.int64)[:-1]
        logits = arrays["logits"]
        return cls(
            sequences=tuple(np.split(arrays["steps"], ends)),
            logits=tuple(np.split(logits, ends) if manifest.task == "per-step" else logits),
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one golden sequence came out from its stored logits, and in company from alone.

    Attributes:
        sequence: Its index in the file.
        length: Its steps.
        alone: Largest absolute difference of a logit from the stored one when it ran alone.
        together: Likewise when all golden sequences ran together.
        apart: Likewise between its answers alone and together.
        bits: Whether no bit differed between these two.
        size: The largest stored |logit|, at least 1: what rounding is measured by.
    """

    sequence: int
    length: int
    alone: float
    together: float
    apart: float
    bits: bool
    size: float


def compare(session: Session, golden: Golden, manifest: Manifest) -> list[Difference]:
    """Runs the golden sequences, each alone and all together, and says what came of each."""
    multiple, most_rows = manifest.width_multiple, manifest.max_batch_rows
    together = [
        answer
        for batch in batches(golden.sequences, multiple=multiple, most_rows=most_rows)
        for answer in _answers(session, batch, manifest)
    ]
    differences = []
    for index, (steps, expected, in_company) in enumerate(zip(golden.sequences, golden.logits, together, strict=True)):
        (alone,) = _answers(session, pad([steps], multiple=multiple), manifest)
        differences.append(
            Difference(
                sequence=index,
                length=len(steps),
                alone=_distance(alone, expected),
                together=_distance(in_company, expected),
                apart=_distance(in_company, alone),
                bits=in_company.tobytes() == alone.tobytes(),
                size=max(1.0, float(np.abs(expected).max())),
            )
        )
    return differences


def check(session: Session, golden: Golden, manifest: Manifest, promise: Promise | None = None) -> list[Difference]:
    """Runs the golden sequences, each alone and all together, and holds what comes against the stored logits.

    Args:
        session: Runs the graph.
        golden: The sequences with their stored logits.
        manifest: The model's.
        promise: What holds where the session runs; None for what the manifest says of it.

    Returns:
        What was seen, one entry for each sequence.

    Raises:
        VerificationError: A sequence's logits are not finite or too far off, or company moved them by more than is
            promised; names the sequence and the figures.
    """
    promise = promise or manifest.promise(session.provider)
    differences = compare(session, golden, manifest)
    for one in differences:
        name = f"{manifest.key}: golden sequence {one.sequence} ({one.length} steps)"
        allowed = (
            TOLERANCE * one.size if promise is None else max(TOLERANCE * one.size, promise.tolerance, promise.golden)
        )
        # "not <=" so that NaN fails too
        if not (one.alone <= allowed and one.together <= allowed):
            raise VerificationError(
                f"{name} differs from its stored logits by {one.alone:.3g} alone and {one.together:.3g} in company; "
                f"{allowed:.3g} is allowed. This is not the graph that was proved, or not its kernels."
            )
        if promise is not None and not (one.bits or (not promise.bits and one.apart <= promise.tolerance)):
            promised = "the same bits" if promise.bits else f"{promise.tolerance:.3g} at most"
            raise PromiseBroken(
                f"{name} comes out {one.apart:.3g} apart alone and in company on {session.provider}, where {promised} "
                "were promised"
            )
    return differences


def answers(session: Session, sequences: Sequence[Steps], manifest: Manifest) -> Golden:
    """Makes golden sequences of a session's own answers, each computed alone."""
    logits = []
    for steps in sequences:
        (alone,) = _answers(session, pad([steps], multiple=manifest.width_multiple), manifest)
        logits.append(alone)
    return Golden(tuple(sequences), tuple(logits))


def _answers(session: Session, batch: PaddedBatch, manifest: Manifest) -> Iterator[NDArray[np.float32]]:
    """Each row's logits, without padding."""
    logits = session.run(batch).logits
    for row, length in zip(logits, batch.lengths, strict=True):
        yield row[:length] if manifest.task == "per-step" else row


def _distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")


def _arrays(content: bytes, source: str) -> dict[str, NDArray[Any]]:
    """The arrays of the file, whatever their shapes."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            missing = [name for name in _ARRAYS if f"{name}.npy" not in archive.namelist()]
            if missing:
                raise VerificationError(f"{source}: it has no array {missing[0]!r}")
            return {name: _array(archive, f"{name}.npy") for name in _ARRAYS}
    except VerificationError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have dozens of their own for what is none
        raise VerificationError(f"{source} cannot be read as golden sequences: {error}") from error


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array, no larger than the archive says of it; nothing is unpickled.

    Raises:
        ValueError: It is none, or holds another number of bytes than its own header says.
    """
    size = archive.getinfo(name).file_size  # no more than that is read of it, whatever it inflates to
    if size > MOST_BYTES:
        raise ValueError(f"{name} has {size} bytes, and at most {MOST_BYTES} are read")
    file = io.BytesIO(archive.read(name))
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_column, dtype = read_header(file)
    data = file.read()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{name} does not hold the {dtype} of shape {shape} that its header says")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C")


def _check_shapes(arrays: dict[str, NDArray[Any]], manifest: Manifest, source: str) -> None:
    """Holds the arrays against each other and against the manifest."""
    steps, lengths, logits = (arrays[name] for name in _ARRAYS)
    if lengths.dtype != np.int32 or lengths.ndim != 1 or not len(lengths) or int(lengths.min()) < 1:
        raise VerificationError(f"{source}: lengths must be int32 [sequences], each at least 1")
    total = int(lengths.sum(dtype=np.int64))
    tokens = manifest.input.kind == "tokens"
    shape = (total,) if tokens else (total, manifest.input.features)
    if steps.dtype != (np.int64 if tokens else np.float32) or steps.shape != shape:
        raise VerificationError(
            f"{source}: steps are {steps.dtype} {steps.shape}, lengths and manifest say "
            f"{'int64' if tokens else 'float32'} {shape}"
        )
    rows = total if manifest.task == "per-step" else len(lengths)
    if logits.dtype != np.float32 or logits.shape != (rows, manifest.classes):
        raise VerificationError(
            f"{source}: logits are {logits.dtype} {logits.shape}, lengths and manifest say "
            f"float32 {(rows, manifest.classes)}"
        )
