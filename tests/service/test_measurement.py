import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, step_mask
from lengthwise.runtime.manifest import GraphNames, Manifest, Precision, StepInput
from lengthwise.runtime.session import CPU_LABEL, Outputs, Session
from lengthwise.verification import promises
from lengthwise.verification.golden import GoldenDifference
from lengthwise.verification.measurement import (
    MANY_ROWS,
    MANY_SEQUENCES,
    BatchLogits,
    BatchVariations,
    Case,
    measure_cases,
)
from lengthwise.verification.random_sequences import KINDS, ROUNDING, draw

FEATURES = 3


def manifest(
    *, kind: str = "values", task: str = "single-label", missing: str = "refuse", longest: int = 50
) -> Manifest:
    values = StepInput(features=FEATURES, mean=(100.0,) * FEATURES, std=(1.0,) * FEATURES)
    return Manifest(
        name="m",
        version=1,
        input=values if kind == "values" else StepInput(kind="tokens", vocabulary=9),
        labels=("a", "b", "c"),
        task=task,
        missing=missing,
        max_length=longest,
        graph=GraphNames(attention="attention"),
    )


class Model(Session):
    """Stands for a graph: logits are the masked sums of the features; `leak` adds what must not be there."""

    def __init__(self, leak: str = "", *, threads: int = 1, per_step: bool = False) -> None:
        self.leak, self.threads, self.per_step, self.provider = leak, threads, per_step, CPU_LABEL

    @property
    def outputs(self) -> frozenset[str]:
        return frozenset({"logits", "attention"} if self.leak != "no attention" else {"logits"})

    def run(self, batch: PaddedBatch, outputs: object = ("logits",)) -> Outputs:
        mask = step_mask(batch.lengths, batch.width)
        steps = batch.steps if batch.steps.ndim == 3 else np.stack([batch.steps.astype(np.float32)] * FEATURES, axis=2)
        kept = np.where(mask[:, :, None], steps, np.float32(0))
        # One row at a time and without its padding: the sum's order is then the row's own
        sums = np.stack([row[:length].sum(axis=0) for row, length in zip(kept, batch.lengths, strict=True)])
        logits = kept if self.per_step else sums
        attention = (mask / batch.lengths[:, None]).astype(np.float32)
        if self.leak == "padding":
            logits = steps.sum(axis=1)
        if self.leak == "multiplied":
            with np.errstate(invalid="ignore"):
                logits = sums + (steps * ~mask[:, :, None] * np.float32(0)).sum(axis=1)
        if self.leak == "width":
            logits = sums + np.float32(batch.width)
        if self.leak == "company":
            logits = sums + np.float32(1e-3 * batch.rows)
        if self.leak == "position":
            logits = sums + np.arange(batch.rows, dtype=np.float32)[:, None]
        if self.leak == "threads":
            logits = sums + np.float32(self.threads)
        if self.leak == "zeros":
            ends = np.array([np.flatnonzero(row.any(axis=1)).max(initial=0) for row in kept])
            logits = sums + ends[:, None].astype(np.float32)
        if self.leak == "faint attention":
            attention = np.where(mask, attention, np.float32(1e-9))
        if self.leak == "negative zeros":
            attention = np.where(mask, attention, np.float32(-0.0))
        if self.leak == "attention":
            attention = np.full_like(attention, 1 / batch.width)
        return Outputs(logits.astype(np.float32), None if self.leak == "no attention" else attention)


def prove(leak: str = "", described: Manifest | None = None, *, per_step: bool = False) -> list[Case]:
    described = described or manifest()

    def reference(batch: PaddedBatch) -> BatchLogits:
        return Model(per_step=per_step).run(batch).logits

    return measure_cases(lambda threads: Model(leak, threads=threads, per_step=per_step), described, reference, seed=0)


def varied(cases: list[Case]) -> set[str]:
    return {case.varied for case in cases}


def test_a_sound_graph_has_no_failing_case() -> None:
    cases = prove()
    assert promises.failures(cases) == []
    ordinary = {"reference", "company", "width", "padding", "neighbours", "order", "threads", "attention"}
    assert varied(cases) == ordinary | {"at padding"}
    assert {case.provider for case in cases} == {CPU_LABEL}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("leak", "expected"),
    [
        *(("padding", {"padding"}), ("multiplied", {"padding"}), ("width", {"width", "company"})),
        *(("company", {"company", "width"}), ("position", {"company", "order"}), ("threads", {"threads"})),
        *(("zeros", {"reference"}), ("attention", {"attention", "at padding", "width"})),
    ],
)
def test_a_leak_fails_the_cases_that_vary_it(leak: str, expected: set[str]) -> None:
    assert expected <= varied(promises.failures(prove(leak)))


class Among(Model):
    """Sound but for the rows that `moved` picks of a batch: it moves their logits."""

    def __init__(self, moved: Callable[[PaddedBatch, int], NDArray[np.bool_]], threads: int) -> None:
        super().__init__(threads=threads)
        self.moved = moved

    def run(self, batch: PaddedBatch, outputs: object = ("logits",)) -> Outputs:
        found = super().run(batch)
        moved = np.broadcast_to(self.moved(batch, self.threads), batch.rows)
        return Outputs(found.logits + moved[:, None].astype(np.float32), found.attention)


def strangers() -> Callable[[PaddedBatch, int], NDArray[np.bool_]]:
    """Picks the rows that have neighbours, none of which was ever seen alone."""
    alone: set[bytes] = set()

    def among(batch: PaddedBatch, threads: int) -> NDArray[np.bool_]:
        rows = [steps[:length].tobytes() for steps, length in zip(batch.steps, batch.lengths, strict=True)]
        if batch.rows == 1:
            alone.add(rows[0])
        known = np.array([row in alone for row in rows])
        return (batch.rows > 1) & (known.sum() == known)

    return among


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("moved", "only"),
    [
        (strangers(), "every neighbour replaced"),
        (lambda batch, threads: np.array(threads == 2 and batch.rows == 1), "2 threads instead of 1, unbatched"),
        (lambda batch, threads: np.array(threads == 2 and batch.rows > 1), "2 threads instead of 1, batched"),
        (
            lambda batch, threads: (batch.rows > 1) & (batch.lengths > 37) & (batch.lengths < 50),
            f"{MANY_SEQUENCES} sequences of 1 to 49 steps batched",
        ),
        (lambda batch, threads: (batch.lengths < 50) & (batch.lengths.max() == 50), "beside a sequence of 50 steps"),
    ],
)
def test_a_leak_that_one_case_alone_can_see_is_seen(
    moved: Callable[[PaddedBatch, int], NDArray[np.bool_]], only: str
) -> None:
    cases = measure_cases(lambda threads: Among(moved, threads), manifest(), None)
    assert [case.name for case in promises.failures(cases)] == [only]


@pytest.mark.parametrize("tolerance", [None, 0.0, 1.0])
def test_attention_at_padding_is_zero_whatever_is_tolerated(
    tolerance: float | None,
) -> None:
    cases = prove("faint attention")
    assert [case.name for case in promises.failures(cases, tolerance=tolerance)] == ["attention at padding"]
    assert promises.promise(cases).bits


@pytest.mark.parametrize(
    ("leak", "described", "per_step"),
    [
        ("negative zeros", manifest(), False),  # a zero at padding may have a sign
        ("no attention", manifest(), False),
        ("", manifest(task="per-step"), True),
        ("", manifest(longest=4), False),
    ],
    ids=["negative zeros", "no attention", "per step", "short"],
)
def test_other_sound_graphs_have_no_failing_case_either(leak: str, described: Manifest, per_step: bool) -> None:
    cases = prove(leak, described, per_step=per_step)
    assert promises.failures(cases) == []
    assert {"attention", "at padding"} <= varied(cases) or leak == "no attention"
    assert f"{described.max_length} steps batched" in {case.name for case in cases}


def test_tokens_are_verified_with_other_ids_at_padding() -> None:
    cases = prove(described=manifest(kind="tokens"))
    filled = {"padding filled with other ids", "padding filled with the last id"}
    assert {case.name for case in cases if case.varied == "padding"} == filled
    assert promises.failures(prove("padding", manifest(kind="tokens")))


@pytest.mark.parametrize(
    ("leak", "tolerance", "holds"),
    [("multiplied", None, False), ("multiplied", 1e-6, True), ("company", 1e-1, True), ("company", 1e-4, False)],
    ids=["extreme padding", "left to check", "within", "past"],
)
def test_a_tolerance_is_what_may_differ_and_leaves_extreme_padding_to_check(
    leak: str, tolerance: float | None, holds: bool
) -> None:
    assert (promises.failures(prove(leak), tolerance=tolerance) == []) is holds


MOVED = GoldenDifference(sequence=0, length=3, unbatched=0.0, batched=2e-6, between=2e-6, same_bits=False, scale=1.0)


@pytest.mark.parametrize(
    ("leak", "golden", "seen"), [("", [], 0.0), ("company", [], 1e-3 * (max(MANY_ROWS) - 1)), ("", [MOVED], 2e-6)]
)
def test_the_promise_is_bits_or_twice_the_largest_difference_that_was_seen(
    leak: str, golden: list[GoldenDifference], seen: float
) -> None:
    promise = promises.promise(prove(leak), golden)
    assert (promise.provider, promise.bits) == (CPU_LABEL, seen == 0)
    assert promise.seen == pytest.approx(seen, rel=0.05)
    assert promise.tolerance == promises.HEADROOM * promise.seen


def test_a_difference_that_is_not_finite_is_null_in_json() -> None:
    case = Case("x", "padding", math.inf, math.inf, bits=False, provider=CPU_LABEL, extreme=True)
    found = json.loads(json.dumps(case.as_json(), allow_nan=False))
    assert (found["difference"], found["relative"], found["name"]) == (None, None, "x")


def test_sequences_hold_genuine_zero_steps_and_what_may_be_missing() -> None:
    plain = draw(manifest(), [9, 9], 0)
    assert not plain[0][4].any()
    assert not plain[1][-1].any()
    assert plain[0][-1].any()
    assert abs(float(plain[0][0, 0]) - 100) < 10
    with_gaps = draw(manifest(missing="mean"), [40], 0)
    assert np.isnan(with_gaps[0]).any()
    assert not np.isnan(plain[0]).any()


class Shared(Model):
    """As sound as the others, but for what an int8 graph does: its answers depend on the whole of a batch."""

    def run(self, batch: PaddedBatch, outputs: object = ("logits",)) -> Outputs:
        found = super().run(batch)
        return Outputs(found.logits + np.float32(np.abs(batch.steps).mean()), found.attention)


def test_a_model_of_one_row_at_a_time_is_verified_unbatched_and_unpadded() -> None:
    alone = manifest().model_copy(update={"max_batch_rows": 1, "width_multiple": 1})
    together = measure_cases(lambda threads: Shared(threads=threads), manifest(), None)
    assert "reference" not in varied(together)  # there is none
    cases = measure_cases(lambda threads: Shared(threads=threads), alone, lambda batch: Shared().run(batch).logits)
    assert {"company", "width"} <= varied(promises.failures(together))
    assert promises.failures(cases) == []
    assert varied(cases) == {"reference", "company", "neighbours", "order", "threads", "attention"}
    assert not any("batched" in case.name.split() for case in cases)


def test_differences_to_the_source_and_of_batching_have_own_tolerances() -> None:
    cases = measure_cases(lambda _: Model(), manifest(), lambda batch: Model().run(batch).logits + np.float32(0.5))
    assert {case.varied for case in promises.failures(cases)} == {"reference"}
    assert promises.failures(cases, most_from_reference=0.5) == []


@pytest.mark.parametrize(("own_rounding", "holds"), [(0.01, True), (0.0001, False)])
def test_what_the_original_rounds_by_itself_explains_a_difference_at_raw_values(
    own_rounding: float, holds: bool
) -> None:
    """Far from 0 the original answers 0.02 beside its graph, and `own_rounding` beside itself in float64."""

    def off(logits: BatchLogits, batch: PaddedBatch, share: float) -> BatchLogits:
        is_far = (np.abs(batch.steps).max(axis=(1, 2)) > 500)[:, None]
        return logits + np.float32(share) * np.abs(logits).max(axis=1, keepdims=True).clip(1) * is_far

    def reference(batch: PaddedBatch) -> BatchLogits:
        return off(Model().run(batch).logits, batch, 0.02)

    def exact(batch: PaddedBatch) -> BatchLogits:
        return off(reference(batch), batch, own_rounding)

    cases = measure_cases(lambda threads: Model(threads=threads), manifest(), reference, exact=exact)
    (raw,) = [case for case in cases if case.varied == "reference" and case.difference > 1]
    assert raw.amplified == pytest.approx(own_rounding, rel=0.1)
    assert (raw.relative <= ROUNDING) is holds
    assert bool(promises.failures(cases)) is not holds
    (raw,) = [case for case in measure_cases(lambda _: Model(), manifest(), reference) if case.difference > 1]
    assert raw.relative > ROUNDING  # it is not known what float64 answers


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_is_verified_with_raw_values(precision: Precision) -> None:
    described = manifest().model_copy(update={"precision": precision})
    variations = BatchVariations(Model(), described, seed=0)
    assert max(float(np.abs(steps).max()) for steps in variations.sequences) > 500
    more = variations.at_raw_values(lambda batch: Model().run(batch).logits + np.float32(1), "float32", allowed=1e-6)
    told = {kind: case for kind, _, case in more}
    assert set(told) == set(KINDS)
    assert all(case.difference == pytest.approx(1, rel=0.1) and case.relative > 1e-6 for case in told.values())


def test_where_float32_itself_is_ill_conditioned_a_precision_is_not_blamed() -> None:
    def original(batch: PaddedBatch) -> BatchLogits:
        """The last digits of the values are all that counts."""
        return (Model().run(batch).logits * np.float32(1e4)) % np.float32(1)

    class Rounded(Model):
        def run(self, batch: PaddedBatch, outputs: object = ("logits",)) -> Outputs:
            return Outputs(original(batch) + np.float32(0.5), None)

    described = manifest().model_copy(update={"precision": "fp16"})
    cases = [case for *_, case in BatchVariations(Rounded(), described, 0).at_raw_values(original, "float32", 1e-2)]
    assert any(case.amplified > 0.05 and case.relative <= 1e-2 and case.difference == 0.5 for case in cases)
