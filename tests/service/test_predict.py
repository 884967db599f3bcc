import asyncio
import gzip
import re
from typing import Any

import numpy as np
import orjson
import pytest

from lengthwise.decoding import json_body
from lengthwise.padding import PaddedBatch
from tests.support.bad_bodies import BAD_BODIES, option, sequences
from tests.support.http_lines import held
from tests.support.numpy_models import NOT_FINITE, Service, idle, manifest, model, serving
from tests.support.waiting import until

GOOD = {"sequences": [[[1, 3]]]}


def softmax(figure: float) -> list[float]:
    powers = np.exp(np.arange(3) * figure - 2 * max(figure, 0))
    return [float(power) for power in powers / powers.sum()]


async def still_well(service: Service) -> None:
    """Whatever was refused before, the next good request is answered and nothing waits."""
    answer = await service.predict(GOOD)
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["probabilities"] == pytest.approx(softmax(2.0), abs=1e-6)
    assert idle(await service.figures())


class Direct:
    """One ASGI call of `POST /predict` whose client may leave, even before its body has `ended`."""

    def __init__(self, app: Any, *parts: bytes, ended: bool = True, **headers: str) -> None:
        self.sent: list[dict[str, Any]] = []
        self._messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        self._messages[-1]["more_body"] = not ended
        self._left = asyncio.Event()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "query_string": b"",
            "headers": [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()],
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self._left.set()


async def test_an_answer_is_what_the_model_says(service: Service) -> None:
    answer = await service.predict({"sequences": [[[1, 3]], {"id": "x", "steps": [[0, 0], [-2, 0]]}]})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert (body["model"], body["version"], body["labels"]) == ("sums", "1", ["a", "b", "c"])
    first, second = body["predictions"]
    assert (first["label"], first["length"]) == ("c", 1)
    assert first["probabilities"] == pytest.approx(softmax(2.0), abs=1e-6)
    assert first["score"] == max(first["probabilities"])
    assert (second["id"], second["label"], second["length"]) == ("x", "a", 2)
    assert second["probabilities"] == pytest.approx(softmax(-0.5), abs=1e-6)


async def test_every_bad_body_is_refused_with_its_pointer_and_alone(service: Service) -> None:
    for bad in BAD_BODIES:
        answer = await service.predict(bad.body)
        assert answer.status_code == 422, bad.name
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == 422
        assert problem["errors"][0]["pointer"] == bad.pointer, bad.name
        assert bad.words in problem["errors"][0]["detail"], bad.name
        assert problem["errors_total"] == len(problem["errors"]) == 1
        await still_well(service)
    figures = await service.figures()
    assert figures['lengthwise_requests_total{code="422",key="-",model="",version=""}'] == len(BAD_BODIES)
    assert figures['lengthwise_requests_total{code="200",key="-",model="sums",version="1"}'] == len(BAD_BODIES)
    assert figures['lengthwise_sequences_total{model="sums",version="1"}'] == len(BAD_BODIES)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (orjson.dumps(GOOD), {"content_type": "text/plain"}, 415, "application/json"),
        (orjson.dumps(GOOD), {"content_type": "application/x-www-form-urlencoded"}, 415, "curl: -H 'content-type: "),
        (orjson.dumps(GOOD), {"content_type": "application/jsonp"}, 415, "application/json"),
        (orjson.dumps(GOOD), {"content_type": "application/vnd.apache.arrow.stream"}, 415, "binary extension"),
        (orjson.dumps(GOOD), {"content_encoding": "br"}, 415, "gzip"),
        (orjson.dumps(GOOD), {"content_encoding": "gzip"}, 422, "not gzip"),
        (gzip.compress(orjson.dumps(GOOD), mtime=0)[:-3], {"content_encoding": "gzip"}, 422, "ends before"),
        (gzip.compress(orjson.dumps(GOOD), mtime=0) + b"junk", {"content_encoding": "gzip"}, 422, "not gzip"),
        (gzip.compress(bytes(5000), mtime=0), {"content_encoding": "gzip"}, 413, "4096 bytes"),
        (bytes(4097), {}, 413, "4096 bytes"),
        (sequences(",".join(["[[1, 2]]"] * 9)), {}, 413, "8 sequences, this one has 9"),
        (sequences(",".join(["[[1, 2]]"] * 9)).replace(b"1", b'"1"'), {}, 413, "8 sequences"),
        (option('"model": "other"'), {}, 404, "no such model"),
        (option('"model": "../sums"'), {}, 404, "no such model"),
        (option('"model": ""'), {}, 404, "no such model"),
        (option('"version": "2"'), {}, 404, "no such version"),
        (option(f'"version": "{"9" * 4000}"'), {}, 404, "no such version"),
    ],
)
async def test_what_cannot_be_taken_is_refused_by_its_status(
    body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    async with serving(model(manifest()), max_body_bytes=4096, max_sequences=8) as service:
        answer = await service.predict(body, **headers)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert words in answer.json()["detail"]
        assert answer.headers.get("connection") == ("close" if status == 413 else None)
        await still_well(service)
        figures = await service.figures()
    assert figures[f'lengthwise_requests_total{{code="{status}",key="-",model="",version=""}}'] == 1
    assert not any(value for name, value in figures.items() if name.startswith("lengthwise_rejected_total"))


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON; charset=utf-8", ""])
async def test_json_or_no_content_type_is_read(service: Service, media_type: str) -> None:
    assert (await service.predict(GOOD, content_type=media_type)).status_code == 200


async def test_a_body_in_many_parts_and_without_a_content_type_is_answered(service: Service) -> None:
    call = Direct(service.app, *[bytes([byte]) for byte in orjson.dumps(GOOD)])
    await call.task
    assert call.sent[0]["status"] == 200


async def test_a_request_id_is_echoed_and_those_without_one_get_ids_that_differ(service: Service) -> None:
    assert len({(await service.predict(GOOD)).headers["x-request-id"] for _ in range(20)}) == 20
    assert (await service.predict(GOOD, x_request_id="trace-1/a=b")).headers["x-request-id"] == "trace-1/a=b"
    bad = await service.predict(b"{", x_request_id="trace-2")
    assert (bad.status_code, bad.headers["x-request-id"]) == (422, "trace-2")


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "a\tb", "<script>", "a%0d%0ab", "é"])
async def test_a_request_id_that_is_not_safe_to_log_is_replaced(service: Service, given: str) -> None:
    call = Direct(service.app, orjson.dumps(GOOD), x_request_id=given)
    await call.task
    (told,) = (value for name, value in call.sent[0]["headers"] if name == b"x-request-id")
    assert re.fullmatch(rb"[0-9a-z-]{8,}", told)


async def test_server_timing_tells_decode_queue_and_inference(service: Service) -> None:
    timing = (await service.predict(GOOD)).headers["server-timing"]
    found = re.fullmatch(r"decode;dur=([\d.]+), queue;dur=([\d.]+), inference;dur=([\d.]+)", timing)
    assert found is not None
    assert all(0 <= float(milliseconds) < 5000 for milliseconds in found.groups())


async def test_attention_comes_where_it_is_asked_for(service: Service) -> None:
    masked = {"steps": [[1, 2], [9, 9], [3, 4]], "step_mask": [True, False, True]}
    asked = await service.predict({"sequences": [masked], "outputs": ["attention"]})
    unasked = await service.predict(GOOD)
    assert asked.json()["predictions"][0]["attention"] == [0.5, 0, 0.5]
    assert "attention" not in unasked.json()["predictions"][0]


async def test_a_multi_label_model_assigns_labels() -> None:
    async with serving(model(manifest(task="multi-label", threshold=0.6))) as service:
        (prediction,) = (await service.predict(GOOD)).json()["predictions"]
    assert list(prediction) == ["assigned", "probabilities", "length"]
    assert prediction["assigned"] == ["b", "c"]
    assert prediction["probabilities"] == pytest.approx([0.5, 0.8808, 0.9820], abs=1e-4)


async def test_a_per_step_model_answers_each_step_sent() -> None:
    async with serving(model(manifest(task="per-step"))) as service:
        sent = {"steps": [[1, 3], [0, 0], [-2, -2]], "step_mask": [True, False, True]}
        (prediction,) = (await service.predict({"sequences": [sent]})).json()["predictions"]
    assert list(prediction) == ["step_labels", "step_scores", "probabilities", "length"]
    assert prediction["step_labels"] == ["c", None, "a"]
    assert prediction["length"] == 2
    assert prediction["probabilities"][1] is None
    assert prediction["probabilities"][0] == pytest.approx(softmax(2.0), abs=1e-6)
    assert prediction["step_scores"] == [row and max(row) for row in prediction["probabilities"]]


async def test_probabilities_of_the_graph_are_not_normalised_again() -> None:
    async with serving(model(manifest(scores="probabilities"))) as service:
        (prediction,) = (await service.predict({"sequences": [[[0.25, 0.25]]]})).json()["predictions"]
    assert prediction["probabilities"] == [0, 0.25, 0.5]


async def test_a_model_of_one_feature_is_answered_for_bare_numbers() -> None:
    async with serving(model(manifest(features=1, missing="zero"))) as service:
        answer = await service.predict({"sequences": [[1, 3], [[1], [3]], [1, None, 3]]})
    bare, wrapped, missing = (prediction["probabilities"] for prediction in answer.json()["predictions"])
    assert bare == wrapped == pytest.approx(softmax(2.0), abs=1e-6)
    assert missing == pytest.approx(softmax(4 / 3), abs=1e-6)


@pytest.mark.parametrize(("policy", "mean"), [("head", 1.5), ("tail", 3.5)])
async def test_a_long_sequence_is_cut_by_the_models_policy(policy: Any, mean: float) -> None:
    async with serving(model(manifest(max_length=2, long=policy))) as service:
        sent = {"sequences": [[[i, i] for i in range(1, 5)]], "outputs": ["attention"]}
        (prediction,) = (await service.predict(sent)).json()["predictions"]
    assert prediction["probabilities"] == pytest.approx(softmax(mean), abs=1e-6)
    assert prediction["length"] == 2
    assert prediction["attention"] == ([0.5, 0.5, 0, 0] if policy == "head" else [0, 0, 0.5, 0.5])


async def test_a_long_sequence_is_answered_in_windows() -> None:
    async with serving(model(manifest(max_length=2, long="window"))) as service:
        sent = {"sequences": [[[i, i] for i in range(1, 6)], [[1, 3]]], "outputs": ["attention"]}
        long, short = (await service.predict(sent)).json()["predictions"]
    assert [(window["start"], window["length"]) for window in long["windows"]] == [(0, 2), (2, 2), (3, 2)]
    each = [softmax(1.5), softmax(3.5), softmax(4.5)]
    assert [window["probabilities"] for window in long["windows"]] == [pytest.approx(one, abs=1e-6) for one in each]
    mean = np.mean(each, axis=0)
    assert long["probabilities"] == pytest.approx(mean.tolist(), abs=1e-6)
    assert (long["length"], len(long["attention"])) == (5, 5)
    assert sum(long["attention"]) == pytest.approx(1)
    assert "windows" not in short
    assert short["probabilities"] == pytest.approx(softmax(2.0), abs=1e-6)


@pytest.mark.parametrize("fields", [{}, {"task": "per-step"}, {"max_length": 2, "long": "window"}])
async def test_an_answer_that_is_not_finite_is_refused_with_its_pointer(fields: Any) -> None:
    async with serving(model(manifest(**fields))) as service:
        bad = [[NOT_FINITE, NOT_FINITE], [0, 0], [0, 0]]
        answer = await service.predict({"sequences": [[[1, 3]], bad, [[1, 3]], bad]})
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/sequences/1", "/sequences/3"]
        assert (await service.predict(GOOD)).status_code == 200


async def test_an_answer_that_is_not_finite_does_not_touch_its_batch_mates() -> None:
    async with held() as (made, release, running):
        service = made.service
        first = asyncio.ensure_future(service.predict(GOOD))
        await running.wait()
        others = [
            asyncio.ensure_future(service.predict({"sequences": [[[NOT_FINITE, NOT_FINITE] if i == 3 else [1, 3]]]}))
            for i in range(8)
        ]
        await until(lambda: len(service.serving.served[0].queue.pending) == 8)
        release.set()
        codes = [answer.status_code for answer in await asyncio.gather(first, *others)]
    assert codes == [200, 200, 200, 200, 422, 200, 200, 200, 200]


async def test_a_failed_batch_is_500_for_those_in_it_and_says_nothing_of_why(caplog: pytest.LogCaptureFixture) -> None:
    def fail(batch: PaddedBatch) -> None:
        if batch.steps[0, 0, 0] == 13:
            raise RuntimeError("secret /internal/path")

    async with serving(model(manifest(), fail)) as service:
        answer = await service.predict({"sequences": [[[13, 13]]]})
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "secret" in caplog.text
        await still_well(service)
        figures = await service.figures()
    assert figures['lengthwise_batch_failures_total{model="sums",version="1"}'] == 1
    assert figures['lengthwise_requests_total{code="500",key="-",model="sums",version="1"}'] == 1


async def test_a_defect_of_the_service_is_500_and_says_nothing_of_why(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(json_body, "decode", None)
        answer = await service.predict(GOOD, x_request_id="mine")
    assert answer.status_code == 500
    assert "NoneType" not in answer.text
    assert "request mine failed" in caplog.text
    await still_well(service)


async def test_an_answer_that_cannot_be_written_is_500(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(json_body, "predictions", None)
        assert (await service.predict(GOOD)).status_code == 500
    await still_well(service)


async def test_what_an_idle_server_could_not_queue_is_413() -> None:
    async with serving(model(manifest()), max_queue_cost_steps=16, max_batch_cost_steps=16) as service:
        answer = await service.predict({"sequences": [[[1, 2]] * 17]})
        assert answer.status_code == 413
        assert (await service.predict({"sequences": [[[1, 2]]] * 5})).status_code == 413
        await still_well(service)


async def test_a_deadline_that_passes_while_its_work_runs_is_504() -> None:
    async with held() as (made, release, _):
        late = await made.service.predict(GOOD | {"timeout_ms": 20})
        assert late.status_code == 504
        release.set()
        await still_well(made.service)
        figures = await made.service.figures()
    assert figures['lengthwise_rejected_total{model="sums",reason="deadline",version="1"}'] == 1


async def test_a_request_without_a_deadline_has_the_servers() -> None:
    async with held(default_timeout_ms=20) as (made, _, _running):
        assert (await made.service.predict(GOOD)).status_code == 504


async def test_a_client_that_leaves_before_its_body_ends_is_499(service: Service) -> None:
    call = Direct(service.app, b'{"seq', ended=False)
    call.leave()
    await call.task
    assert call.sent == []
    figures = await service.figures()
    assert figures['lengthwise_requests_total{code="499",key="-",model="",version=""}'] == 1


async def test_an_answered_call_leaves_no_task_behind(service: Service) -> None:
    before = asyncio.all_tasks()
    call = Direct(service.app, orjson.dumps(GOOD))
    await call.task
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_cancelled_request_is_counted_and_its_work_withdrawn() -> None:
    async with held() as (made, release, running):
        service = made.service
        first = asyncio.ensure_future(service.predict(GOOD))
        await running.wait()
        call = Direct(service.app, orjson.dumps(GOOD))
        await until(lambda: len(service.serving.served[0].queue.pending) == 1)
        call.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.task
        await until(lambda: len(service.serving.served[0].queue.pending) == 0)
        release.set()
        assert (await first).status_code == 200
        await still_well(service)
        figures = await service.figures()
    assert figures['lengthwise_requests_total{code="499",key="-",model="sums",version="1"}'] == 1


async def test_several_names_want_one_said_and_the_highest_version_is_the_default() -> None:
    models = [manifest(), manifest(version=3), manifest(name="other")]
    async with serving(*map(model, models)) as service:
        unsaid = await service.predict(GOOD)
        assert (unsaid.status_code, unsaid.json()["detail"]) == (404, "say which 'model': other, sums")
        assert (await service.predict(GOOD | {"model": "sums"})).json()["version"] == "3"
        assert (await service.predict(GOOD | {"model": "sums", "version": "1"})).json()["version"] == "1"
        await service.predict(GOOD | {"model": "sums", "version": "2"})
        figures = await service.figures()
    assert figures['lengthwise_requests_total{code="404",key="-",model="",version=""}'] == 2


async def test_a_draining_service_refuses_and_ends_connections(service: Service) -> None:
    service.serving.batcher.begin_draining()
    answer = await service.predict(GOOD)
    assert (answer.status_code, answer.headers["connection"], answer.headers["retry-after"]) == (503, "close", "1")
    bad = await service.predict(b"{")
    assert (bad.status_code, bad.headers["connection"]) == (422, "close")
    figures = await service.figures()
    assert figures['lengthwise_rejected_total{model="sums",reason="draining",version="1"}'] == 1


async def test_a_service_without_a_good_model_refuses_with_503() -> None:
    async with serving() as service:
        for body in (GOOD, b'{"sequences": [[["x"]]]}'):  # which nobody can judge
            answer = await service.predict(body)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        figures = await service.figures()
    assert figures['lengthwise_rejected_total{model="",reason="not_ready",version=""}'] == 2
