"""What is far too large in a body or a query: numbers past 64 bits, a float or Python's digits, and names."""

import logging

import pytest

from tests.support.numpy_models import Service

NUMBERS = [str(2**63), str(2**64), "1" + "0" * 399, "-1" + "0" * 399, "9" * 4299, "9" * 5000]
NUMBERS += ["1e999", "-1e999", "1e-999"]
TENSOR = '{"name": "values", "datatype": "%s", "shape": [%s], "data": [%s]}'
TAIL = '"inputs": [' + TENSOR % ("FP32", "1, 1, 2", "1, 2") + "]"
V2 = {
    "an axis": '{"inputs": [' + TENSOR % ("FP32", "1, N, 2", "1, 2") + "]}",
    "all axes": '{"inputs": [' + TENSOR % ("FP32", "N, N, 2", "1, 2") + "]}",
    "rows": '{"inputs": [' + TENSOR % ("FP32", "N, 1, 2", "1, 2") + "]}",
    "a value": '{"inputs": [' + TENSOR % ("FP32", "1, 1, 2", "1, N") + "]}",
    "a double": '{"inputs": [' + TENSOR % ("FP64", "1, 1, 2", "N, 1") + "]}",
    "a length": '{"inputs": ['
    + TENSOR % ("FP32", "1, 1, 2", "1, 2")
    + ', {"name": "lengths", "datatype": "INT64", "shape": [1], "data": [N]}]}',
    "timeout": '{"parameters": {"timeout": N}, ' + TAIL + "}",
    "timeout_ms": '{"parameters": {"timeout_ms": N}, ' + TAIL + "}",
    "priority": '{"parameters": {"priority": N}, ' + TAIL + "}",
    "binary_data_size": '{"inputs": [{"name": "values", "datatype": "FP32", "shape": [1, 1, 2], '
    '"parameters": {"binary_data_size": N}}]}',
    "classes": '{"outputs": [{"name": "probabilities", "parameters": {"classification": N}}], ' + TAIL + "}",
    "id": '{"id": N, ' + TAIL + "}",
    "model_version": '{"model_version": N, ' + TAIL + "}",
}
PREDICT = {
    "a value": '{"sequences": [[[1, N]]]}',
    "timeout_ms": '{"timeout_ms": N, "sequences": [[[1, 2]]]}',
    "priority": '{"priority": N, "sequences": [[[1, 2]]]}',
    "version": '{"version": N, "sequences": [[[1, 2]]]}',
    "a version as text": '{"version": "N", "sequences": [[[1, 2]]]}',
    "an id": '{"sequences": [{"id": N, "steps": [[1, 2]]}]}',
    "a mask": '{"sequences": [{"step_mask": [N], "steps": [[1, 2]]}]}',
    "an output": '{"outputs": [N], "sequences": [[[1, 2]]]}',
}
QUERIES = ["timeout_ms=N", "priority=N", "version=N"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: f"{number[:6]}, {len(number)} characters")
async def test_no_number_is_more_than_a_refusal(
    service: Service, number: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [("/v2/models/sums/infer", body, {}) for body in V2.values()]
    calls += [("/predict", body, {}) for body in PREDICT.values()]
    calls += [(f"/predict?{query.replace('N', number)}", "\0" * 8, {"x-lengthwise-shape": "1,2"}) for query in QUERIES]
    calls += [("/predict", "\0" * 8, {"x-lengthwise-shape": f"{number[:38]},2"})]
    calls += [(f"/v2/models/sums/versions/{number}/infer", V2["id"].replace("N", '"x"'), {})]
    calls += [("/predict", PREDICT["an id"].replace("N", '"x"'), {"x-lengthwise-timeout-ms": number})]
    for path, body, headers in calls:
        kind = "application/octet-stream" if "x-lengthwise-shape" in headers else "application/json"
        answer = await service.client.post(
            path, content=body.replace("N", number), headers={"content-type": kind, **headers}
        )
        assert answer.status_code in (200, 400, 404, 413, 422, 504), (path, body, answer.text)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("parameter", ["timeout", "timeout_ms"])
async def test_a_timeout_past_64_bits_is_refused_or_clipped(service: Service, parameter: str) -> None:
    body = V2[parameter].replace("N", "1" + "0" * 399)
    answer = await service.client.post("/v2/models/sums/infer", content=body)
    assert answer.status_code == (400 if parameter == "timeout" else 200)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", '{"N": 1, "sequences": [[[1, 2]]]}'),
        ("/predict", '{"sequences": [{"N": 1, "steps": [[1, 2]]}]}'),
        ("/v1/models/sums:predict", '{"N": 1, "instances": [[[1, 2]]]}'),
        ("/v2/models/sums/infer", '{"N": 1, ' + TAIL + "}"),
        ("/v2/models/sums/infer", '{"inputs": [{"N": 1}]}'),
        ("/v2/repository/index", '{"N": 1}'),
    ],
)
async def test_the_name_of_an_unknown_field_is_not_sent_back_whole(service: Service, path: str, body: str) -> None:
    answer = await service.client.post(path, content=body.replace("N", "n" * 60_000))
    assert answer.status_code in (400, 422)
    assert "unknown field" in answer.text
    assert len(answer.content) < 2000
