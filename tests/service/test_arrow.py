"""Arrow streams through the service: bodies, answers, options, and an installation without pyarrow."""

import gzip
import json
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from lengthwise.decoding import arrow_stream
from lengthwise.protocols.binary_bodies import prefers
from tests.support.arrow_streams import ARROW, Form, stream, table_of
from tests.support.numpy_models import Service, manifest, model, serving

SEQUENCES: list[dict[str, Any]] = [
    {"id": "a", "steps": [[0.1, 2.0], [3.0, 4.5]]},
    {"steps": [[0.1, 2.0], [3.0, 4.5], [5.0, 1.0]], "step_mask": [True, False, True]},
    {"steps": [[1.0, 1.0]]},
]


async def sent(service: Service, body: bytes, query: str = "", **headers: str) -> httpx.Response:
    named = {"content-type": ARROW} | {name.replace("_", "-"): text for name, text in headers.items()}
    return await service.client.post(f"/predict{query}", content=body, headers=named)


async def test_the_answer_is_that_to_the_same_sequences_in_json() -> None:
    async with serving(model(manifest(missing="zero"))) as service:
        as_arrow = await sent(service, stream(SEQUENCES), "?outputs=attention&priority=3&timeout_ms=5000")
        as_json = await service.predict({"sequences": SEQUENCES, "outputs": ["attention"]})
    assert as_arrow.status_code == 200, as_arrow.text
    assert as_arrow.json() == as_json.json()
    assert as_arrow.headers["content-type"] == "application/json"
    assert as_arrow.headers["server-timing"].startswith("decode;dur=")


def rounded(value: Any) -> Any:
    """A value with floats as their float32, and without the columns of a row that are null."""
    if isinstance(value, list):
        return list(map(rounded, value))
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items() if entry is not None}
    return np.float32(value).tobytes() if isinstance(value, float) else value


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"task": "multi-label"},
        {"task": "per-step"},
        {"long": "window", "max_length": 2},
        {"long": "window", "max_length": 2, "task": "per-step", "attention": False},
        {"long": "head", "max_length": 2, "task": "per-step"},
    ],
    ids=str,
)
async def test_an_answer_as_arrow_has_the_values_of_that_in_json(fields: dict[str, Any]) -> None:
    rules = manifest(missing="zero", **fields)
    query = "?outputs=attention" if rules.graph.attention else ""
    options = {"outputs": ["attention"]} if rules.graph.attention else {}
    async with serving(model(rules)) as service:
        body = stream(SEQUENCES)
        as_arrow = await sent(service, body, query, accept=ARROW)
        as_json = (await service.predict({"sequences": SEQUENCES, **options})).json()
        both = await service.predict({"sequences": SEQUENCES, **options}, accept=f"{ARROW}, application/json;q=0.5")
    assert as_arrow.status_code == 200, as_arrow.text
    assert as_arrow.headers["content-type"] == both.headers["content-type"] == ARROW
    assert as_arrow.content == both.content
    table = table_of(as_arrow.content)
    table.validate(full=True)
    assert json.loads(table.schema.metadata[b"labels"]) == as_json["labels"]
    assert table.schema.metadata[b"model"] == b"sums"
    assert table.schema.metadata[b"version"] == b"1"
    assert list(map(rounded, table.to_pylist())) == list(map(rounded, as_json["predictions"]))


async def test_a_body_may_be_compressed_as_a_whole(service: Service) -> None:
    body = stream([{"steps": [[1.0, 2.0]] * 50}] * 50)
    answer = await sent(service, gzip.compress(body), content_encoding="gzip")
    assert len(answer.json()["predictions"]) == 50
    too_large = await sent(service, gzip.compress(b"\0" * 20_000_000), content_encoding="gzip")
    assert too_large.status_code == 413


@pytest.mark.parametrize("kind", ["arrow", "raw"])
async def test_an_unknown_alias_is_said_with_what_else_is_wrong_with_the_query(kind: str) -> None:
    raw = {"content_type": "application/octet-stream", "x_lengthwise_shape": "1,2"}
    async with serving(model(manifest()), aliases={"sums": {"champion": 1}}) as service:
        body = stream([{"steps": [[1.0, 2.0]]}]) if kind == "arrow" else np.ones((1, 2), dtype="<f4").tobytes()
        headers = {} if kind == "arrow" else raw
        good = await sent(service, body, "?version=champion", **headers)
        bad = await sent(service, body, "?version=best&priority=x", **headers)
    assert good.status_code == 200
    assert bad.status_code == 422
    assert [one["detail"].split(":")[0] for one in bad.json()["errors"]] == [
        "query parameter priority",
        "query parameter version",
    ]
    assert "an alias of the model: champion" in bad.json()["errors"][1]["detail"]


async def test_problems_of_the_query_and_of_the_body_are_said_together() -> None:
    async with serving(model(manifest(attention=False))) as service:
        answer = await sent(service, stream([{"steps": [[1.0, None]]}]), "?outputs=attention&priority=x")
    assert [(one["pointer"], one["detail"].partition(":")[0]) for one in answer.json()["errors"]] == [
        ("", "query parameter priority"),
        ("", "query parameter outputs"),
        (
            "/sequences/0/steps/0/1",
            "the model sums/1 refuses missing values; export it with another missing policy to allow them",
        ),
    ]


async def test_one_sequence_whose_answer_is_not_finite_has_its_pointer(service: Service) -> None:
    answer = await sent(service, stream([{"steps": [[1.0, 2.0]]}, {"steps": [[-999.0, -999.0]]}]))
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/sequences/1"]


async def test_the_memory_of_a_body_is_counted_and_given_back() -> None:
    body = stream([{"steps": [[1.0, 2.0]] * 100}] * 100, Form(pa.float32(), "fixed"))
    async with serving(model(manifest()), max_inflight_bytes=4 * 100_000, max_body_bytes=100_000) as service:
        assert len(body) > 80_000
        assert (await sent(service, body)).status_code == 200
        assert (await sent(service, body * 2)).status_code == 413
        assert service.serving.inflight.bytes == 0


async def test_without_pyarrow_a_stream_is_refused_and_an_answer_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_stream, "installed", lambda: False)
    async with serving(model(manifest())) as service:
        refused = await sent(service, stream([{"steps": [[1.0, 2.0]]}]))
        assert refused.status_code == 415
        assert "pip install 'lengthwise[arrow]'" in refused.json()["detail"]
        answer = await service.predict({"sequences": [[[1, 2]]]}, accept=ARROW)
        assert answer.headers["content-type"] == "application/json"
        assert ARROW not in (await service.client.get("/")).json()["media_types"]
        assert ARROW not in (await service.client.get("/openapi.json")).text


async def test_the_server_says_its_limits_and_what_it_reads() -> None:
    async with serving(model(manifest()), max_sequences=7) as service:
        said = (await service.client.get("/")).json()
        document = (await service.client.get("/openapi.json")).json()
    assert said["limits"] == {"max_body_bytes": 16_777_216, "max_sequences": 7, "max_queue_cost_steps": 1_000_000}
    assert said["media_types"] == ["application/json", "application/octet-stream", ARROW]
    assert ARROW in document["paths"]["/predict"]["post"]["requestBody"]["content"]


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        *((ARROW, True), (ARROW.upper(), True), (f"{ARROW};q=1.0", True)),
        *((f"application/json;q=0.5, {ARROW}", True), (f"{ARROW}, */*;q=0.8", True)),
        *((f"{ARROW}, application/json", True), (f"{ARROW};q=0.5, application/json", False)),
        *((f"{ARROW};q=0.5, application/*", False), (f"{ARROW};q=0.5, */*;q=0.6", False)),
        *((f"{ARROW};q=0.5, text/html", True), (f"{ARROW};q=0.7, application/json;q=0.2, */*", True)),
        *((f"{ARROW};q=0", False), (f"{ARROW};q=0, */*;q=0", False), (f"{ARROW};q=x", False)),
        *((f"{ARROW};q=2", False), (f"{ARROW};q=-1", False), (f"{ARROW};q=1e9", False), (f"{ARROW};q=", False)),
        *((f"{ARROW}x", False), ("application/vnd.apache.arrow.file", False), ("*/*", False)),
        *(("application/*", False), ("", False), (",;,;q=1,", False)),
    ],
)
def test_qualities_choose_the_form_of_an_answer(accept: str, wanted: bool) -> None:
    assert prefers(accept.encode(), ARROW.encode(), b"application/json") == wanted
