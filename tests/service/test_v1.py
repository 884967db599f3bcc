"""KServe's protocol v1, through the service."""

from typing import Any
from urllib.parse import urlencode

import httpx2
import orjson
import pytest

from lengthwise.decoding import fast_json, json_body
from lengthwise.protocols.predict import PredictV1
from tests.support.bad_bodies import BAD_BODIES
from tests.support.numpy_models import BLIND, MANIFESTS, NOT_FINITE, Service, idle, manifest, model, serving


async def ask(service: Service, body: Any, name: str = "sums", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    sent = {"content-type": "application/json"} | {key.replace("_", "-"): text for key, text in headers.items()}
    return await service.client.post(f"/v1/models/{name}:predict", content=content, headers=sent)


async def test_ragged_instances_get_the_predictions_of_predict(service: Service) -> None:
    sequences = [[[1, 3]], {"id": "a", "steps": [[0, 0], [5, 5], [-2, 0]], "step_mask": [True, False, True]}]
    asked = await ask(service, {"instances": sequences, "outputs": ["attention"], "priority": 1})
    predicted = await service.predict({"sequences": sequences, "outputs": ["attention"]})
    assert asked.status_code == 200
    assert asked.headers["content-type"] == "application/json"
    assert asked.json() == {"predictions": predicted.json()["predictions"]}


@pytest.mark.skipif(not fast_json.COMPILED, reason="without a C compiler the reader in Python reads every body")
async def test_an_ordinary_body_takes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body.validation, "read", None)
    async with serving(model(MANIFESTS["takes missing"])) as service:
        assert (await ask(service, {"instances": [[[1, 3]], [[1, 2], [3, None]]]})).status_code == 200
        with_options = {"timeout_ms": 1e4, "instances": [{"id": "a", "steps": [[1, 3]]}]}
        assert (await ask(service, with_options)).status_code == 200


async def test_every_bad_body_is_refused_in_one_sentence_and_the_next_good_one_is_answered(service: Service) -> None:
    for bad in BAD_BODIES:
        body = bad.body.replace(b"sequences", b"instances")
        answer = await ask(service, body)
        assert answer.status_code == 400, bad.name
        (said,) = answer.json().values()
        assert set(answer.json()) == {"error"}
        assert bad.pointer.replace("sequences", "instances") in said, bad.name
        words = "unknown field" if bad.pointer in ("/model", "/version") else bad.words
        assert words.replace("sequences", "instances") in said, bad.name
        assert (await ask(service, {"instances": [[[1, 3]]]})).status_code == 200
    figures = await service.figures()
    assert idle(figures)
    assert sum(v for k, v in figures.items() if k.startswith('lengthwise_requests_total{code="400"')) == len(BAD_BODIES)


async def test_the_model_stands_in_the_path_alone() -> None:
    async with serving(model(manifest()), model(manifest(name="other"))) as service:
        answer = await ask(service, {"instances": [[[1, 3]]], "model": "other"})
        assert answer.json() == {
            "error": "/model: unknown field; known are instances, outputs, priority, signature_name, timeout_ms"
        }
        assert (await ask(service, {"instances": [[[1, 3]]]}, "other")).status_code == 200


@pytest.mark.parametrize(
    ("body", "name", "headers", "status", "said"),
    [
        ({"instances": [[[1, 3]]]}, "none", {}, 404, "no such model is served"),
        ({"instances": [[[1, 3]]]}, "..%2fsums", {}, 404, "nothing is at this path"),
        ({"instances": [[[1, 3]]]}, "sums%00", {}, 404, "no such model is served"),
        ({"instances": [[[1, 3]]] * 9}, "sums", {}, 413, "a request may have 8 sequences, this one has 9"),
        (bytes(5000), "sums", {}, 413, "a body may have 4096 bytes, after inflating too"),
        ({"sequences": [[[1, 3]]]}, "sums", {}, 400, "/sequences: unknown field"),
        ({}, "sums", {"content_type": "text/plain"}, 415, "content-type must be application/json, or none"),
        ({"instances": [[[1, 3]]], "timeout_ms": 1e-300}, "sums", {}, 504, "the deadline had passed when the request "),
        ({"instances": [[[1, 3]], [[NOT_FINITE] * 2]]}, "sums", {}, 400, "/instances/1: the model's answer to this "),
        ({"instances": [[[BLIND] * 2]], "outputs": ["attention"]}, "sums", {}, 400, "/instances/0: the model's "),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_its_status(
    body: Any, name: str, headers: dict[str, str], status: int, said: str
) -> None:
    async with serving(model(manifest()), max_body_bytes=4096, max_sequences=8) as service:
        answer = await ask(service, body, name, **headers)
        assert answer.status_code == status
        assert answer.json()["error"].startswith(said)
        figures = await service.figures()
    counted = {k: v for k, v in figures.items() if k.startswith("lengthwise_requests_total") and v}
    assert sum(counted.values()) == (0 if said.startswith("nothing is at") else 1)
    assert all(f'code="{status}"' in key for key in counted)


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("kind", [FORM, f"{FORM}; charset=utf-8", FORM.title()])
@pytest.mark.parametrize("place", ["", "/versions/1", "/labels/stable"])
async def test_the_type_that_curl_writes_by_itself_is_taken_for_json(kind: str, place: str) -> None:
    async with serving(model(manifest()), aliases={"sums": {"stable": 1}}) as service:
        answer = await ask(service, {"instances": [[[1, 3]]]}, f"sums{place}", content_type=kind)
        assert answer.json() == (await ask(service, {"instances": [[[1, 3]]]})).json()


@pytest.mark.parametrize(
    "sender", [{"origin": "http://service"}, {"origin": "null"}, {"origin": ""}, {"sec-fetch-site": "same-origin"}]
)
async def test_no_web_page_sends_the_type_of_a_form(sender: dict[str, str]) -> None:
    async with serving(model(manifest()), cors_origins=("*",)) as service:
        answer = await ask(service, {"instances": [[[1, 3]]]}, content_type=FORM, **sender)
        assert (answer.status_code, "curl: -H 'content-type: application/json'" in answer.text) == (415, True)
        assert (await ask(service, {"instances": [[[1, 3]]]}, **sender)).status_code == 200


async def test_what_a_form_of_an_old_browser_writes_is_no_json(service: Service) -> None:
    form = {'{"instances": [[[1, 3]]], "signature_name": "': '"}'}
    for kind, status in ((FORM, 400), ("text/plain", 415), ("multipart/form-data; boundary=x", 415)):
        written = urlencode(form).encode() if kind == FORM else "=".join(*form.items()).encode()
        answer = await ask(service, written, content_type=kind)
        assert answer.status_code == status
        assert "the body is not JSON" in answer.text or status == 415


@pytest.mark.parametrize("name", ["serving_default", "", "predict"])
async def test_the_signature_of_tensorflow_servings_clients_changes_nothing(service: Service, name: str) -> None:
    answer = await ask(service, {"signature_name": name, "instances": [[[1, 3]]]})
    assert answer.status_code == 200
    assert answer.json() == (await ask(service, {"instances": [[[1, 3]]]})).json()


@pytest.mark.parametrize("name", [None, 1, ["serving_default"]])
async def test_a_signature_is_a_text(service: Service, name: Any) -> None:
    answer = await ask(service, {"signature_name": name, "instances": [[[1, 3]]]})
    assert answer.status_code == 400
    assert "/signature_name: must be a string" in answer.json()["error"]
    assert (await service.predict({"signature_name": "", "sequences": [[[1, 3]]]})).status_code == 422


async def test_columns_are_told_to_be_instances(service: Service) -> None:
    answer = await ask(service, {"inputs": [[[1, 3]]]})
    assert answer.status_code == 400
    assert "columns as 'inputs' are not read: send 'instances', one for each sequence" in answer.json()["error"]
    assert "did you mean" not in answer.json()["error"]
    misspelt = await ask(service, {"output": [], "instances": [[[1, 3]]]})
    assert "did you mean outputs" in misspelt.json()["error"]


async def test_a_path_may_name_a_version_or_an_alias() -> None:
    aliases = {"sums": {"champion": 1, "canary": 2}}
    wide = model(manifest(version=2, features=3))  # so that it is seen which one answers
    async with serving(model(manifest()), wide, aliases=aliases) as service:
        for place, features in (("", 2), ("/versions/1", 2), ("/versions/2", 3), ("/labels/canary", 3)):
            body = {"instances": [[[1] * features]]}
            answer = await service.client.post(f"/v1/models/sums{place}:predict", json=body)
            assert answer.status_code == 200, place
            state = await service.client.get(f"/v1/models/sums{place}")
            assert state.json() == {"name": "sums", "ready": True}
            call = await service.client.get(f"/v1/models/sums{place}:predict")
            assert (call.status_code, call.headers["allow"]) == (405, "POST")  # and not a model `sums:predict`
        for place, status in (("/versions/9", 404), ("/versions/01", 400), ("/labels/none", 400)):
            answer = await service.client.post(f"/v1/models/sums{place}:predict", json={"instances": [[[1, 3]]]})
            assert answer.status_code == status, place
            assert (await service.client.get(f"/v1/models/sums{place}")).status_code == status, place
        figures = await service.figures()
    assert figures['lengthwise_requests_total{code="200",key="-",model="sums",version="2"}'] == 2


def test_a_version_in_the_path_takes_the_way_past_asgi_too() -> None:
    (groups,) = (
        match.groupdict() for match in [PredictV1.path.fullmatch(b"/v1/models/sums/versions/2:predict")] if match
    )
    assert groups == {"model": b"sums", "version": b"2"}


async def test_models_are_listed_and_told_ready() -> None:
    async with serving(
        model(manifest(name="b")), model(manifest(name="a")), model(manifest(name="a", version=2))
    ) as one:
        assert (await one.client.get("/v1/models")).json() == {"models": ["a", "b"]}
        assert (await one.client.get("/v1/models/b")).json() == {"name": "b", "ready": True}
        missing = await one.client.get("/v1/models/c")
        assert (missing.status_code, missing.json()) == (
            404,
            {"error": "no such model is served: 'c'; served are a, b"},
        )
        one.serving.batcher.begin_draining()
        draining = await one.client.get("/v1/models/b")
    assert (draining.status_code, draining.json()) == (503, {"name": "b", "ready": False})
    assert draining.headers["connection"] == "close"
