"""`POST /predict` with `application/octet-stream`: one sequence as a raw tensor.

The steps are little-endian float32 with NaN for a missing value, or int64 token ids. The header `x-lengthwise-shape`
has their shape: `STEPS,FEATURES`, or `STEPS` of token ids. The options (`model`, `version`, `timeout_ms`, `priority`,
`outputs`) and an `id` are in the query. The answer is the same JSON as that to a JSON body; if the client accepts
`application/octet-stream`, it is the probabilities as a raw tensor.
"""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding import json_body, options
from lengthwise.decoding.calls import Call, Problems, id_problem, make_item, why_rejected
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.padding import Steps
from lengthwise.protocols.endpoint import JSON, Encode, Headers, Received
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest
from lengthwise.serving import Serving

MEDIA_TYPE: Final = b"application/octet-stream"
SHAPE: Final = b"x-lengthwise-shape"
_PARAMETERS: Final = options.FIELDS | {"id"}
_LONGEST_SHAPE: Final = 40
_LONGEST_QUERY: Final = 4096


def decode(request: Received, serving: Serving) -> tuple[Call, Encode]:
    """Reads the one sequence of a request.

    Raises:
        InvalidRequest: The shape, the bytes or the query are wrong. Pointers are empty, since the body is not JSON.
        RequestError: The model is not known, or not ready.
    """
    problems = Problems()
    asked, identifier = _query(request.scope.get("query_string", b""), problems)
    if problems.total:
        raise _refused(problems)
    model = serving.find(asked.model, asked.version)
    manifest = model.manifest
    attention = "attention" in asked.outputs
    bare = MEDIA_TYPE in request.headers.get(b"accept", b"").lower()
    if attention and manifest.graph.attention is None:
        problems.add("/outputs", f"the model {manifest.key} has no attention")
    elif attention and bare:
        problems.add("/outputs", "attention cannot be returned as a raw tensor; accept application/json")
    if problems.total:
        raise _refused(problems)
    steps = _steps(request, manifest)
    wrong = why_rejected(steps, manifest)
    if wrong is not None:
        raise InvalidRequest([Problem("", wrong)])
    item = make_item(steps, manifest, sent_steps=len(steps), id=identifier)
    call = Call(model, [item], attention, asked.timeout_ms, asked.priority, pointer="")
    return call, partial(_raw if bare else _json, call)


def check_beside_json(query: bytes) -> None:
    """Rejects an option in the query of a JSON body: it would have no effect, and another model might answer.

    Raises:
        InvalidRequest: There is one.
    """
    problems = Problems()
    for name, _ in parse_qsl(query[:_LONGEST_QUERY].decode("latin-1"), keep_blank_values=True):
        if name in _PARAMETERS:
            problems.add(f"/{name}", "is for a raw tensor; in a JSON body it is a field")
    if problems.total:
        raise _refused(problems)


def _query(raw: bytes, problems: Problems) -> tuple[options.CallOptions, str | None]:
    """The options and the id in a query string; numbers are written as in JSON."""
    try:
        pairs = parse_qsl(raw[: _LONGEST_QUERY + 1].decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise InvalidRequest([Problem("", "the query is no text")]) from None
    if len(raw) > _LONGEST_QUERY:
        raise InvalidRequest([Problem("", f"the query may have {_LONGEST_QUERY} bytes")])
    document: dict[str, Any] = {}
    for name, text in pairs:
        if name not in _PARAMETERS:
            problems.add(f"/{name}", f"is not known; known are {', '.join(sorted(_PARAMETERS))}")
        elif name in document:
            problems.add(f"/{name}", "stands twice")
        elif name == "outputs":
            document[name] = text.split(",")
        else:
            document[name] = _number(text) if name in ("timeout_ms", "priority") else text
    identifier = document.get("id")
    wrong = None if identifier is None else id_problem(identifier)
    if wrong is not None:
        problems.add("/id", wrong)
    return options.read(document, problems), identifier


def _number(text: str) -> int | float | str:
    """A text as a JSON number, or the text itself if it is not one. Python's `float` would also accept "1_000"."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if type(value) in (int, float) else text


def _refused(problems: Problems) -> InvalidRequest:
    """The error of a wrong query: its problems have no pointer, so each names its parameter."""
    return InvalidRequest(
        [Problem("", f"query parameter {problem.pointer[1:]}: {problem.detail}") for problem in problems.first],
        total=problems.total,
    )


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


def _json(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    return json_body.encode(call, answers), [JSON]


def _raw(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The probabilities as float32, `[classes]`, or `[length, classes]` of a per-step model."""
    probabilities: NDArray[np.float32] = answers[0].probabilities
    shape = ",".join(map(str, probabilities.shape)).encode()
    return probabilities.astype("<f4").tobytes(), [(b"content-type", MEDIA_TYPE), (SHAPE, shape)]
