"""Tables and objects given to a client: they are sent in the order of the names of the model that answers."""

from __future__ import annotations

from typing import Any

import httpx2
import numpy as np
import pandas
import pytest

import lengthwise
from lengthwise import errors
from tests.support.numpy_models import manifest, model, serving

STEPS = np.float32([[0.1, 2.0], [3.0, 4.5], [5.0, -1.0]])
TABLE = pandas.DataFrame(STEPS, columns=["ax", "ay"]).assign(id="s", note="text")
REVERSED = TABLE[["note", "ay", "id", "ax"]]
FORWARD, BACKWARD = manifest(inputs=("ax", "ay")), manifest(inputs=("ay", "ax"), version=2)


class Counting(httpx2.AsyncBaseTransport):
    """Sends to an application that may change, and keeps the paths that were asked for."""

    def __init__(self, app: Any) -> None:
        self.app, self.paths = app, list[str]()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.paths.append(request.url.path)
        return await httpx2.ASGITransport(self.app).handle_async_request(request)


def client_of(transport: httpx2.AsyncBaseTransport, **options: Any) -> lengthwise.AsyncClient:
    return lengthwise.AsyncClient("http://service", transport=transport, **options)


def bits(predictions: Any) -> list[bytes]:
    return [one.probabilities.tobytes() for one in predictions]


@pytest.mark.parametrize(
    "given",
    [TABLE, REVERSED, [REVERSED.drop(columns=["id", "note"])], [REVERSED[["ay", "ax"]].to_dict("records")]],
    ids=["in order", "reversed", "a list", "objects"],
)
async def test_a_table_is_sent_in_the_order_of_the_model_with_no_call_more(given: Any):
    async with serving(model(FORWARD)) as service:
        transport = Counting(service.app)
        async with client_of(transport) as client:
            assert bits(await client.predict(given)) == bits(await client.predict([STEPS]))
        assert transport.paths == ["/", "/predict", "/predict"]


async def test_other_names_are_refused_before_anything_is_sent():
    async with serving(model(FORWARD)) as service:
        transport = Counting(service.app)
        async with client_of(transport) as client:
            with pytest.raises(errors.ConfigurationError, match=r"takes ax, ay; missing: ax; did you mean a_x\?"):
                await client.predict(REVERSED.rename(columns={"ax": "a_x"}))
            with pytest.raises(errors.InvalidSequences, match="no name of a feature"):
                await client.predict([[{"ax": 1, "by": 2}]])
        assert transport.paths == ["/"]


async def test_the_version_that_is_asked_for_says_the_order():
    async with serving(model(FORWARD), model(BACKWARD)) as service, client_of(Counting(service.app)) as client:
        first = await client.predict([STEPS], version=1)
        second = await client.predict([STEPS[:, ::-1]], version=2)
        for table in (TABLE, REVERSED):
            assert bits(await client.predict(table, version=1)) == bits(first)
            assert bits(await client.predict(table, version="2")) == bits(second)
            assert bits(await client.predict(table)) == bits(second)


async def test_a_later_version_with_another_order_gets_its_own_order():
    async with serving(model(FORWARD)) as old, serving(model(BACKWARD)) as new:
        transport = Counting(old.app)
        async with client_of(transport) as client:
            first = bits(await client.predict(REVERSED))
            prepared = await client.prepare(REVERSED)
            transport.app = new.app
            assert bits(await client.predict(iter([REVERSED[["ax", "ay"]]]))) == first
            assert transport.paths[-3:] == ["/predict", "/", "/predict"]
            with pytest.raises(errors.ConfigurationError, match="prepared for 'ax', 'ay', and sums takes 'ay', 'ax'"):
                await client.predict(prepared)


async def test_a_model_without_names_gets_tables_by_position_and_refuses_objects():
    async with serving(model(manifest())) as service, client_of(Counting(service.app)) as client:
        table = TABLE.drop(columns="note")
        assert bits(await client.predict(table)) == bits(await client.predict([STEPS]))
        with pytest.raises(errors.InvalidSequences, match="have no names"):
            await client.predict([[{"ax": 1, "ay": 2}]])


async def test_the_index_lists_the_names_of_what_is_served():
    async with serving(model(FORWARD), model(manifest(version=3))) as service:
        names = (await service.client.get("/", headers={"accept": "application/json"})).json()["names"]
    assert names == {"sums": {"1": ["ax", "ay"], "3": None}}
