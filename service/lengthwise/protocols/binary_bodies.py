"""The binary body of `POST /predict`: the raw tensor of one sequence.

The options of the call are in the query, because there is no JSON for them: the parameters have the names of the fields
in JSON, with `id`, and numbers are written as in JSON. `outputs` has names with commas.

A raw tensor is little-endian float32 with NaN for a missing value, or int64 token ids. The header `x-lengthwise-shape`
has its shape: `STEPS,FEATURES`, or `STEPS` of token ids.

The answer is JSON, or the probabilities as a raw tensor if `accept` asks for one.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding import options
from lengthwise.decoding.calls import Call, Problems, make_item, read_id, why_refused
from lengthwise.errors import InvalidRequest, Problem
from lengthwise.padding import Steps
from lengthwise.protocols.endpoint import OCTETS, Encode, Headers, Received
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest
from lengthwise.serving import Serving

PARAMETERS: Final = options.FIELDS | {"id"}
_SHAPE: Final = b"x-lengthwise-shape"
# What a raw tensor has: the type of its elements, its name, and the form of the shape.
_TOKENS: Final[tuple[np.dtype[Any], str, str]] = (np.dtype("<i8"), "int64", "STEPS")
_VALUES: Final[tuple[np.dtype[Any], str, str]] = (np.dtype("<f4"), "float32", "STEPS,FEATURES")
_LONGEST_SHAPE: Final = 40
_LONGEST_QUERY: Final = 4096


def read_octets(request: Received, serving: Serving) -> tuple[Call, Encode | None]:
    """Decodes a binary body: the raw tensor of one sequence, with the options in the query.

    Returns the call, and the function that encodes its answer as a raw tensor; None in place of the function if the
    client did not ask for that: then the answer is JSON.

    Raises:
        InvalidRequest: The shape, the bytes or the query are wrong. Its problems have empty JSON pointers, because the
            body is not JSON.
        RequestError: The model is not known or not ready.
    """  # noqa: DOC502 - `find_model` raises it
    call_options, identifier, problems = read_query(request.query)
    model = options.find_model(call_options, serving.find, problems, in_query=True)
    manifest = model.manifest
    attention = "attention" in call_options.outputs
    wants_octets = OCTETS in request.headers.get(b"accept", b"").lower()
    if attention and manifest.graph.attention is None:
        problems.add("", f"query parameter outputs: the model {manifest.key} has no attention: see docs/targets.md")
    elif attention and wants_octets:
        problems.add(
            "", "query parameter outputs: attention cannot be returned as a raw tensor; accept application/json"
        )
    problems.require_none()
    # The sequence.
    steps = _steps(request, manifest)
    if (problem := why_refused(steps, manifest)) is not None:
        raise InvalidRequest([Problem("", problem)])
    item = make_item(steps, manifest, sent_steps=len(steps), id=identifier)
    call = Call(model, [item], attention, call_options.timeout_ms, call_options.priority, pointer="")
    return call, partial(_encode_octets, call) if wants_octets else None


def _steps(request: Received, manifest: Manifest) -> Steps:
    """The body as `[length, features]` float32 or `[length]` int64, a view of its bytes.

    Raises:
        InvalidRequest: The header of the shape is missing or wrong, or the body has another number of bytes.
    """
    element, element_name, form = _TOKENS if manifest.input.kind == "tokens" else _VALUES
    # The sizes in the header; `shape` is shorter if one of them is no number.
    text = request.headers.get(_SHAPE)
    sizes = [] if text is None or len(text) > _LONGEST_SHAPE else text.split(b",")
    shape = tuple(int(size) for size in sizes if size.strip().isdigit())
    size = math.prod(shape) * element.itemsize
    is_complete = len(shape) == len(sizes) == form.count(",") + 1
    if is_complete and 0 not in shape and len(request.body) == size:
        return np.frombuffer(request.body, dtype=element).reshape(shape)
    faults = (
        (text is None, f"the header {_SHAPE.decode()}: {form} is missing"),
        (not is_complete, f"the header {_SHAPE.decode()} must be {form}, in digits"),
        (0 in shape, "a sequence has at least one step, and a step a feature"),
        (
            len(request.body) != size,
            f"{_SHAPE.decode()}: {','.join(map(str, shape))} of {element_name} is {size} bytes, "
            f"the body has {len(request.body)}",
        ),
    )
    raise InvalidRequest([Problem("", next(message for is_wrong, message in faults if is_wrong))])


def _encode_octets(call: Call, answers: list[Answer]) -> tuple[bytes, Headers]:
    """The probabilities as raw float32 with their headers: `[classes]`, or `[length, classes]` of a per-step model."""
    probabilities: NDArray[np.float32] = answers[0].probabilities
    shape = ",".join(map(str, probabilities.shape)).encode()
    return probabilities.astype("<f4").tobytes(), [(b"content-type", OCTETS), (_SHAPE, shape)]


def read_query(raw: bytes) -> tuple[options.CallOptions, str | None, Problems]:
    """The options in a query, the `id`, and a `Problems` with what is wrong with them.

    The problems have no JSON pointer, because the query is no part of the body; their texts name the parameters. Raises
    `InvalidRequest` if the query is too long, or not text.
    """
    call_options, identifier, first_problems, problem_count = _read_query(raw)
    return call_options, identifier, Problems(first=[*first_problems], total=problem_count)


@lru_cache(maxsize=128)  # programs send the same query again and again
def _read_query(raw: bytes) -> tuple[options.CallOptions, str | None, tuple[Problem, ...], int]:
    """Parses a query: returns its options, its id, the first problems with texts, and the number of all problems.

    The parts are immutable, because the cache gives them to many calls; `read_query` makes a `Problems` of them.

    Raises:
        InvalidRequest: The query is not text, or too long. Every other fault is one of the returned problems.
    """
    try:
        pairs = parse_qsl(raw[: _LONGEST_QUERY + 1].decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise InvalidRequest([Problem("", "the query is no text")]) from None
    if len(raw) > _LONGEST_QUERY:
        raise InvalidRequest([Problem("", f"the query may have {_LONGEST_QUERY} bytes")])
    problems = Problems()
    document: dict[str, Any] = {}
    for name, text in pairs:
        if name not in PARAMETERS:
            problems.add(f"/{name}", f"is not known; known are {', '.join(sorted(PARAMETERS))}")
        elif name in document:
            problems.add(f"/{name}", "stands twice")
        elif name == "outputs":
            document[name] = text.split(",")
        else:
            document[name] = _number(text) if name in ("timeout_ms", "priority") else text
    # The values are checked like those of JSON; then the pointers of problems become names of parameters.
    identifier = read_id(document["id"], "/id", problems) if "id" in document else None
    call_options = options.read(document, problems, known=("attention",))
    first = [Problem("", f"query parameter {problem.pointer[1:]}: {problem.detail}") for problem in problems.first]
    return call_options, identifier, tuple(first), problems.total


def refuse_binary_options(query: bytes) -> None:
    """Refuses a JSON body whose query has an option of a binary body.

    The option would have no effect there, and another model than the wanted one might answer.
    """
    problems = Problems()
    for name, _ in parse_qsl(query[:_LONGEST_QUERY].decode("latin-1"), keep_blank_values=True):
        if name in PARAMETERS:
            problems.add("", f"query parameter {name}: is for a binary body; in a JSON body it is a field")
    problems.require_none()


def _number(text: str) -> int | float | str:
    """A text as a JSON number, or the text itself if it is none.

    Python's `float` would also accept "1_000".
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if type(value) in (int, float) else text
