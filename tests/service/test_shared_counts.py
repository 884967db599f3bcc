"""The counts of several processes: each in memory that outlives it, and the sum of all on one page."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from lengthwise.connections.listener import Listener
from lengthwise.errors import ModelError, NotVerified, VerificationError
from lengthwise.processes.channel import Channel
from lengthwise.processes.shared_memory import ENDING, SILENT_SECONDS, shared_file
from lengthwise.processes.worker import GIVE_WAY_SECONDS, NOT_READY_SECONDS, Worker
from lengthwise.repository import verification_process
from lengthwise.repository.stopping import Stopping
from lengthwise.repository.verification_process import SharedVerifier, Verdicts
from lengthwise.runtime.manifest import Promise
from lengthwise.telemetry import shared_counts
from lengthwise.telemetry.families import CELL
from lengthwise.telemetry.metrics import KEPT_GONE, Bounds, Gauges, Metrics, ModelMetrics
from lengthwise.telemetry.shared_counts import SharedCounts
from lengthwise.telemetry.snapshots import EndedCounts, Total, drop, snapshot_of, with_rows, without_zeros
from tests.support.numpy_models import manifest, samples
from tests.support.server_process import PATIENCE_SECONDS
from tests.support.used_metrics import page_of


def metrics(memory: memoryview, *, ready: bool = True) -> Metrics:
    """The metrics of one process, which has queued three sequences."""
    return Metrics(
        lambda: {("m", "1"): Gauges(12, 3, 1, ready)}, lambda: Bounds(1, 1000, 0, 4, 100), shared=SharedCounts(memory)
    )


def memory() -> memoryview:
    return memoryview(bytearray(shared_counts.BYTES))


def test_what_a_process_has_counted_is_read_when_it_is_gone() -> None:
    shared = memory()
    counted = metrics(shared).model("m", "1")
    counted.request(200, 0.003)
    counted.request(429, 0.001, "queue_full")
    counted.decoded(0.001, [5, 70])
    counted.batch(rows=2, width=72, valid_steps=75, waits=[0.1, 0.2], seconds=0.01)
    counted.count("batch_failures")
    models, keys = SharedCounts(shared).counts()
    assert (models.keys(), keys) == ({("", ""), ("m", "1")}, {})
    assert list(models["m", "1"]) == list(counted.cells)
    left = ModelMetrics(cells=models["m", "1"])
    assert (left.number("requests", "200"), left.number("rejected", "queue_full")) == (1, 1)
    assert (left.number("sequences"), left.number("batch_failures")) == (2, 1)
    assert (left.number("steps", "valid"), left.number("steps", "padding")) == (75, 69)
    assert left.sequence_length.total == 75
    SharedCounts(shared).clear()
    assert not any(shared)


def test_of_a_place_that_was_being_labelled_or_freed_at_a_kill_nothing_is_read() -> None:
    shared = memory()
    label = shared_counts.HEAD_BYTES

    SharedCounts(shared).claim("a-long-name", "1")
    for first in (0, ord("a")):
        shared[label] = first
        assert list(SharedCounts(shared).model_rows()) == ([] if not first else [("a-long-name", "1")])
    shared[label : label + 2] = b"\0\xff"  # half of a character
    assert SharedCounts(shared).counts() == ({}, {})
    SharedCounts(shared).clear()
    assert not any(shared)


def test_only_places_that_were_in_use_are_read() -> None:
    shared = memory()
    counts = SharedCounts(shared)
    counts.claim("m", "1")
    end = shared_counts.HEAD_BYTES + shared_counts.ROW_BYTES
    shared[end : shared_counts.BYTES] = b"x" * (shared_counts.BYTES - end)  # whatever is there
    assert list(SharedCounts(shared).model_rows()) == [("m", "1")]


def test_a_place_is_used_again_with_nothing_in_it() -> None:
    counts = SharedCounts(memory())
    first = counts.claim("m", "1")
    assert first is not None
    first[0] = 7
    counts.release("m", "1")
    again = counts.claim("other", "2")
    assert again is not None
    assert not any(again)
    assert counts.claim("x" * 400, "1") is None
    full = [counts.claim(str(number), "1") for number in range(600)]
    assert None in full


def test_the_calls_of_a_key_with_a_name_outlive_their_process_too() -> None:
    shared = memory()
    counting = metrics(shared)
    for name in ("m", "n"):
        for key in ("team-a", "team-b", "-"):
            counting.model(name, "1").request(200, 0.003, key=key)
    models, keys = SharedCounts(shared).counts()
    answered = CELL["requests", "200"]
    assert {labels: row[answered] for labels, row in keys.items()} == {
        (name, "1", key): 1 for name in ("m", "n") for key in ("team-a", "team-b")
    }
    assert (models["m", "1"][answered], models["n", "1"][answered]) == (3, 3)
    for number in range(KEPT_GONE + 1):
        counting.remove(counting.model(f"gone {number}", "1"))
    counting.remove(counting.model("m", "1"))
    for number in range(KEPT_GONE):
        counting.remove(counting.model(f"later {number}", "1"))
    assert ("m", "1") not in SharedCounts(shared).counts()[0]
    counting.model("m", "1").request(200, 0.003)
    models, keys = SharedCounts(shared).counts()
    assert ("m", "1") in models
    assert [labels for labels in keys if labels[0] == "m"] == []  # its rows were freed with it
    SharedCounts(shared).clear()
    assert not any(shared)


def test_a_late_count_of_a_forgotten_model_is_in_no_row_of_another_model() -> None:
    shared = memory()
    counting = metrics(shared)
    forgotten = counting.model("m", "1")
    counting.remove(forgotten)
    for number in range(KEPT_GONE):
        counting.remove(counting.model(f"later {number}", "1"))
    counting.model("new", "1")  # has the row that is free now
    forgotten.count("verify_mismatches")
    models, _ = SharedCounts(shared).counts()
    assert models["new", "1"][CELL["verify_mismatches", ""]] == 0


def test_what_ends_late_of_a_forgotten_model_is_in_no_row_of_another_one_either() -> None:
    shared = memory()
    counting = metrics(shared)
    forgotten = counting.model("m", "1")
    forgotten.request(200, 0.003, key="team-a")
    counting.remove(forgotten)
    for number in range(KEPT_GONE):
        counting.remove(counting.model(f"later {number}", "1"))
    counting.model("new", "1").request(504, 0.003, key="team-b")  # has the rows that are free now
    before = SharedCounts(shared).counts()
    for key in ("team-a", "team-c"):
        forgotten.request(200, 0.003, key=key)
    forgotten.decoded(0.001, [7])
    forgotten.batch(rows=2, width=8, valid_steps=12, waits=[0.1, 0.2], seconds=0.01)
    for now, then in zip(SharedCounts(shared).counts(), before, strict=True):
        assert now.keys() == then.keys()
        assert all((now[labels] == then[labels]).all() for labels in now)
    assert forgotten.number("requests", "200") == 3
    assert b"team-c" not in bytes(shared)


def test_names_beyond_the_memory_are_counted_by_their_own_process() -> None:
    counting = metrics(memory())
    for number in range(1100):
        counting.model("m", "1").request(200, 0.003, key=f"team-{number}")
    found = samples(page_of(counting).decode())
    assert found['lengthwise_requests_total{code="200",key="team-1099",model="m",version="1"}'] == 1
    assert found['lengthwise_requests_total{code="200",key="-",model="m",version="1"}'] == 0


def test_counters_add_up_and_so_do_gauges_but_for_those_that_say_how_it_is() -> None:
    processes = [metrics(memory(), ready=False), metrics(memory())]
    for number, process in enumerate(processes, 1):
        for _ in range(number):
            process.model("m", "1").request(200, 0.003)
    pieces, _ = processes[0].exposition("", Total([each.snapshot() for each in processes]))
    found = samples(b"".join(pieces).decode())
    assert found['lengthwise_requests_total{code="200",key="-",model="m",version="1"}'] == 3
    assert found['lengthwise_request_duration_seconds_bucket{le="0.005",model="m",version="1"}'] == 3
    assert found['lengthwise_request_duration_seconds_sum{model="m",version="1"}'] == pytest.approx(0.009)
    assert found['lengthwise_queue_sequences{model="m",version="1"}'] == 6
    assert found['lengthwise_ready{model="m",version="1"}'] == 1
    assert found["lengthwise_max_queue_cost_steps"] == 2000
    own = samples(page_of(processes[0]).decode())
    assert found.keys() == own.keys()
    pieces, _ = processes[0].exposition("application/openmetrics-text", Total([each.snapshot() for each in processes]))
    page = b"".join(pieces)
    assert page.count(b"# EOF\n") == 1
    assert page.endswith(b"\n# EOF\n")


def test_of_ended_processes_counters_stay_and_the_last_of_other_metrics() -> None:
    ended = EndedCounts()
    assert not ended.snapshot
    for version in "12345":
        process = metrics(memory())
        process.model("m", version).request(200, 0.003, key="team-a")
        exact = ModelMetrics("m", version)
        exact.request(200, 0.003)
        exact.request(200, 0.003)  # after it was told last
        rows = {("m", version): np.array(exact.cells)}
        ended.add(with_rows(process.snapshot(), snapshot_of(rows, {})), [("m", version)])
    assert "lengthwise_ready" not in ended.snapshot["families"]
    assert "process_cpu_seconds" in ended.snapshot["families"]
    shown = samples(b"".join(process.exposition("", Total([ended.snapshot] * 2))[0]).decode())
    assert shown['lengthwise_requests_total{code="200",key="-",model="m",version="1"}'] == 2
    assert shown['lengthwise_requests_total{code="200",key="team-a",model="m",version="1"}'] == 2
    ended.forget([("m", "1")], 2)
    left = {version for name, version in Total([ended.snapshot]).models if name}
    assert left == {"1", "4", "5"}
    assert {version for _, version, _ in Total([ended.snapshot]).keys} == {"1", "4", "5"}


def test_a_process_without_memory_for_a_model_counts_by_what_it_told_last() -> None:
    process, ended = Metrics(dict, lambda: Bounds(1, 1, 0, 1, 1)), EndedCounts()
    process.model("m", "1").request(200, 0.003)
    ended.add(with_rows(process.snapshot(), snapshot_of({}, {})), [])
    assert sum(Total([ended.snapshot, {}]).models["m", "1"]) == pytest.approx(2.003)


def test_what_is_sent_of_hundreds_of_versions_is_short_and_as_exact() -> None:
    process = metrics(memory())
    for version in range(500):
        process.model("m", str(version)).request(200, 0.1 + version, key="team-a")
    sent = without_zeros(process.snapshot())
    text = orjson.dumps(sent)
    assert len(text) < 200_000
    received = Total([orjson.loads(text)])
    assert received.models.keys() == {("", "")} | {("m", str(version)) for version in range(500)}
    assert received.models["m", "7"].tolist() == list(process.model("m", "7").cells)
    assert received.keys["m", "7", "team-a"].sum() == 1


def test_of_a_model_that_is_counted_no_more_the_counts_are_told_and_no_sum_goes_back() -> None:
    ended = EndedCounts()
    one, other = (
        Metrics(dict, lambda: Bounds(1, 1000, 0, 4, 100), forget=lambda model, counts: ended.add(counts, [model]))
        for _ in range(2)
    )
    for process in (one, other):
        process.model("m", "0").request(200, 0.003)
    for version in "12345":
        one.model("m", version)
        one.remove(one.model("m", str(int(version) - 1)))
    shown = samples(b"".join(one.exposition("", Total([one.snapshot(), other.snapshot(), ended.snapshot]))[0]).decode())
    assert shown['lengthwise_requests_total{code="200",key="-",model="m",version="0"}'] == 2
    drop(ended.snapshot, [("m", "0")])
    assert ("m", "0") not in Total([ended.snapshot]).models


@pytest.fixture
def pair() -> Iterator[list[Worker]]:
    """Two workers without a parent."""
    with shared_file(2) as file:
        channels = [socket.socketpair() for _ in range(2)]
        made = []
        for index, (channel, _) in enumerate(channels):
            start: dict[str, Any] = {"index": index, "workers": 2, "reason": "", "sockets": [], "settings": {}}
            made.append(Worker(channel, start, [file.fileno()]))
            made[-1].memory.put(index, beat=time.monotonic())
        yield made
        for one, other in channels:
            one.close()
            other.close()


def test_a_worker_borrows_the_core_of_one_that_rests(pair: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lengthwise.processes.worker.shared_cores", lambda: 2)
    one, other = (worker.cores(1) for worker in pair)
    assert one.free(1) == 1  # the other has never run anything
    other.note(1)
    assert one.free(1) == 0
    other.note(0)
    assert one.free(1) == 0  # it has just ended: the next one may come
    pair[1].memory.put(1, batches=-time.monotonic() + 1)
    assert one.free(1) == 1
    one.note(2)
    assert other.free(0) == 0
    assert other.free(1) == -1


def test_a_connection_is_left_to_the_worker_that_has_fewer(pair: list[Worker]) -> None:
    one, other = pair
    assert one.accept_delay(5) == 0  # nobody else is ready
    other.set_ready(True)
    assert one.accept_delay(0) == -NOT_READY_SECONDS
    one.set_ready(True)
    assert one.accept_delay(0) == 0
    assert other.accept_delay(1) == GIVE_WAY_SECONDS
    assert one.accept_delay(2) == GIVE_WAY_SECONDS
    ends = other.connections()
    ends |= {1, 2, 3}
    ends.discard(1)
    assert one.accept_delay(2) == 0  # it was told that the other has two
    one.set_ready(False)
    assert other.accept_delay(9) == 0


def test_a_worker_takes_its_part_of_those_that_wait_and_leaves_the_rest(
    pair: list[Worker],
) -> None:
    one, other = pair
    one.set_ready(True)
    other.set_ready(True)
    assert [one.accept_delay(number, 9 - number) for number in range(5)] == [0, 0, 0, 0, GIVE_WAY_SECONDS]
    assert [other.accept_delay(number, 5 - number) for number in range(5)] == [0] * 5
    assert other.accept_delay(5, 0) == GIVE_WAY_SECONDS
    one.accept_delay(40)
    other.accept_delay(40)
    assert one.accept_delay(42, 1) == GIVE_WAY_SECONDS  # of many, too, a few more are left to the other


async def test_nothing_is_left_to_a_worker_that_has_no_descriptors(pair: list[Worker]) -> None:
    one, other = pair
    one.set_ready(True)
    other.set_ready(True)
    assert one.accept_delay(2) == GIVE_WAY_SECONDS
    tried = asyncio.Event()

    class NoDescriptors(socket.socket):
        def accept(self) -> Any:
            tried.set()
            raise OSError(errno.EMFILE, "Too many open files")

    with NoDescriptors() as listening, socket.socket() as client:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        client.connect(listening.getsockname())
        listener = Listener(
            listening, max_connections=8, tls=None, handshake_seconds=1, accept_delay=other.accept_delay
        )
        listener.start(asyncio.Protocol, ())
        await tried.wait()
        other.memory.put(other.index, beat=time.monotonic())  # it does not hang
        assert one.accept_delay(2) == 0
        await listener.close()


def test_nothing_is_left_to_a_worker_that_hangs_nor_waited_for(pair: list[Worker]) -> None:
    one, other = pair
    other.set_ready(True)
    other.memory.put(other.index, beat=time.monotonic() - SILENT_SECONDS - 1)
    assert one.accept_delay(7) == 0  # not ready itself, and with more connections
    assert [worker["ready"] for worker in one.memory.described()] == [False, False]
    assert one.stop_accepting()


def test_the_last_worker_that_ends_is_told(pair: list[Worker]) -> None:
    one, other = pair
    one.set_ready(True)
    other.set_ready(True)
    assert not one.stop_accepting()
    one.set_ready(True)  # it stays at its end
    assert other.stop_accepting()
    assert {*one.memory.table["state"]} == {ENDING}


class Counting:
    """A verifier that counts its calls, and says what it is told to say."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0

    def __call__(self, *_: Any) -> Any:
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Parent:
    """The parent of several workers, of which it keeps verdicts; its event loop runs in a thread."""

    def __init__(self) -> None:
        self._verdicts = Verdicts()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def process(self) -> asyncio.Future[Any]:
        """The end of another worker."""
        return self._loop.create_future()

    def end(self, process: asyncio.Future[Any]) -> None:
        self._loop.call_soon_threadsafe(process.set_result, 0)

    def find(self, end: asyncio.Future[Any], digest: str, *, waits: bool = False) -> Future[Any]:
        """The answer to a worker that asks for a verdict."""
        return asyncio.run_coroutine_threadsafe(self._verdicts.verdict_or_turn(waits, end, digest), self._loop)

    def verifying(self) -> bool:
        async def read() -> bool:
            return self._verdicts.verifying

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def send(self, kind: str, digest: str, verdict: Any) -> None:
        assert kind == "keep_verdict"
        self._loop.call_soon_threadsafe(self._verdicts.keep, digest, orjson.loads(orjson.dumps(verdict)))

    def ask_with(self, verifier: Counting, name: str = "sums") -> Any:
        model: Any = type("Task", (), {"manifest": manifest(name=name), "limits": None, "devices": ()})
        process = self.process()

        def ask(_: Stopping, kind: str, digest: str) -> Any:
            assert kind == "verdict"
            return self.find(process, digest).result()

        return SharedVerifier(verifier, ask, self.send)(model, Stopping())


@pytest.fixture
def parent() -> Iterator[Parent]:
    made = Parent()
    yield made
    made.close()


def verdict() -> Any:
    from lengthwise.repository.verifier import Verification

    return Verification(
        promise=Promise(provider="CPU", bits=True, tolerance=0.0),
        cases=({"name": "x"},),
        costs={"a": 1},
        measured={"b": 2},
        steady=True,
        kernels="avx2",
        choice={"c": 3},
    )


def test_a_model_is_verified_once_for_all_also_while_others_wait_for_it(parent: Parent) -> None:
    verifier = Counting(verdict(), verdict())
    first, second = parent.ask_with(verifier), parent.ask_with(verifier)
    assert verifier.calls == 1
    assert (first.promise, first.costs, first.kernels) == (second.promise, second.costs, second.kernels)
    assert (first.measured, second.measured, second.cases, second.choice) == ({"b": 2}, None, (), None)  # kept once
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: parent.ask_with(verifier, "other"), range(4))]
    assert (verifier.calls, len(found)) == (2, 4)


@pytest.mark.parametrize("kind", [ModelError, VerificationError])
def test_a_refusal_counts_for_those_that_ask_soon(
    parent: Parent, kind: type[ModelError], monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = Counting(kind("no good"), verdict())
    for _ in range(2):
        with pytest.raises(kind, match="no good"):
            parent.ask_with(verifier)
    assert verifier.calls == 1
    monkeypatch.setattr(verification_process, "REFUSED_SECONDS", -1.0)
    assert parent.ask_with(verifier).kernels == "avx2"


def test_what_was_not_verified_is_tried_again(parent: Parent) -> None:
    verifier = Counting(NotVerified("no memory"), verdict())
    with pytest.raises(NotVerified):
        parent.ask_with(verifier)
    assert parent.ask_with(verifier).kernels == "avx2"


def test_of_verdicts_the_oldest_are_forgotten(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification_process, "MOST_VERDICTS", 2)
    verifier = Counting(*[verdict()] * 4)
    for name in ("a", "b", "c", "b", "a"):
        parent.ask_with(verifier, name)
    assert verifier.calls == 4


def test_at_the_start_the_first_worker_verifies(parent: Parent) -> None:
    # Its process for that waits already.
    others = [parent.find(parent.process(), "m", waits=True) for _ in range(2)]
    assert not parent.verifying()
    assert parent.find(parent.process(), "m").result() is None
    assert not any(other.done() for other in others)
    parent.send("keep_verdict", "m", {"accepted": {}})
    assert [other.result(PATIENCE_SECONDS) for other in others] == [{"accepted": {}}] * 2
    assert parent.find(parent.process(), "other", waits=True).result(PATIENCE_SECONDS) is None  # now any may


def test_others_verify_if_the_first_worker_does_not_come(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification_process, "FIRST_SECONDS", 0.05)
    assert parent.find(parent.process(), "m", waits=True).result(PATIENCE_SECONDS) is None
    assert parent.verifying()
    # They have waited for it once, and not for each model.
    monkeypatch.setattr(verification_process, "FIRST_SECONDS", 2 * PATIENCE_SECONDS)
    assert parent.find(parent.process(), "other", waits=True).result(PATIENCE_SECONDS) is None


def test_a_worker_that_ends_while_it_verifies_a_model_leaves_that_to_one_that_waits(parent: Parent) -> None:
    ends, leaves, waits, late = (parent.process() for _ in range(4))
    assert parent.find(ends, "m").result() is None
    assert parent.verifying()
    others = [parent.find(end, "m") for end in (leaves, waits)]
    assert parent.find(ends, "other").result() is None
    assert not any(other.done() for other in others)
    parent.end(leaves)  # it has its turn, and makes nothing of it
    parent.end(ends)
    assert [other.result(PATIENCE_SECONDS) for other in others] == [None, None]
    last = parent.find(late, "m")
    assert parent.verifying()
    assert not last.done()
    parent.send("keep_verdict", "m", {"accepted": 7})
    assert last.result(PATIENCE_SECONDS) == {"accepted": 7}
    assert not parent.verifying()
    parent.send("keep_verdict", "m", None)  # of one whose turn is over
    assert parent.find(late, "m").result() == {"accepted": 7}


async def test_an_admin_call_that_fails_at_one_worker_names_it() -> None:
    from lengthwise.errors import ModelNotFound, WorkersDiffer
    from lengthwise.repository.registry import EveryWorker

    answers: dict[str, Any] = {}
    other: dict[str, Any] = {"pid": 7, "error": None, "serves": ["sums/1"]}

    async def ask(call: str, *given: Any) -> list[dict[str, Any]]:
        return [await answers[call](*given), other]

    async def here(_change: str, name: str) -> None:
        if name == "absent":
            raise ModelNotFound("no such model")

    every = EveryWorker(here, lambda: {"serves": ["sums/2"]}, ask, answers)
    assert await every("load", "sums") is None
    other["error"] = "its digest differs"
    with pytest.raises(WorkersDiffer, match=r"7 failed .its digest differs.*sums/1") as raised:
        await every("load", "sums")
    assert (raised.value.status, "sums/2" in str(raised.value)) == (500, True)
    with pytest.raises(ModelNotFound):
        await every("load", "absent")
    other["error"] = None
    with pytest.raises(WorkersDiffer):
        await asyncio.gather(every("load", "absent"))


@asynccontextmanager
async def lone_worker(monkeypatch: pytest.MonkeyPatch, seconds: float) -> AsyncIterator[tuple[Worker, socket.socket]]:
    """A worker that waits `seconds` for a sign of life of its parent, and the parent's end of the channel."""
    ended, channels, open_channel = asyncio.Event(), list[Channel](), Channel.open

    async def opened(*arguments: Any) -> Channel:
        channels.append(await open_channel(*arguments))
        return channels[-1]

    monkeypatch.setattr(Channel, "open", opened)
    monkeypatch.setattr("lengthwise.processes.worker.os._exit", lambda _: ended.set())
    monkeypatch.setattr("lengthwise.processes.worker._SIGN_SECONDS", {"metrics": seconds, "change": seconds})
    ours, theirs = socket.socketpair()
    with shared_file(1) as file:
        start: dict[str, Any] = {"index": 0, "workers": 1, "reason": "", "sockets": [], "settings": {}}
        worker = Worker(ours, start, [file.fileno()])
        await worker.open()
        yield worker, theirs
        for channel in channels:
            channel.close()
        ours.close()
        theirs.close()
        await ended.wait()


async def test_what_a_parent_that_hangs_is_asked_for_is_answered_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lengthwise.errors import WorkersDiffer
    from lengthwise.repository.registry import EveryWorker

    async with lone_worker(monkeypatch, 0.05) as (worker, _):
        assert await worker.ask("metrics", {}) == []
        every = EveryWorker(lambda *_: asyncio.sleep(0), lambda: {"serves": []}, worker.ask, {})
        with pytest.raises(WorkersDiffer, match=f"worker {os.getppid()} failed .the parent of the workers has not"):
            await every("load", "sums")


@pytest.mark.long
async def test_a_parent_that_lives_may_take_its_time_with_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = asyncio.Event()

    async def change() -> list[str]:
        await alive.wait()
        return ["made"]

    async with lone_worker(monkeypatch, 5.0) as (worker, end):
        parent = await Channel.open(end, {"up": list, "change": change, "alive": alive.set})
        receiving = asyncio.ensure_future(parent.receive())
        assert await worker.ask("change") == ["made"]
        parent.close()
        await receiving
