"""Texts that are none: lone surrogates, bytes that are no UTF-8, blank lines. They are answered, never traced."""

import logging

import grpc
import pytest

from tests.support.grpc_calls import listening
from tests.support.http_lines import Line
from tests.support.numpy_models import Service, manifest, model

ODD = [
    b"\xed\xa0\x80",
    b"\xff",
    b"\\ud800",
    b"\\udc00\\ud800",
    b"\\u0000",
    b"\xc2\x85",
    b"\xef\xbb\xbf",
    b" ",
    b"\n",
    b"",
]
FORMS = {
    "the model": ("/predict", b'{"sequences": [[[1, 3]]], "model": "%b"}'),
    "the version": ("/predict", b'{"sequences": [[[1, 3]]], "version": "%b"}'),
    "an id": ("/predict", b'{"sequences": [{"id": "%b", "steps": [[1, 3]]}]}'),
    "a field": ("/predict", b'{"sequences": [[[1, 3]]], "%b": 1}'),
    "an output": ("/predict", b'{"sequences": [[[1, 3]]], "outputs": ["%b"]}'),
    "a value": ("/predict", b'{"sequences": [[["%b", 3]]]}'),
    "a feature": ("/predict", b'{"sequences": [{"steps": [{"%b": 1}]}]}'),
    "no JSON": ("/predict", b"%b\r\n\r\n"),
    "a field of v1": ("/v1/models/sums:predict", b'{"instances": [[[1, 3]]], "%b": 1}'),
    "a tensor": ("/v2/models/sums/infer", b'{"inputs": [{"name": "%b", "datatype": "%b", "shape": [1], "data": [1]}]}'),
    "a parameter": ("/v2/models/sums/infer", b'{"parameters": {"%b": "%b", "timeout": "%b"}, "inputs": []}'),
}  # fmt: skip


@pytest.mark.sampled(27)
@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize(("path", "form"), FORMS.values(), ids=FORMS.keys())
async def test_an_odd_text_in_a_body_is_answered(
    service: Service, caplog: pytest.LogCaptureFixture, path: str, form: bytes, text: bytes
) -> None:
    headers = {"content-type": "application/json"}
    answer = await service.client.post(path, content=form.replace(b"%b", text), headers=headers)
    assert answer.status_code in (200, 400, 404, 422)
    answer.json()
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("text", ["%ed%a0%80", "%ff", "%00", "%20", "%C2%85"])
@pytest.mark.parametrize(
    "path", ["/v1/models/%s", "/v2/models/%s/ready", "/v2/models/sums/versions/%s", "/%s", "/predict?model=%s"]
)
async def test_an_odd_text_in_a_path_is_answered(line: Line, path: str, text: str) -> None:
    status, _, _ = await line.ask(b"", path=path.replace("%s", text), method="GET")
    assert status in (400, 404, 405)


@pytest.mark.parametrize(
    "sent", [b"\r\n" * 50, b"\n" * 50, b" \r\n", b"\x00" * 9, b"\xed\xa0\x80", b"\xff /", b"\x85\r\n"]
)
async def test_blank_lines_and_odd_bytes_before_a_request_are_skipped_or_refused(line: Line, sent: bytes) -> None:
    line.writer.write(sent + b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await line.answer())[0] in (200, 400)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("text", [b"\xed\xa0\x80", b"\xff\xfe", b"\xc2\x85", b"\n", b"\0", b""])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady", "ModelMetadata", "ModelStatistics"])
async def test_an_odd_text_over_grpc_is_answered(caplog: pytest.LogCaptureFixture, method: str, text: bytes) -> None:
    async with listening(model(manifest())) as caller:
        for field in (1, 2, 3):  # the model, its version, an id
            message = b"\x0a\x04sums" * (field > 1) + bytes([field << 3 | 2, len(text)]) + text
            call = caller.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(message)
            assert await call.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
