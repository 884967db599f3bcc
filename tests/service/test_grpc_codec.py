"""gRPC's messages as bytes: what millions of empty fields may cost, and that no honest message is taken for such."""

import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InvalidRequest
from lengthwise.grpc import codec
from lengthwise.grpc import open_inference_pb2 as pb
from tests.support.numpy_models import manifest, model, serving

MEBIBYTE = 1 << 20
EMPTY_INPUT, EMPTY_OUTPUT, EMPTY_CONTENTS = b"\x2a\x00", b"\x32\x00", b"\x3a\x00"
LABEL = b"\x32\x07\x0a\x05label"
UNKNOWN = {"number": b"\x78\x01", "double": b"\x79" + bytes(8), "float": b"\x7d" + bytes(4), "group": b"\x7b\x7c"}


def of_fields(field: bytes) -> bytes:
    """A message of millions of such fields."""
    return pb.ModelInferRequest(model_name="sums").SerializeToString() + field * (4 * MEBIBYTE // len(field))


def of_axes() -> bytes:
    """A message with a shape of millions of axes."""
    request = pb.ModelInferRequest(model_name="sums", raw_input_contents=[b""])
    request.inputs.add(name="values", datatype="FP32", shape=[1] * MEBIBYTE)
    return request.SerializeToString()


FIELDS = {"inputs": EMPTY_INPUT, "outputs": EMPTY_OUTPUT, "contents": EMPTY_CONTENTS, "one output": LABEL, **UNKNOWN}


@pytest.mark.parametrize(
    "body", [of_axes, *[partial(of_fields, one) for one in FIELDS.values()]], ids=["axes", *FIELDS]
)
async def test_a_message_of_millions_of_parts_is_refused_at_once_in_little_memory(body: Callable[[], bytes]) -> None:
    sent = body()
    async with serving(model(manifest())) as service:
        tracemalloc.start()
        started = time.process_time()
        try:
            with pytest.raises(InvalidRequest):
                codec.decode(sent, service.serving)
            assert tracemalloc.get_traced_memory()[1] < MEBIBYTE
        finally:
            tracemalloc.stop()
    assert time.process_time() - started < 1


@pytest.mark.parametrize(("count", "crowded"), [(255, False), (256, True)])
def test_a_message_may_have_256_fields(count: int, crowded: bool) -> None:
    request = pb.ModelInferRequest(model_name="sums")
    for _ in range(count):
        request.outputs.add(name="label")
    assert codec.has_too_many_fields(request.SerializeToString()) == crowded


@given(st.binary(max_size=300), st.lists(st.text(max_size=300), max_size=20), st.integers(0, 2**31 - 1))
def test_no_message_of_few_fields_is_crowded_wherever_it_is_cut(raw: bytes, names: list[str], number: int) -> None:
    request = pb.ModelInferRequest(model_name="sums", raw_input_contents=[raw])
    for name in names:
        request.outputs.add(name=name)
        request.parameters[name].int64_param = number
        request.inputs.add(name=name, shape=[number])
    body = request.SerializeToString()
    for cut in range(0, len(body) + 1, 7):
        assert not codec.has_too_many_fields(body[:cut])
