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


@pytest.mark.parametrize("per_step", [False, True])
def test_golden_sequences_come_back_from_their_file(tmp_path: Path, per_step: bool) -> None:
    described = manifest(task="per-step" if per_step else "single-label")
    made = golden.answers(Sums(per_step=per_step), sequences(), described)
    made.write(tmp_path / "golden.npz")
    found = Golden.read(tmp_path / "golden.npz", described)
    for one, other in zip((*made.sequences, *made.logits), (*found.sequences, *found.logits), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(golden.check(Sums(per_step=per_step), found, described)) == 3


def test_token_sequences_come_back_from_their_file(tmp_path: Path) -> None:
    described = manifest(kind="tokens")
    made = golden.answers(Sums(), [np.array([3, 0, 8])], described)
    made.write(tmp_path / "golden.npz")
    assert Golden.read(tmp_path / "golden.npz", described).sequences[0].tolist() == [3, 0, 8]


def test_the_same_golden_sequences_give_the_same_file(tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        golden.answers(Sums(), sequences(), manifest()).write(tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_a_check_says_how_far_each_sequence_was_off() -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    first, *_ = golden.check(Sums(shift={1: 2**-16}), made, manifest(tolerance=2**-15))
    assert (first.length, first.same_bits) == (1, False)
    assert first.unbatched == first.between == pytest.approx(2**-16, rel=0.01)
    assert first.batched == 0.0


def test_a_bit_that_batching_changes_breaks_a_promise_of_bits() -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    with pytest.raises(PromiseBroken):
        golden.check(Sums(shift={3: 2**-20}), made, manifest())


def test_a_difference_past_the_promised_tolerance_breaks_it() -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    assert golden.check(Sums(shift={3: 2**-16}), made, manifest(tolerance=2**-15))
    with pytest.raises(PromiseBroken):
        golden.check(Sums(shift={3: 2**-14}), made, manifest(tolerance=2**-15))


def test_rows_that_may_not_run_together_are_checked_one_after_the_other() -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    one_by_one = manifest().model_copy(update={"max_batch_rows": 1})
    assert golden.check(Sums(shift={3: 1.0}), made, one_by_one)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_sequence_that_is_off_alone_or_in_company_is_named(rows: int) -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    with pytest.raises(VerificationError):
        golden.check(Sums(shift={rows: 0.01}), made, manifest())


def test_an_answer_that_is_not_finite_fails() -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    with pytest.raises(VerificationError):
        golden.check(Sums(shift={1: float("nan")}), made, manifest())


def test_answers_of_another_shape_fail() -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    with pytest.raises(VerificationError):
        golden.check(Sums(per_step=True), made, manifest())


def test_a_promised_tolerance_is_allowed() -> None:
    made = golden.answers(Sums(), sequences(), manifest())
    assert golden.check(Sums(shift={1: 0.01}), made, manifest(tolerance=0.1))


GOOD = {
    "steps": np.zeros((3, 2), np.float32),
    "lengths": np.array([1, 2], np.int32),
    "logits": np.zeros((2, 2), np.float32),
}


@pytest.mark.parametrize(
    "changed",
    [
        {"lengths": np.array([1, 2])},
        {"lengths": np.array([3, 0], np.int32)},
        {"lengths": np.array([], np.int32)},
        {"lengths": np.array([1, 3], np.int32)},
        {"steps": np.zeros((3, 2))},
        {"steps": np.zeros((3, 4), np.float32)},
        {"logits": np.zeros((2, 3), np.float32)},
        {"logits": np.array([None, None])},
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "golden.npz", **(GOOD | changed))
    with pytest.raises(VerificationError):
        Golden.read(tmp_path / "golden.npz", manifest())


def test_a_file_without_logits_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", steps=GOOD["steps"], lengths=GOOD["lengths"])
    with pytest.raises(VerificationError):
        Golden.read(tmp_path / "golden.npz", manifest())


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04 nothing", b"\x80\x04."])
def test_what_is_no_npz_is_refused_and_never_unpickled(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(content)
    with pytest.raises(VerificationError):
        Golden.read(path, manifest())


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        Golden.read(tmp_path / "golden.npz", manifest())


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    np.savez_compressed(path, **GOOD)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(VerificationError):
        Golden.read(path, manifest())


def test_the_arrays_of_a_file_are_bounded_together(tmp_path: Path) -> None:
    third = golden.MOST_BYTES // 12 + 4
    path = tmp_path / "golden.npz"
    zeros = np.zeros(third, dtype=np.float32)
    np.savez_compressed(path, steps=zeros[:, None], lengths=zeros.astype(np.int32), logits=zeros[:, None])
    with pytest.raises(VerificationError):
        golden.Golden.read(path, manifest())
