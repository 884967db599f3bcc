"""What hangs is seen, and only what cannot heal fails the probe of liveness."""

import asyncio
import threading

import pytest

from lengthwise.batching.device_turns import Run
from lengthwise.batching.watchdog import LOOK_SECONDS, OVERDUE_FACTOR, Watchdog
from lengthwise.padding import PaddedBatch
from lengthwise.telemetry.metrics import ModelMetrics
from tests.support.grpc_calls import listening
from tests.support.numpy_models import manifest, model

HUNG_SECONDS = 10.0
LOOKS = round(HUNG_SECONDS / LOOK_SECONDS)


def a_run(seconds: float = 0.01) -> Run:
    return Run("m/1", 3, 40, seconds, ModelMetrics("m", "1"))


def test_a_run_that_does_not_end_is_overdue_once_and_then_hung(caplog: pytest.LogCaptureFixture) -> None:
    run = a_run()
    runs = {1: run}
    watchdog = Watchdog(runs, HUNG_SECONDS)
    for _ in range(LOOKS):
        watchdog.look_at_runs()
        assert watchdog.problem is None
    assert run.metrics.number("overdue_batches") == 1
    for _ in range(3):
        watchdog.look_at_runs()
    assert watchdog.problem == "a batch of m/1 (3 rows of 40 steps, predicted 0.01 s) has run for more than 10 s"
    assert run.metrics.number("overdue_batches") == 1
    assert caplog.text.count("/livez fails") == 1
    runs.clear()
    watchdog.look_at_runs()
    assert watchdog.problem is None
    assert "has finished" in caplog.text


def test_runs_that_end_are_not_hung_however_many_there_are() -> None:
    runs: dict[int, Run] = {}
    watchdog = Watchdog(runs, HUNG_SECONDS)
    for _ in range(5 * LOOKS):
        runs[1] = a_run()
        watchdog.look_at_runs()
        assert watchdog.problem is None
    assert runs[1].metrics.number("overdue_batches") == 0


def test_a_run_that_was_predicted_to_be_long_may_be_long() -> None:
    run = a_run(seconds=2 * HUNG_SECONDS / OVERDUE_FACTOR)
    watchdog = Watchdog({1: run}, HUNG_SECONDS)
    for _ in range(2 * LOOKS):
        watchdog.look_at_runs()
    assert watchdog.problem is None
    assert run.metrics.number("overdue_batches") == 0
    watchdog.look_at_runs()
    assert watchdog.problem is not None


def test_an_event_loop_that_runs_nothing_is_logged_once_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    calls = []
    watchdog = Watchdog({}, HUNG_SECONDS)
    for _ in range(3):  # the first look waits for none
        watchdog.look_at_loop(calls.append)
    assert not calls, "before the start nothing is expected"
    watchdog = Watchdog({}, HUNG_SECONDS)

    async def started() -> None:
        watchdog.start(asyncio.get_running_loop())
        watchdog.stop()

    asyncio.run(started())
    for _ in range(3 * LOOKS):
        watchdog.look_at_loop(calls.append)
    assert len(calls) == 1
    assert caplog.text.count("the event loop has run nothing") == 1
    calls[0]()
    watchdog.look_at_loop(calls.append)
    assert "the event loop runs again" in caplog.text
    assert len(calls) == 2


async def test_a_run_that_hangs_fails_livez_and_one_that_fails_does_not() -> None:
    release = threading.Event()
    entered = threading.Event()

    def hang(batch: PaddedBatch) -> None:
        entered.set()
        release.wait(60)

    async with listening(model(manifest(), hang, seconds=1e-9), runners=2, hung_seconds=1) as caller:
        service = caller.service
        call = asyncio.ensure_future(service.predict({"sequences": [[[1, 3]]]}))
        await asyncio.to_thread(entered.wait, 60)
        watchdog = service.serving.watchdog
        for _ in range(50):
            watchdog.look_at_runs()
        lives = await service.client.get("/livez")
        assert (lives.status_code, "a batch of sums/1" in lives.text) == (503, True)
        assert (await service.client.get("/v2/health/live")).status_code == 503
        assert (await service.client.get("/healthz")).json()["hung"] == lives.text
        assert not (await caller.call("ServerLive")).live
        release.set()
        assert (await call).status_code == 200
        watchdog.look_at_runs()
        assert (await service.client.get("/livez")).status_code == 200
