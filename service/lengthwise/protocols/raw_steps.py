"""`POST /predict` with `application/octet-stream`: one sequence as a raw tensor.

The steps are little-endian float32 with NaN for a missing value, or int64 token ids. The header `x-lengthwise-shape`
has their shape: `STEPS,FEATURES`, or `STEPS` of token ids. The options (`model`, `version`, `timeout_ms`, `priority`,
`outputs`) and an `id` are in the query. The answer is that to a JSON body, as JSON or as an Arrow stream; if the client
accepts `application/octet-stream`, it is the probabilities as a raw tensor.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding import options
from lengthwise.decoding.calls import Call, make_item, why_rejected
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.padding import Steps
from lengthwise.protocols import query_options
from lengthwise.protocols.endpoint import Encode, Headers, Received
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest
from lengthwise.serving import Serving

MEDIA_TYPE: Final = b"application/octet-stream"
SHAPE: Final = b"x-lengthwise-shape"
_PARAMETERS: Final = query_options.OF_BINARY_BODIES
_LONGEST_SHAPE: Final = 40


def decode(request: Received, serving: Serving) -> tuple[Call, Encode | None]:
    """Reads the one sequence of a request.

    Returns:
        The call, and what writes its answer if that is a raw tensor.

    Raises:
        InvalidRequest: The shape, the bytes or the query are wrong. Pointers are empty, since the body is not JSON.
        RequestError: The model is not known, or not ready.
    """
    asked, identifier, problems = query_options.read(request.scope.get("query_string", b""), _PARAMETERS)
    model = options.find_model(asked, serving.find, problems, in_query=True)
    manifest = model.manifest
    attention = "attention" in asked.outputs
    bare = MEDIA_TYPE in request.headers.get(b"accept", b"").lower()
    if attention and manifest.graph.attention is None:
        problems.add("", f"query parameter outputs: the model {manifest.key} has no attention")
    elif attention and bare:
        problems.add(
            "", "query parameter outputs: attention cannot be returned as a raw tensor; accept application/json"
        )
    if problems.total:
        raise problems.error()
    steps = _steps(request, manifest)
    wrong = why_rejected(steps, manifest)
    if wrong is not None:
        raise InvalidRequest([Problem("", wrong)])
    item = make_item(steps, manifest, sent_steps=len(steps), id=identifier)
    call = Call(model, [item], attention, asked.timeout_ms, asked.priority, pointer="")
    return call, partial(_raw, call) if bare else None


def _steps(request: Received, manifest: Manifest) -> Steps:
    """The body as `[length, features]` float32 or `[length]` int64, without a copy."""
    tokens = manifest.input.kind == "tokens"
    form = "STEPS" if tokens else "STEPS,FEATURES"
    text = request.headers.get(SHAPE)
    if text is None:
        raise InvalidRequest([Problem("", f"the header {SHAPE.decode()}: {form} is missing")])
    sizes = text.split(b",") if len(text) <= _LONGEST_SHAPE else []
    if len(sizes) != (1 if tokens else 2) or not all(size.strip().isdigit() for size in sizes):
        raise InvalidRequest([Problem("", f"the header {SHAPE.decode()} must be {form}, in digits")])
    shape = tuple(int(size) for size in sizes)
    if 0 in shape:
        raise InvalidRequest([Problem("", "a sequence has at least one step, and a step a feature")])
    element = np.dtype("<i8" if tokens else "<f4")
    expected = math.prod(shape) * element.itemsize
    if len(request.body) != expected:
        raise InvalidRequest(
            [
                Problem(
                    "",
                    f"{SHAPE.decode()}: {','.join(map(str, shape))} of {element.name} is {expected} bytes, "
                    f"the body has {len(request.body)}",
                )
            ]
        )
    steps: Steps = np.frombuffer(request.body, dtype=element).reshape(shape)
    return steps


def _raw(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The probabilities as float32, `[classes]`, or `[length, classes]` of a per-step model."""
    probabilities: NDArray[np.float32] = answers[0].probabilities
    shape = ",".join(map(str, probabilities.shape)).encode()
    return probabilities.astype("<f4").tobytes(), [(b"content-type", MEDIA_TYPE), (SHAPE, shape)]
