"""A model that breaks is not asked by callers any more, and works again as soon as its golden sequences are right."""

import asyncio
import threading
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from lengthwise.batching.breaker import SUSPECTED_AFTER, Breaker
from lengthwise.padding import PaddedBatch
from lengthwise.verification import golden
from tests.support.grpc_calls import listening, pb
from tests.support.numpy_models import Service, manifest, model, serving
from tests.support.waiting import until

GOOD = {"sequences": [[[1, 3]]]}
STEPS = np.array([[1, 3], [4, 4]], dtype=np.float32)
POISON = 13.0
ERROR = RuntimeError("the device is gone")


def test_the_states_of_a_breaker() -> None:
    breaker = Breaker()
    assert [breaker.batch_failed(ERROR, 5.0) for _ in range(SUSPECTED_AFTER)] == [False] * (SUSPECTED_AFTER - 1) + [
        True
    ]
    assert (breaker.closed, breaker.open, breaker.probe_time) == (False, False, 5.0)
    assert breaker.probed(ERROR, 6.0, 10.0)
    assert (breaker.open, breaker.probe_time, breaker.reason) == (True, 16.0, "RuntimeError: the device is gone")
    assert not breaker.probed(ERROR, 16.0, 10.0)
    assert breaker.probe_time == 26.0
    breaker.batch_ran()
    assert breaker.open, "only golden sequences close it"
    assert breaker.probed(None, 26.0, 10.0)
    assert (breaker.closed, breaker.open, breaker.failures) == (True, False, 0)


def test_a_batch_that_runs_ends_the_suspicion() -> None:
    breaker = Breaker()
    for _ in range(SUSPECTED_AFTER):
        breaker.batch_failed(ERROR, 0.0)
    breaker.batch_ran()
    assert breaker.closed
    assert not breaker.batch_failed(ERROR, 0.0)


def test_a_probe_that_fails_while_a_batch_ends_is_followed_by_another_one() -> None:
    class Interrupted(Breaker):
        """Its model is probed while a batch looks whether the breaker is open, if nothing keeps the probe from it."""

        def __getattribute__(self, name: str) -> object:
            value = super().__getattribute__(name)
            if name == "open" and threading.current_thread() is not probing and not probing.ident:
                probing.start()
                probing.join(0.5)
            return value

    breaker = Interrupted()
    probing = threading.Thread(target=breaker.probed, args=(ERROR, 6.0, 10.0))
    breaker.batch_ran()
    probing.join()
    assert (breaker.open, breaker.closed, breaker.probe_time) == (True, False, 16.0)


def test_suspicion_is_renewed_after_as_many_further_failures() -> None:
    breaker = Breaker()
    for _ in range(SUSPECTED_AFTER):
        breaker.batch_failed(ERROR, 0.0)
    assert not breaker.probed(None, 0.0, 10.0)
    assert sum(breaker.batch_failed(ERROR, 0.0) for _ in range(3 * SUSPECTED_AFTER)) == 1, "not probed yet"


class Switch:
    """Makes every run fail while it is on; poisoned sequences always."""

    def __init__(self) -> None:
        self.on = False
        self.runs = 0

    def __call__(self, batch: PaddedBatch) -> None:
        self.runs += 1
        if self.on or (batch.steps[:, 0] == POISON).any():
            raise ERROR


@pytest.fixture(autouse=True)
def never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that fails is not tried again while a test lasts."""
    monkeypatch.setattr("lengthwise.repository.probing.RETRY_SECONDS", 3600)


async def fail(service: Service, count: int = SUSPECTED_AFTER, body: object = GOOD, **named: str) -> None:
    for _ in range(count):
        assert (await service.predict({**body, **named})).status_code == 500  # type: ignore[dict-item]


async def test_a_model_whose_batches_all_fail_is_not_ready_until_one_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lengthwise.repository.probing.RETRY_SECONDS", 0.05)
    switch = Switch()
    async with serving(model(manifest(), switch)) as service:
        queue = service.serving.served[0].queue
        assert (await service.predict(GOOD)).status_code == 200
        switch.on = True
        await fail(service)
        await until(lambda: queue.breaker.open)
        refused = await service.predict(GOOD)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        ready, alive, health = [await service.client.get(path) for path in ("/readyz", "/livez", "/healthz")]
        assert (ready.status_code, alive.status_code, health.status_code) == (503, 200, 503)
        assert "no model works: sums/1" in ready.json()["detail"]
        assert health.json()["models"][0]["broken"]["reason"] == "RuntimeError: the device is gone"
        for path in ("/v1/models/sums", "/v2/models/sums/ready", "/v2/health/ready"):
            assert (await service.client.get(path)).status_code == 503
        index = (await service.client.post("/v2/repository/index")).json()
        assert [(entry["state"], "tried again" in entry["reason"]) for entry in index] == [("UNAVAILABLE", True)]
        figures = await service.figures()
        of_model = 'model="sums",version="1"'
        assert figures[f"lengthwise_breaker_open{{{of_model}}}"] == 1
        assert figures[f"lengthwise_ready{{{of_model}}}"] == 0
        assert figures['lengthwise_rejected_total{model="sums",reason="not_ready",version="1"}'] == 1
        runs = switch.runs
        await until(lambda: switch.runs >= runs + 3)  # it is tried again and again, and no caller's request is needed
        switch.on = False
        await until(lambda: not queue.breaker.open)
        assert (await service.client.get("/readyz")).status_code == 200
        assert (await service.predict(GOOD)).status_code == 200
        assert (await service.figures())[f"lengthwise_breaker_open{{{of_model}}}"] == 0


async def test_one_callers_poison_opens_no_breaker() -> None:
    async with serving(model(manifest(), Switch())) as service:
        queue = service.serving.served[0].queue
        await fail(service, 4 * SUSPECTED_AFTER, {"sequences": [[[POISON, 1]]]})
        await until(lambda: queue.breaker.closed)
        assert (await service.predict(GOOD)).status_code == 200


async def test_a_request_that_names_no_version_goes_to_one_that_works() -> None:
    switch = Switch()
    models = [model(manifest(version=1)), model(manifest(version=2), switch)]
    async with serving(*models) as service:
        assert (await service.predict(GOOD)).json()["version"] == "2"
        switch.on = True
        await fail(service)
        await until(lambda: service.serving.served[1].queue.breaker.open)
        assert (await service.predict(GOOD)).json()["version"] == "1"
        assert (await service.predict({**GOOD, "version": "2"})).status_code == 503
        assert (await service.client.get("/readyz")).status_code == 200


async def test_grpc_says_so_too_and_tells_who_watches() -> None:
    switch = Switch()
    async with listening(model(manifest(), switch)) as caller:
        ready = lambda: caller.call("ModelReady", pb.ModelReadyRequest(name="sums"))  # noqa: E731
        assert (await ready()).ready
        switch.on = True
        await fail(caller.service)
        await until(lambda: caller.service.serving.served[0].queue.breaker.open)
        assert not (await ready()).ready
        assert not (await caller.call("ServerReady")).ready
        assert (await caller.call("ServerLive")).live


async def test_golden_sequences_with_other_answers_keep_the_breaker_open() -> None:
    switch = Switch()
    made = model(manifest(), switch)
    right = golden.answers(made.session, [STEPS[:1], STEPS], made.manifest)
    wrong = replace(right, logits=tuple(logits + 1 for logits in right.logits))
    for expected, opens in ((right, False), (wrong, True)):
        switch.on = False
        async with serving(replace(made, golden=expected)) as service:
            breaker = service.serving.served[0].queue.breaker
            await fail(service, body={"sequences": [[[POISON, 1]]]})
            await until(lambda: breaker.closed or breaker.open)  # noqa: B023
            assert breaker.open is opens
            assert not opens or "golden sequence 0" in breaker.reason


async def test_a_probe_that_raises_is_tried_again_and_may_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, switch = Mock(side_effect=[ERROR, None] * 2), Switch()
    monkeypatch.setattr("lengthwise.repository.probing.probe", probe)
    monkeypatch.setattr("lengthwise.repository.probing.RETRY_SECONDS", 0.05)
    async with serving(model(manifest(), switch)) as service:
        breaker, switch.on = service.serving.served[0].queue.breaker, True
        for count in (2, 4):
            await fail(service)
            await until(lambda: breaker.closed and probe.call_count == count)  # noqa: B023


async def test_a_service_stops_while_a_probe_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, never = asyncio.Event(), threading.Event()

    def hang(*_: object) -> None:
        loop.call_soon_threadsafe(entered.set)
        never.wait()

    loop = asyncio.get_running_loop()
    monkeypatch.setattr("lengthwise.repository.probing.probe", hang)
    switch = Switch()
    async with serving(model(manifest(), switch)) as service:
        switch.on = True
        await fail(service)
        async with asyncio.timeout(180):
            await entered.wait()
    never.set()
