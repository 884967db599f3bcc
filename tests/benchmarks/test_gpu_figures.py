"""The figures of the GPU benchmark: rates, differences, their page."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks import machine
from benchmarks.gpu import device, isolation, parity, summary, throughput
from benchmarks.gpu.figures import Figures, plain
from lengthwise.padding import PaddedBatch, pad, step_mask
from lengthwise.runtime.session import Outputs


def sequences(*of: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal((length, 2)).astype(np.float32) for length in of]


@dataclass
class Session:
    """Sums each row; with a leak, padding and neighbours too."""

    leak: float = 0.0

    def run(self, batch: PaddedBatch, outputs: object = ()) -> Outputs:
        valid = step_mask(batch.lengths, batch.width)[:, :, None]
        logits = np.where(valid, batch.steps, 0).sum(axis=1)
        if self.leak:
            with np.errstate(all="ignore"):
                logits += np.float32(self.leak) * batch.steps.sum(dtype=np.float32)
        return Outputs(logits.astype(np.float32))


def test_a_rate_counts_sequences_of_every_thread():
    both = threading.Barrier(2, timeout=60)
    calls = itertools.count()

    def work(batch: int) -> int:
        if next(calls) < 2:
            both.wait()  # passes only where two threads are at it
        return batch

    assert throughput.rate(work, [5], seconds=0.0, threads=2) > 0
    assert next(calls) == 2


def test_a_rate_of_something_that_fails_is_an_error():
    def work(_batch: int) -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        throughput.rate(work, [1], seconds=1.0, threads=2)


def test_the_best_of_a_family_is_that_of_the_highest_median():
    rounds = {
        "torch, 64 rows": [
            {"sequences_per_second": 90.0},
            {"sequences_per_second": 10.0},
            {"sequences_per_second": 20.0},
        ],
        "torch, 256 rows": [{"sequences_per_second": 30.0}] * 3,
        "alone": [{"sequences_per_second": 5.0}],
    }
    found = throughput.best(rounds)
    assert found["torch"] == {"of": "torch, 256 rows", "median": 30.0, "low": 30.0, "high": 30.0}
    assert found["alone"]["median"] == 5.0


def test_a_contender_that_fails_is_noted_and_left_out():
    asked = []

    def bad(_sequences: object, _seconds: float) -> dict[str, float]:
        asked.append(1)
        raise ValueError("out of memory")

    figures = Figures()
    found = throughput.in_rounds(
        {"bad": bad, "good": lambda _sequences, _seconds: {"sequences_per_second": 1.0}}, [], 3, 0.1, figures
    )
    assert found == {"good": [{"sequences_per_second": 1.0}] * 3}
    assert len(asked) == 1
    assert figures.values["failures"] == {"bad": "ValueError: out of memory"}


def test_answers_come_in_the_order_of_the_sequences():
    members = sequences(*range(40, 0, -1))
    found = parity.answers(Session(), members, 4)
    assert [row.logits.tolist() for row in found] == [pytest.approx(steps.sum(axis=0), abs=1e-4) for steps in members]


def test_a_difference_is_seen_with_its_size_and_its_class():
    rows = [parity.Row(np.array([1.0, 2.0], dtype=np.float32), None)] * 2
    other = [rows[0], parity.Row(np.array([1.0, 0.5], dtype=np.float32), None)]
    found = parity.compared(other, rows)
    assert (found["logits"], found["equal_bits"], found["other_class"], found["finite"]) == (1.5, 0.5, 0.5, True)


def test_values_that_are_not_finite_are_never_equal():
    nan = [parity.Row(np.array([np.nan], dtype=np.float32), None)]
    found = parity.compared(nan, nan)
    assert (found["equal_bits"], found["finite"]) == (0.0, False)


def test_junk_in_the_padding_of_a_sound_session_changes_no_bit():
    found = isolation.padded_with(Session(), sequences(3, 9, 5), 4, float("nan"))
    assert found["equal_bits"] == 1.0


@pytest.mark.parametrize("junk", isolation.JUNK.values(), ids=isolation.JUNK)
def test_junk_in_the_padding_shows_where_it_leaks(junk: float):
    found = isolation.padded_with(Session(leak=1e-3), sequences(3, 9, 5), 4, junk)
    assert found["equal_bits"] < 1.0


def test_batches_show_where_a_neighbour_leaks():
    members = sequences(3, 9, 5, 12)
    for leak, equal in ((0.0, True), (1e-3, False)):
        session = Session(leak)
        unbatched = [row for steps in members for row in isolation.answer(session, pad([steps]))]
        for batches in isolation.batchings(members, 4, np.random.default_rng(0)).values():
            found = isolation.batched(session, batches, unbatched)
            assert (found["logits"] < 1e-5) == equal


def test_every_kind_of_batches_has_every_sequence_once():
    members = sequences(*range(1, 40))
    for batches in isolation.batchings(members, 4, np.random.default_rng(0)).values():
        assert sorted(place for places, _ in batches for place in places) == list(range(39))


def test_figures_are_merged_and_can_be_written_as_json():
    figures = Figures()
    figures.note(rates={"a": np.float32(1.5)})
    figures.note(rates={"b": np.array([1, 2])}, bad=float("inf"))
    assert figures.values == {"rates": {"a": 1.5, "b": [1, 2]}, "bad": None}
    assert plain((np.bool_(True), {1: float("nan")})) == [True, {"1": None}]


def test_a_device_is_named_as_a_file():
    assert device.slug("NVIDIA H200 (80GB)") == "nvidia-h200-80gb"


def test_a_page_shows_the_figures_of_a_section_that_was_cut_short():
    sections = {"parity": {"status": "cut short", "reason": "its time was over", "figures": {"sequences": 3}}}
    results = {"device": "d", "provider": "cuda", "quick": False, "installed": {}, "machine": machine.facts()}
    text = summary.page(results | {"sections": sections})
    assert "these figures are incomplete" in text
    assert "no figure here is of a GPU" not in text
    assert "- parity: cut short: its time was over" in text
