import io
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import PromiseBroken, VerificationError
from lengthwise.padding import PaddedBatch
from lengthwise.runtime.manifest import GraphNames, Manifest, Promise, StepInput
from lengthwise.runtime.session import CPU_LABEL, Outputs, Session
from lengthwise.verification import golden
from lengthwise.verification.golden import Golden


class Sums(Session):
    """Stands for a graph: a row's logits are the sums of its features over all valid steps, and `shift` more.

    `shift` is given for each run: what a batch of so many rows is off by.
    """

    def __init__(self, *, per_step: bool = False, shift: dict[int, float] | None = None) -> None:
        self.per_step = per_step
        self.shift = shift or {}
        self.provider = CPU_LABEL

    def run(self, batch: PaddedBatch, outputs: object = ("logits",)) -> Outputs:
        steps = batch.steps if batch.steps.ndim == 3 else np.stack([batch.steps, -batch.steps], axis=2)
        sums = steps.astype(np.float32) if self.per_step else steps.sum(axis=1, dtype=np.float32)
        return Outputs(sums + np.float32(self.shift.get(batch.rows, 0.0)))


def manifest(*, kind: str = "values", task: str = "single-label", tolerance: float = 0.0) -> Manifest:
    return Manifest(
        name="m",
        version=1,
        input=StepInput(kind="values", features=2) if kind == "values" else StepInput(kind="tokens", vocabulary=9),
        labels=("a", "b"),
        task=task,
        graph=GraphNames(),
        promises=(Promise(provider=CPU_LABEL, bits=not tolerance, tolerance=tolerance),),
    )


def sequences() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.random((length, 2), dtype=np.float32) for length in (1, 4, 7)]


@pytest.mark.parametrize(
    ("described", "given"),
    [
        (manifest(), sequences()),
        (manifest(task="per-step"), sequences()),
        (manifest(kind="tokens"), [np.array([3, 0, 8])]),
    ],
    ids=["values", "per step", "tokens"],
)
def test_golden_sequences_come_back_from_their_file_which_is_always_the_same(
    tmp_path: Path, described: Manifest, given: list[np.ndarray]
) -> None:
    session = Sums(per_step=described.task == "per-step")
    for name in ("golden.npz", "again.npz"):
        made = golden.answers(session, given, described)
        made.write(tmp_path / name)
    assert (tmp_path / "golden.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    found = Golden.read(tmp_path / "golden.npz", described)
    for one, other in zip((*made.sequences, *made.logits), (*found.sequences, *found.logits), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(golden.check(session, found, described)) == len(given)


def test_a_check_says_how_far_each_sequence_was_off() -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    first, *_ = golden.check(Sums(shift={1: 2**-16}), made, manifest(tolerance=2**-15))
    assert (first.length, first.same_bits) == (1, False)
    assert first.unbatched == first.between == pytest.approx(2**-16, rel=0.01)
    assert first.batched == 0.0


@pytest.mark.parametrize(
    ("shift", "tolerance", "holds"), [(2**-20, 0.0, False), (2**-16, 2**-15, True), (2**-14, 2**-15, False)]
)
def test_batching_changes_no_bit_or_no_more_than_is_promised(shift: float, tolerance: float, holds: bool) -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    with nullcontext() if holds else pytest.raises(PromiseBroken):
        golden.check(Sums(shift={3: shift}), made, manifest(tolerance=tolerance))


def test_rows_that_may_not_run_together_are_checked_one_by_one() -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    assert golden.check(Sums(shift={3: 1.0}), made, manifest().model_copy(update={"max_batch_rows": 1}))
    assert golden.check(Sums(shift={1: 0.01}), made, manifest(tolerance=0.1))  # which is allowed


@pytest.mark.parametrize(
    "session",
    [Sums(shift={1: 0.01}), Sums(shift={3: 0.01}), Sums(shift={1: float("nan")}), Sums(per_step=True)],
    ids=["off alone", "off in company", "not finite", "another shape"],
)
def test_answers_that_are_not_the_stored_ones_fail(session: Sums) -> None:
    with pytest.raises(VerificationError):
        golden.check(session, golden.answers(Sums(), sequences(), manifest()), manifest())


GOOD = {
    "steps": np.zeros((3, 2), np.float32),
    "lengths": np.array([1, 2], np.int32),
    "logits": np.zeros((2, 2), np.float32),
}


def saved(save: Callable[..., None] = np.savez, **changed: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, **{name: array for name, array in (GOOD | changed).items() if array.ndim})
    return file.getvalue()


THIRD = np.zeros(golden.MOST_BYTES // 12 + 4, dtype=np.float32)
"""With as many others, more than may be read."""


@pytest.mark.parametrize(
    "content",
    [
        saved(lengths=np.array([1, 2])),
        saved(lengths=np.array([3, 0], np.int32)),
        saved(lengths=np.array([], np.int32)),
        saved(lengths=np.array([1, 3], np.int32)),
        saved(steps=np.zeros((3, 2))),
        saved(steps=np.zeros((3, 4), np.float32)),
        saved(logits=np.zeros((2, 3), np.float32)),
        saved(logits=np.array([None, None])),
        saved(np.savez_compressed)[:-40],
        *(b"\x93NUMPY\x01\x00", b"PK\x03\x04 nothing", b"\x80\x04."),
        None,
    ],
)
def test_a_malformed_or_absent_file_is_refused_and_never_unpickled(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "golden.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VerificationError):
        Golden.read(path, manifest())


def plain(more: bytes = b"") -> bytes:
    np.save(file := io.BytesIO(), GOOD["logits"])
    return file.getvalue() + more


def longer() -> bytes:
    file = io.BytesIO(saved(logits=np.array(0)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("logits.npy", plain(b"more"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        *((each, "is not a zip file") for each in (b"", b"steps,lengths,logits", plain())),
        (saved(logits=np.array(0)), "has no array 'logits'"),
        (longer(), "logits.npy"),
    ],
)
def test_a_file_of_another_kind_or_without_an_array_is_said_to_be_one(content: bytes, says: str) -> None:
    with pytest.raises(VerificationError, match=says):
        Golden.of(content, manifest())


def test_the_arrays_of_a_file_are_bounded_together() -> None:
    content = saved(np.savez_compressed, steps=THIRD[:, None], lengths=THIRD.astype(np.int32), logits=THIRD[:, None])
    with pytest.raises(VerificationError, match="at most"):
        Golden.of(content, manifest())
