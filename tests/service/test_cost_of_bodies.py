"""A wrong body costs no more than a right one of its size that the same reader reads, in every encoding.

What is compared is the least processor time of one thread, in turns. The bound is generous: what this finds are bodies
that cost thirty or three hundred times as much.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from lengthwise.decoding import fast_json
from lengthwise.errors import InvalidRequest, TooLarge
from lengthwise.grpc import codec
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.protocols.endpoint import Received
from lengthwise.protocols.predict import Predict, PredictV1
from lengthwise.protocols.turns import Turns
from lengthwise.protocols.v2 import Infer
from tests.support.numpy_models import Service, manifest, model, serving

FEATURES = 12
SIZE = 1 << 20
MOST_TIMES = 3.0
TURNS = 20
"""Both are read in turns, so that a neighbour on the same core slows both; as few turns as show it."""
LEAST_SECONDS_A_BYTE = 4e-9
"""What is as cheap as this is cheap enough: 64 ms for the largest body."""
STEP = [0.5] * FEATURES
JSON = {b"content-type": b"application/json"}
OCTETS = {b"content-type": b"application/octet-stream"}
Body = tuple[bytes, dict[bytes, bytes]]


def sequences(*steps: Any, field: str = "sequences") -> Body:
    text = orjson.dumps(steps[0])
    rows = 8
    many = b",".join([b"[" + b",".join([text] * (SIZE // rows // (len(text) + 1))) + b"]"] * rows)
    return b'{"%s":[%s]}' % (field.encode(), many), JSON


def masked(mask: Any) -> Body:
    steps = SIZE // 56
    item = {"steps": [STEP] * steps, "step_mask": [True] * steps}
    return orjson.dumps({"sequences": [item | ({} if mask is None else {"step_mask": [mask] * steps})]}), JSON


def tensor(shape: list[int], data: Any, *, binary: bool = False) -> Body:
    values: dict[str, Any] = {"name": "values", "datatype": "FP32", "shape": shape}
    octets = np.asarray(data, dtype="<f4").tobytes() if binary else b""
    values |= {"parameters": {"binary_data_size": len(octets)}} if binary else {"data": data}
    head = orjson.dumps({"inputs": [values]})
    return head + octets, JSON | ({b"inference-header-content-length": str(len(head)).encode()} if binary else {})


def octets(features: int, value: float = 0.5) -> Body:
    steps = SIZE // 4 // features
    shape = {b"x-lengthwise-shape": f"{steps},{features}".encode()}
    return np.full(steps * features, value, dtype="<f4").tobytes(), OCTETS | shape


def message(shape: list[int], value: float = 0.5, *, raw: bool) -> Body:
    request = pb.ModelInferRequest(model_name="sums")
    values = np.full(SIZE // 4, value, dtype="<f4")
    tensor = request.inputs.add(name="values", datatype="FP32", shape=shape)
    if raw:
        request.raw_input_contents.append(values.tobytes())
    else:
        tensor.contents.fp32_contents.extend(values)
    return request.SerializeToString(), {}


STEPS = SIZE // 4 // FEATURES
FLAT = [0.5] * (STEPS * FEATURES)
RIGHT: dict[str, Callable[[], Body]] = {
    "json": lambda: sequences(STEP),
    "json, masked": lambda: masked(None),
    "v1": lambda: sequences(STEP, field="instances"),
    "v2": lambda: tensor([1, STEPS, FEATURES], FLAT),
    "v2, octets": lambda: tensor([1, STEPS, FEATURES], FLAT, binary=True),
    "octets": lambda: octets(FEATURES),
    "grpc": lambda: message([1, SIZE // 4 // 4, 4], raw=True),
    "grpc, typed": lambda: message([1, SIZE // 4 // 4, 4], raw=False),
}
WRONG: dict[str, dict[str, Callable[[], Body]]] = {
    "json": {
        "features": lambda: sequences([1]),
        "more features": lambda: sequences([1] * (FEATURES + 1)),
        "texts": lambda: sequences(["a"] * FEATURES),
        "null": lambda: sequences([None] * FEATURES),
        "bare": lambda: sequences(100),
        "objects": lambda: sequences({"a": 1}),
        "nested": lambda: sequences([STEP]),
        "one wrong": lambda: (sequences(STEP)[0][:-2] + b',[["x"]]]}', JSON),
        "an empty sequence": lambda: (sequences(STEP)[0][:-2] + b",[]]}", JSON),
        "blanks at the end": lambda: (b'{"sequences":[[[1]]]' + b" " * (SIZE // 4), JSON),
    },
    "json, masked": {"no booleans": lambda: masked("x"), "nothing left": lambda: masked(False)},
    "v1": {"features": lambda: sequences([1], field="instances"), "null": lambda: sequences([None], field="instances")},
    "v2": {
        "a width": lambda: tensor([1, 10**7, FEATURES], FLAT),
        "features": lambda: tensor([1, STEPS * FEATURES, 1], FLAT),
        "a count": lambda: tensor([1, STEPS, FEATURES], FLAT[1:]),
        "texts": lambda: tensor([1, STEPS, FEATURES], ["x"] * (SIZE // 4)),
        "null": lambda: tensor([1, SIZE // 5 // FEATURES, FEATURES], [None] * (SIZE // 5 // FEATURES * FEATURES)),
    },
    "v2, octets": {
        "features": lambda: tensor([1, STEPS * FEATURES, 1], FLAT, binary=True),
        "infinite": lambda: tensor([1, STEPS, FEATURES], [np.inf] * (STEPS * FEATURES), binary=True),
    },
    "octets": {"features": lambda: octets(2), "infinite": lambda: octets(FEATURES, np.inf)},
    "grpc": {
        "features": lambda: message([1, SIZE // 4, 1], raw=True),
        "infinite": lambda: message([1, SIZE // 16, 4], np.inf, raw=True),
    },
    "grpc, typed": {"features": lambda: message([1, SIZE // 4, 1], raw=False)},
}


def cost(service: Service, encoding: str, body: Body) -> tuple[float, str]:
    """The processor seconds of a byte, and what comes of the body."""
    content, headers = body
    turns = Turns()
    endpoints = {"v1": PredictV1(service.serving, turns), "v2": Infer(service.serving, turns)}
    endpoint = endpoints.get(encoding[:2], Predict(service.serving, turns))
    began = time.thread_time()
    try:
        if encoding.startswith("grpc"):
            codec.decode(content, service.serving)
        else:
            endpoint.read(Received({"path_params": {"model": "sums"}}, headers, content), fast=False)
        what = "right"
    except (InvalidRequest, TooLarge):
        what = "wrong"
    return (time.thread_time() - began) / len(content), what


@pytest.mark.sampled(8)
@pytest.mark.skipif(not fast_json.COMPILED, reason="without the module in C all bodies are read by Python")
@pytest.mark.parametrize("encoding", RIGHT)
async def test_a_wrong_body_costs_no_more_than_a_right_one(encoding: str) -> None:
    features = 4 if encoding.startswith("grpc") else FEATURES
    async with serving(model(manifest(features=features, max_length=10**6))) as service:
        good = RIGHT[encoding]()
        for name, made in WRONG[encoding].items():
            bad, right, wrong = made(), float("inf"), float("inf")
            for turn in range(TURNS):
                seconds, what = cost(service, encoding, good)
                assert what == "right"
                right = min(right, seconds)
                seconds, what = cost(service, encoding, bad)
                assert what == "wrong", name
                wrong = min(wrong, seconds)
                if turn and wrong <= MOST_TIMES * max(right, LEAST_SECONDS_A_BYTE):
                    break
            assert wrong <= MOST_TIMES * max(right, LEAST_SECONDS_A_BYTE), (name, wrong / right)
