"""More comes than can be answered: the rest is refused at once, told when to come back, and is answered then."""

import asyncio
import threading

import orjson
import pytest
from grpc import StatusCode

from lengthwise.padding import PaddedBatch
from tests.support.grpc_calls import Caller, listening
from tests.support.grpc_calls import request as grpc_request
from tests.support.numpy_models import held_batch, idle, manifest, model

GOOD = {"sequences": [[[1, 3]]]}
NO_BODY = b"this would be refused as no JSON, if it were read"
FORMS = {
    "/predict": orjson.dumps(GOOD),
    "/predict?": NO_BODY,
    "/v1/models/sums:predict": orjson.dumps({"instances": GOOD["sequences"]}),
    "/v2/models/sums/infer": NO_BODY,
}


async def fill(caller: Caller) -> list[asyncio.Task[int]]:
    """Accepted requests that fill the queue, behind a run that does not end; nothing more is accepted."""
    queue = caller.service.serving.served[0].queue
    accepted: list[asyncio.Task[int]] = []

    async def ask() -> int:
        return (await caller.service.predict(GOOD)).status_code

    while not queue.closed_to_new:
        accepted.append(asyncio.create_task(ask()))
        await asyncio.sleep(0)
    return accepted


async def test_a_full_queue_refuses_unread_in_every_protocol_and_answers_later() -> None:
    release, entered, wait = held_batch()
    async with listening(model(manifest(), wait), max_queue_seconds=0.01) as caller:
        service = caller.service
        running = asyncio.create_task(service.predict(GOOD))  # type: ignore[arg-type]
        await entered.wait()
        accepted = await fill(caller)
        decoded = service.serving.served[0].metrics.number("sequences")
        for path, body in FORMS.items():
            refused = await service.client.post(path, content=body, headers={"content-type": "application/json"})
            assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True), path
        error = await caller.refused("ModelInfer", grpc_request())
        assert error.code() is StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1
        assert service.serving.served[0].metrics.number("sequences") == decoded, "no body was read"
        urgent = await service.predict({**GOOD, "priority": 10})
        assert urgent.status_code == 422, "a body with a priority is read"
        assert (await service.client.get("/readyz")).status_code == 200
        release.set()
        statuses = await asyncio.gather(*accepted)
        assert statuses.count(200) >= 10
        assert set(statuses) <= {200, 429}
        assert (await running).status_code == 200
        assert (await service.predict(GOOD)).status_code == 200
        figures = await service.figures()
        refusals = figures['lengthwise_rejected_total{model="sums",reason="queue_full",version="1"}']
        assert refusals == len(FORMS) + 1 + statuses.count(429)
        async with asyncio.timeout(180):
            while not idle(await service.figures()):
                await asyncio.sleep(0)


async def test_of_three_times_too_much_everything_is_answered_once_and_nothing_remains() -> None:
    refused = threading.Event()

    def wait(_: PaddedBatch) -> None:
        refused.wait(60)

    async with listening(model(manifest(), wait), max_queue_seconds=0.01) as caller:

        async def until_accepted(number: int) -> int:
            for tries in range(1, 10_000):
                answer = await caller.service.predict({"sequences": [[[number, 3]]]})
                if answer.status_code == 200:
                    assert answer.json()["predictions"][0]["length"] == 1
                    return tries
                assert answer.status_code == 429
                refused.set()
                await asyncio.sleep(0.001)
            raise AssertionError("never accepted")

        tries = await asyncio.gather(*[until_accepted(number) for number in range(300)])
        assert max(tries) > 1, "it was too much"
        figures = await caller.service.figures()
        assert figures['lengthwise_requests_total{code="200",key="-",model="sums",version="1"}'] == 300
        assert idle(figures)


async def test_who_cannot_be_answered_in_time_is_told_at_once_and_does_not_wait_for_it() -> None:
    release, entered, wait = held_batch()
    async with listening(model(manifest(), wait, seconds=64.0), max_queue_seconds=3600) as caller:
        service = caller.service
        running = asyncio.create_task(service.predict(GOOD))  # type: ignore[arg-type]
        await entered.wait()
        # Each is predicted to take a second in a full batch, 64 alone; what runs is predicted to run for 64, too
        many = {"sequences": [[[1, 3]]] * 10, "timeout_ms": 150_000}
        waiting = asyncio.create_task(service.predict(many))  # type: ignore[arg-type]
        while not service.serving.served[0].queue.pending:
            assert not waiting.done()
            await asyncio.sleep(0)
        service.serving.batcher.admission.rate.value = 0.25
        late = await service.predict({**GOOD, "timeout_ms": 100_000})
        assert (late.status_code, "would wait for about" in late.json()["detail"]) == (504, True)
        hurried = asyncio.create_task(service.predict({**GOOD, "timeout_ms": 140_000}))  # type: ignore[arg-type]
        release.set()
        assert {(await asked).status_code for asked in (running, waiting, hurried)} == {200}
        figures = await service.figures()
        assert figures['lengthwise_rejected_total{model="sums",reason="deadline",version="1"}'] == 1


@pytest.mark.parametrize("timeout_ms", [0.001, 1])
async def test_a_deadline_that_has_passed_is_504_and_nothing_runs(timeout_ms: float) -> None:
    release, entered, wait = held_batch()
    async with listening(model(manifest(), wait)) as caller:
        running = asyncio.create_task(caller.service.predict(GOOD))  # type: ignore[arg-type]
        await entered.wait()
        late = await caller.service.predict({**GOOD, "timeout_ms": timeout_ms})
        assert (late.status_code, late.json()["title"]) == (504, "Deadline exceeded")
        release.set()
        assert (await running).status_code == 200
        assert caller.service.serving.served[0].metrics.batch_rows.total == 1
