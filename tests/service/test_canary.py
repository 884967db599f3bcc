"""A canary answers a share of the sequences, chosen by their ids alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lengthwise.canary import Canary
from lengthwise.client.answers import predictions_of
from lengthwise.client.bodies import ARROW
from lengthwise.errors import ConfigurationError
from lengthwise.repository.canary import why_not
from lengthwise.settings import Settings
from lengthwise.versions import Key
from tests.support.numpy_models import NOT_FINITE, Service, idle, manifest, model, serving

CANARY = Canary(Key("sums", 2), 0.3)
IDS = [f"patient-{number}" for number in range(200)]


async def versions(service: Service, *ids: str | None, **fields: str) -> list[str]:
    """The version that answered each sequence of one call."""
    sequences = [{"steps": [[1, 2]]} | ({} if name is None else {"id": name}) for name in ids]
    response = await service.predict({"sequences": sequences} | fields)
    assert response.status_code == 200, response.text
    document = response.json()
    assert [entry.get("id") for entry in document["predictions"]] == list(ids)
    return [entry.get("version", document["version"]) for entry in document["predictions"]]


@asynccontextmanager
async def canaried(share: float = CANARY.share, default: int = 1, **fields: Any) -> AsyncIterator[Service]:
    """A service of two versions, of which the second is the canary of the first; it may have other fields."""
    made = model(manifest(version=1)), model(manifest(version=2, **fields))
    champion = {"sums": {"champion": default}}
    async with serving(*made, aliases=champion, canary=f"sums/2={share}") as service:
        yield service


class TestWhichIds:
    def test_a_share_of_ids_is_taken_and_the_same_ones_always(self) -> None:
        taken = [CANARY.takes(f"id {number}") for number in range(10_000)]
        assert 2700 < sum(taken) < 3300
        assert taken == [CANARY.takes(f"id {number}") for number in range(10_000)]

    def test_a_larger_share_keeps_the_ids_of_a_smaller_one(self) -> None:
        small, large = Canary(CANARY.key, 0.1), Canary(CANARY.key, 0.5)
        assert all(large.takes(name) for name in IDS if small.takes(name))

    def test_all_none_and_no_id(self) -> None:
        assert all(Canary(CANARY.key, 1.0).takes(name) for name in [*IDS, "", "\ud800"])
        assert not any(Canary(CANARY.key, 0.0).takes(name) for name in IDS)
        assert not Canary(CANARY.key, 1.0).takes(None)

    @pytest.mark.parametrize(
        "text", ["", "sums", "sums/2", "sums/2=", "sums/2=2", "sums/2=-1", "sums/x=0.1", "=0.1", "sums/2=nan"]
    )
    def test_a_wrong_canary_is_said(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="NAME/VERSION=SHARE"):
            Settings.load(canary=text)


async def test_the_same_id_meets_the_same_version_in_any_call() -> None:
    expected = ["2" if CANARY.takes(name) else "1" for name in IDS]
    assert {"1", "2"} == set(expected)
    async with canaried() as service:
        assert [(await versions(service, name))[0] for name in IDS[:40]] == expected[:40]
        assert await versions(service, *IDS) == expected
        assert await versions(service, *IDS, model="sums") == expected
        assert await versions(service, *reversed(IDS)) == expected[::-1]


async def test_a_call_that_names_a_version_or_an_alias_gets_it() -> None:
    async with canaried(1.0) as service:
        assert await versions(service, *IDS[:3]) == ["2"] * 3
        for named in ("1", "champion"):
            assert await versions(service, *IDS[:3], version=named) == ["1"] * 3
        assert await versions(service, *IDS[:3], version="2") == ["2"] * 3


@pytest.mark.parametrize("accept", ["application/json", ARROW])
async def test_the_client_says_what_the_canary_answered(accept: str) -> None:
    async with canaried(1.0) as service:
        response = await service.predict({"sequences": [{"id": "a", "steps": [[1, 3]]}, [[4, 4]]]}, accept=accept)
    found = predictions_of(response.content, accept)
    assert (found.version, [prediction.version for prediction in found]) == ("1", ["2", None])


async def test_a_sequence_without_an_id_gets_the_default() -> None:
    async with canaried(1.0) as service:
        assert await versions(service, None, "a", None) == ["1", "2", "1"]


async def test_the_answers_are_those_of_the_version() -> None:
    async with canaried(1.0) as service:
        response = await service.predict(
            {"sequences": [{"id": "a", "steps": [[1, 3]]}, [[4, 4]]], "outputs": ["attention"]}
        )
        first, second = response.json()["predictions"]
        alone = (await service.predict({"sequences": [[[1, 3]], [[4, 4]]], "version": "2"})).json()["predictions"]
        assert first["probabilities"] == alone[0]["probabilities"]
        assert second["probabilities"] == alone[1]["probabilities"]
        assert first["attention"] == [1.0]


async def test_mixed_calls_leave_nothing_behind() -> None:
    async with canaried() as service:
        answers = await asyncio.gather(*(versions(service, *IDS[place : place + 10], None) for place in range(100)))
        assert len(answers) == 100
        assert idle(await service.figures())
        assert service.serving.batcher.unanswered == 0


async def test_a_canary_that_fails_fails_its_calls_once() -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("broken")

    made = model(manifest(version=1)), model(manifest(version=2), fail)
    async with serving(*made, aliases={"sums": {"champion": 1}}, canary="sums/2=1") as service:
        mixed = {"sequences": [{"id": "a", "steps": [[1, 2]]}, [[1, 2]]]}
        for _ in range(5):
            assert (await service.predict(mixed)).status_code == 500
        assert (await service.predict({"sequences": [[[1, 2]]]})).status_code == 200
        assert idle(await service.figures())
        assert service.serving.batcher.unanswered == 0


async def test_one_bad_answer_is_said_with_its_place() -> None:
    async with canaried(1.0) as service:
        bad = {"id": "a", "steps": [[NOT_FINITE, NOT_FINITE]]}
        response = await service.predict({"sequences": [[[1, 2]], bad]})
        assert response.status_code == 422
        assert [entry["pointer"] for entry in response.json()["errors"]] == ["/sequences/1"]


async def test_a_full_queue_refuses_the_whole_call() -> None:
    made = model(manifest(version=1)), model(manifest(version=2))
    limits = {"max_queue_cost_steps": 8, "max_batch_cost_steps": 8}
    async with serving(*made, aliases={"sums": {"champion": 1}}, canary="sums/2=1", **limits) as service:
        body = {"sequences": [[[1, 2]] * 8, {"id": "a", "steps": [[1, 2]] * 8}]}
        assert (await service.predict(body)).status_code in (200, 413, 429)
        assert (await service.predict({"sequences": [[[1, 2]]]})).status_code == 200
        assert idle(await service.figures())
        assert service.serving.batcher.unanswered == 0


async def test_a_deadline_ends_both_parts() -> None:
    def wait(_: Any) -> None:
        time.sleep(0.3)

    made = model(manifest(version=1)), model(manifest(version=2), wait)
    async with serving(*made, aliases={"sums": {"champion": 1}}, canary="sums/2=1") as service:
        mixed = {"sequences": [{"id": "a", "steps": [[1, 2]]}, [[1, 2]]], "timeout_ms": 100}
        assert (await service.predict(mixed)).status_code == 504
        async with asyncio.timeout(60):  # the run that came too late ends by itself
            while not idle(await service.figures()):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("cancelled", [False, True], ids=["the connection ends", "the call is cancelled"])
async def test_a_client_that_leaves_ends_both_parts_and_holds_no_memory(cancelled: bool) -> None:
    went_on, ran = threading.Event(), []

    def wait(batch: Any) -> None:
        ran.append(batch)
        went_on.wait(120)

    made = model(manifest(version=1), wait), model(manifest(version=2), wait)
    async with serving(*made, aliases={"sums": {"champion": 1}}, canary="sums/2=1") as service:
        left = asyncio.Event()
        sent = [{"type": "http.request", "body": b'{"sequences": [{"id": "a", "steps": [[1, 2]]}, [[1, 2]]]}'}]

        async def receive() -> dict[str, Any]:
            if not sent:
                await left.wait()
            return sent.pop() if sent else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            """Nobody reads it."""

        call = asyncio.ensure_future(
            service.app({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive, send)
        )
        while not ran:
            await asyncio.sleep(0.01)
        call.cancel() if cancelled else left.set()
        await asyncio.wait([call], timeout=60)
        ended, held = call.done(), service.serving.inflight.bytes
        went_on.set()
        call.cancel()
        assert (ended, held) == (True, 0)
        while service.serving.batcher.unanswered or not service.serving.batcher.at_rest:
            await asyncio.sleep(0.01)
        assert len(ran) == 1, "a part that had not begun was run for nobody"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_length": 9}, "they differ in max_length"),
        ({"missing": "zero"}, "they differ in missing"),
        ({"features": 3}, "they differ in input"),
        ({"attention": False}, "they differ in attention"),
        ({"long": "window"}, "a model that splits"),
    ],
)
async def test_a_version_that_takes_other_sequences_is_no_canary(
    fields: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert reason in (why_not(manifest(), manifest(version=2, **fields)) or "")
    async with canaried(1.0, **fields) as service:
        assert await versions(service, "a") == ["1"]
    assert f"the canary sums/2 gets no calls: {reason}" in caplog.text


async def test_the_default_version_is_no_canary_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    async with canaried(1.0, default=2) as service:
        assert await versions(service, "a") == ["2"]
    assert "it is the default version" in caplog.text
