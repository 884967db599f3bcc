"""What the measurement of a GPU computes by itself: lengths, partitions, rates, differences, shares."""

from __future__ import annotations

import itertools
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.gpu import busy, contenders, device, isolation, latency, memory, parity, summary, throughput
from benchmarks.gpu.figures import Figures, plain
from benchmarks.limits import partition
from lengthwise.batching.cost import CostTable
from lengthwise.batching.plan import BatchLimits
from lengthwise.bench.workload import draw_lengths
from lengthwise.padding import PaddedBatch, pad, step_mask
from lengthwise.runtime.manifest import Manifest, StepInput
from lengthwise.runtime.session import Outputs

TABLE = CostTable([1, 4, 5, 8, 64], [4, 400], np.array([[6, 204], [7, 208], [11, 408], [12, 416], [100, 3300]]) / 1e6)


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


def test_the_best_partition_is_that_of_the_benchmark_beside_peers():
    drawn = draw_lengths("lognormal:50,0.7", 200, 300, np.random.default_rng(0))
    work = [np.zeros((length, 1), dtype=np.float32) for length in drawn]
    found = contenders.best_partition(work, TABLE, multiple=4, rows=64, cost_steps=10**9, seed=0)
    manifest = Manifest(name="m", version=1, input=StepInput(features=1), labels=("a",))
    expected = partition(work, TABLE, manifest)
    assert sorted(batch.steps.shape for batch in found) == sorted(pad(group).steps.shape for group in expected)


def test_a_batch_of_the_best_partition_keeps_within_its_cost():
    work = [np.zeros((length, 1), dtype=np.float32) for length in (400, 100, 100, 4, 4)]
    found = contenders.best_partition(work, TABLE, multiple=4, rows=64, cost_steps=100, seed=0)
    assert max(batch.rows for batch in found if batch.width >= 100) == 1
    assert sum(batch.rows for batch in found) == 5


def test_a_rate_counts_sequences_of_every_thread():
    both = threading.Barrier(2, timeout=60)
    calls = itertools.count()

    def work(batch: int) -> int:
        if next(calls) < 2:
            both.wait()  # passes only where two threads are at it
        return batch

    assert contenders.rate(work, [5], seconds=0.0, threads=2) > 0
    assert next(calls) == 2


def test_a_rate_of_something_that_fails_is_an_error():
    def work(_batch: int) -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        contenders.rate(work, [1], seconds=1.0, threads=2)


def test_every_sequence_that_waits_is_answered_once_and_in_order_of_arrival():
    taken: list[list[float]] = []

    def run(group: list[np.ndarray]) -> None:
        taken.append([float(steps[0, 0]) for steps in group])

    peer = contenders.Peer("peer", 3, run, lambda group: group)
    members = [np.full((1, 1), number) for number in range(10)]
    seconds = latency.taking_what_waits(peer, members, np.linspace(0.0, 0.01, 10))
    assert np.isfinite(seconds).all()
    assert (seconds > 0).all()
    assert [number for group in taken for number in group] == list(range(10))
    assert max(map(len, taken)) <= 3


def test_a_peer_that_fails_under_load_is_an_error():
    peer = contenders.Peer("peer", 3, lambda group: 1 / 0, lambda group: group)
    with pytest.raises(ZeroDivisionError):
        latency.taking_what_waits(peer, sequences(1), np.zeros(3))


def test_percentiles_are_of_what_was_answered_and_say_how_much_that_is():
    found = latency.percentiles(np.array([0.001, 0.003, np.nan, np.nan]))
    assert (found["p50_ms"], found["answered"]) == (2.0, 0.5)
    assert latency.percentiles(np.array([np.nan]))["p99_ms"] is None


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


def test_who_fails_in_a_round_is_told_and_asked_no_more():
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
    assert figures.found["failures"] == {"bad": "ValueError: out of memory"}


def test_answers_come_in_the_order_of_the_sequences_whatever_they_run_with():
    members = sequences(*range(40, 0, -1))
    found = parity.answers(Session(), members, 4)
    assert [row.logits.tolist() for row in found] == [pytest.approx(steps.sum(axis=0), abs=1e-4) for steps in members]


def test_a_difference_is_seen_with_its_size_and_its_class():
    rows = [parity.Row(np.array([1.0, 2.0], dtype=np.float32), None)] * 2
    other = [rows[0], parity.Row(np.array([1.0, 0.5], dtype=np.float32), None)]
    found = parity.compared(other, rows)
    assert (found["logits"], found["equal_bits"], found["other_class"], found["finite"]) == (1.5, 0.5, 0.5, True)


def test_what_is_not_finite_is_never_called_equal():
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


def test_company_shows_where_a_neighbour_leaks():
    members = sequences(3, 9, 5, 12)
    for leak, equal in ((0.0, True), (1e-3, False)):
        session = Session(leak)
        alone = [row for steps in members for row in isolation.answer(session, pad([steps]))]
        for batches in isolation.companies(members, 4, np.random.default_rng(0)).values():
            found = isolation.in_company(session, batches, alone)
            assert (found["logits"] < 1e-5) == equal


def test_every_company_has_every_sequence_once():
    members = sequences(*range(1, 40))
    for batches in isolation.companies(members, 4, np.random.default_rng(0)).values():
        assert sorted(place for places, _ in batches for place in places) == list(range(39))


def test_time_that_two_kernels_share_counts_once():
    assert busy.union([(0, 10), (5, 12), (20, 30), (22, 25)]) == 22


def test_the_profilers_share_is_that_of_kernels_and_not_of_copies(monkeypatch: pytest.MonkeyPatch):
    def event(name: str, kind: str, start: int, length: int) -> SimpleNamespace:
        return SimpleNamespace(
            name=lambda: name,
            device_type=lambda: f"DeviceType.{kind}",
            start_ns=lambda: start,
            duration_ns=lambda: length,
        )

    events = [
        event("lstm", "CUDA", 1000, 300),
        event("Memcpy HtoD", "CUDA", 1250, 100),
        event("gemm", "CUDA", 1900, 100),
        event("aten::copy_", "CPU", 0, 5000),
    ]
    kineto = SimpleNamespace(events=lambda: events)
    profile = nullcontext(SimpleNamespace(profiler=SimpleNamespace(kineto_results=kineto)))
    torch = SimpleNamespace(
        cuda=SimpleNamespace(init=lambda: None, synchronize=lambda: None),
        profiler=SimpleNamespace(profile=lambda activities: profile, ProfilerActivity=SimpleNamespace(CUDA=1)),
    )
    monkeypatch.setattr(busy, "module", lambda package: torch)
    desk = SimpleNamespace(closed=lambda *load: {"sequences_per_second": 7.0})
    found = busy.by_profiler(desk, [], 1.0, 1)
    assert (found["kernel_share"], found["copy_share"], found["kernels"]) == (0.4, 0.1, 2)


def test_shapes_stay_within_the_limits_and_differ():
    random = np.random.default_rng(0)
    limits = BatchLimits(rows=16, padded_steps=512)
    drawn = [[len(steps) for steps in memory.group(random, limits, 3, 200)] for _ in range(200)]
    assert all(len(group) <= 16 and len(group) * max(group) <= max(512, max(group)) for group in drawn)
    assert all(min(group) >= 1 and max(group) <= 200 for group in drawn)
    assert len({(len(group), max(group)) for group in drawn}) > 100


def test_figures_are_merged_and_are_what_json_can_hold():
    figures = Figures()
    figures.note(rates={"a": np.float32(1.5)})
    figures.note(rates={"b": np.array([1, 2])}, bad=float("inf"))
    assert figures.found == {"rates": {"a": 1.5, "b": [1, 2]}, "bad": None}
    assert plain((np.bool_(True), {1: float("nan")})) == [True, {"1": None}]


def test_memory_is_read_by_whatever_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "module", lambda package: None)
    monkeypatch.setattr(device, "smi", lambda *fields: "1234")
    read = device.memory_reader("cuda")
    assert read is not None
    assert read() == 1234.0
    monkeypatch.setattr(device, "smi", lambda *fields: None)
    assert device.memory_reader("cuda") is None


def test_a_management_library_that_fails_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise RuntimeError("not supported")

    monkeypatch.setattr(device, "module", lambda package: SimpleNamespace(nvmlInit=fail))
    monkeypatch.setattr(device, "smi", lambda *fields: "37")
    assert device.busy_reader()() == 0.37


def test_a_device_is_named_as_a_file():
    assert device.slug("NVIDIA H200 (80GB)") == "nvidia-h200-80gb"


def test_a_latency_is_the_median_of_the_rounds_that_had_an_answer():
    rounds = [{"p50_ms": 4.0}, {"p50_ms": None}, {"p50_ms": 2.0}]
    assert summary.middle(rounds, "p50_ms") == 3.0
    assert summary.middle(rounds[1:2], "p50_ms") is None


def test_figures_that_are_cut_short_are_told_as_far_as_they_go():
    sections = {"parity": {"status": "cut short", "reason": "its time was over", "figures": {"sequences": 3}}}
    text = summary.text({"device": "d", "label": "L", "quick": False, "sections": sections})
    assert "these figures are not all there" in text
    assert "- parity: cut short: its time was over" in text
