"""What the fuzzers send: requests that are nearly right, built by hypothesis, and good ones with their bytes mutated.

A *case* is one request as its decoder gets it. Half of the cases are built field by field, each field mostly right and
sometimes anything; in the other half bytes of such requests are cut, doubled, spliced or replaced by what readers of
JSON, of tensors and of messages stumble over. The same seed makes the same cases, byte for byte.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.runtime.manifest import Manifest
from tests.support.numpy_models import manifest

MODELS: Final = (
    manifest(name="refuses"),
    manifest(name="takes", missing="zero"),
    manifest(name="one", features=1, missing="zero"),
    manifest(name="tokens", vocabulary=10),
    manifest(name="head", long="head", max_length=2, missing="indicator"),
    manifest(name="window", long="window", max_length=3),
    manifest(name="short", max_length=2, attention=False),
    manifest(name="steps", task="per-step", missing="mean"),
    manifest(name="least", min_length=2, max_length=4, long="tail", missing="zero"),
)
"""One for each way that a body is read."""


@dataclass(frozen=True)
class Case:
    """A request."""

    body: bytes
    path: dict[str, str] = field(default_factory=dict)  # the parameters in its path
    query: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)  # by lower-case name


def cases(built: st.SearchStrategy[Case], count: int, number: int) -> list[Case]:
    """Different cases: half of a strategy that makes nearly right ones, as far as they differ, and mutants of them."""
    found: dict[str, Case] = {}

    @seed(number)
    @settings(
        max_examples=count // 2,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(built)
    def gather(case: Case) -> None:
        found.setdefault(repr(case), case)

    gather()
    rng = random.Random(number)
    parents = [case for case in found.values() if case.body]
    while len(found) < count:
        parent = rng.choice(parents)
        body = parent.body
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            body = _mutated(body, rng, parents)
        case = replace(parent, body=body[:_LONGEST])
        found.setdefault(repr(case), case)
    return list(found.values())


_LONGEST: Final = 65_536
_WORDS: Final = (
    b"null true false NaN -Infinity Infinity 1e400 -1e400 1e39 3.4028236e38 1e300 -0.0 -0 01 1. .5 1e 0x10 +1 1_000 "
    b'18446744073709551616 -9223372036854775809 2147483648 "" "id" "steps" "sequences" "instances" "inputs" "data" '
    b'"shape" "lengths" "values" "tokens" "attention" "binary_data_size" "parameters" "timeout" "priority" "model" '
    b'"\\ud800" "\\u0000" "\\udc00\\ud800" [ ] { } , : " \\ [] {} [[]] [[[]]] [1,2] [[1,2]] [null,null] /* // # '
    b"\x00 \xff \xc0\xaf \xed\xa0\x80 \xef\xbb\xbf \xe2\x80\xa8 \x1f \x7f"
).split(b" ")
"""What readers stumble over; the space itself is among the bytes below."""


def _mutated(body: bytes, rng: random.Random, parents: list[Case]) -> bytes:
    """A body with one thing done to it."""
    at, to = sorted((rng.randint(0, len(body)), rng.randint(0, len(body))))
    to = min(to, at + rng.choice((1, 4, 16, 4096)))
    kind = rng.randrange(8)
    if kind == 0 and body:  # flip a bit
        place = rng.randrange(len(body))
        return body[:place] + bytes([body[place] ^ 1 << rng.randrange(8)]) + body[place + 1 :]
    other = rng.choice(parents).body
    times = rng.choice((1, 1, 2, 50, _LONGEST // max(1, to - at)))
    return {
        1: body[:at] + body[to:],  # cut
        2: (body[:to] + body[at:to] * times + body[to:])[:_LONGEST],  # doubled, or repeated to the end of what is sent
        3: body[:at],  # ended early
        4: body[:at] + rng.choice(_WORDS) + body[to:],  # replaced by a word
        5: body[:at] + rng.choice(_WORDS) + body[at:],  # a word put in
        6: body[:at] + other[rng.randint(0, len(other)) :],  # spliced
    }.get(kind, body[:at] + rng.randbytes(rng.choice((1, 2, 8))) + body[to:])


# Parts of a request, each mostly right.


def _mostly(right: st.SearchStrategy[Any], wrong: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Nearly always `right`; hypothesis likes the ends of a range, so what is wrong stands within it."""
    return st.integers(0, 29).flatmap(lambda drawn: wrong if drawn == 17 else right)


NUMBERS: Final = st.one_of(
    st.floats(-1e3, 1e3, width=32),
    st.integers(-(10**6), 10**6),
    st.sampled_from([0, -0.0, 1e38, 3.5e38, -1e39, 1e300, 10**30, -(2**63) - 1, 2**64, 5e-324]),
)
JUNK: Final = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | st.sampled_from([math.nan, math.inf, -math.inf, 10**500, "\ud800", "\x00", "null", "x" * 300])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
NAMES: Final = _mostly(
    st.sampled_from([one.name for one in MODELS]), st.sampled_from(["", "none", "..", "\x00", "a/b"])
)
VERSIONS: Final = _mostly(st.just("1"), st.sampled_from(["", "0", "01", "2", "-1", "1.0", "²", "x", "9" * 50]))
OPTIONS: Final = {
    "timeout_ms": _mostly(st.floats(1e-3, 1e9) | st.integers(1, 10**12), JUNK),
    "priority": _mostly(st.integers(0, 9), JUNK),
}
OUTPUTS: Final = {"outputs": _mostly(st.lists(st.just("attention"), max_size=2), JUNK)}


def steps_of(one: Manifest) -> st.SearchStrategy[list[Any]]:
    """The steps of a sequence for a model, mostly right."""
    if one.input.kind == "tokens":
        return st.lists(_mostly(st.integers(0, 9), JUNK), min_size=1, max_size=5)
    features = one.input.features or 1
    value = _mostly(st.floats(-9, 9, width=32), NUMBERS | st.none() | JUNK)
    if one.missing != "refuse":
        value = value | st.none()
    row = _mostly(st.lists(value, min_size=features, max_size=features), JUNK)
    return st.lists(value | row if features == 1 else row, min_size=1, max_size=5)


def _sequence(one: Manifest) -> st.SearchStrategy[Any]:
    bare = steps_of(one)

    def item(steps: list[Any]) -> st.SearchStrategy[Any]:
        def flags(size: int) -> st.SearchStrategy[Any]:
            right = st.lists(_mostly(st.booleans(), JUNK), min_size=size, max_size=size)
            return _mostly(right, st.lists(st.booleans(), max_size=6) | JUNK)

        masks = {"step_mask": flags(len(steps)), "feature_mask": flags(one.input.features or 0)}
        if one.missing == "refuse":
            del masks["feature_mask"]
        return st.fixed_dictionaries(
            {"steps": st.just(steps)}, optional={"id": _mostly(st.text(max_size=5), JUNK), **masks}
        )

    return _mostly(bare | bare.flatmap(item), JUNK)


def _document(root: str, fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """A JSON body whose field `root` has sequences for some model, which the field or key `model` names."""

    def for_model(one: Manifest) -> st.SearchStrategy[dict[str, Any]]:
        sequences = _mostly(st.lists(_sequence(one), min_size=1, max_size=4), JUNK)
        return st.fixed_dictionaries(
            {root: sequences, "model": _mostly(st.just(one.name), JUNK | NAMES)}, optional=fields
        )

    return st.sampled_from(MODELS).flatmap(for_model)


def _text(document: Any, style: int) -> bytes:
    """A value as JSON: compact or wide, with text escaped or not, in UTF-8 or what is none."""
    separators = (",", ":") if style & 1 else (" ,\n", ": ")
    return json.dumps(document, separators=separators, ensure_ascii=bool(style & 2)).encode("utf-8", "surrogatepass")


STYLES: Final = st.integers(0, 3)


def predict() -> st.SearchStrategy[Case]:
    """`POST /predict` as JSON."""
    document = _document("sequences", {"version": _mostly(VERSIONS, JUNK), **OUTPUTS, **OPTIONS})
    return st.builds(lambda made, style: Case(_text(made, style)), _mostly(document, JUNK), STYLES)


def v1() -> st.SearchStrategy[Case]:
    """KServe's v1."""

    def case(made: dict[str, Any], style: int) -> Case:
        named = made.pop("model")
        return Case(_text(made, style), {"model": named if isinstance(named, str) else "none"})

    return st.builds(case, _document("instances", {**OUTPUTS, **OPTIONS}), STYLES)


def octets() -> st.SearchStrategy[Case]:
    """`POST /predict` as octets."""
    query = st.lists(
        st.tuples(
            st.sampled_from(["model", "version", "id", "outputs", "timeout_ms", "priority", "strange", "%00"]),
            NAMES
            | VERSIONS
            | st.sampled_from(["attention", "attention,attention", "5", "1e400", "NaN", "%ff", "[" * 99]),
        ),
        max_size=3,
    )

    def case(one: Manifest, values: list[float], shape: str | None, pairs: list[tuple[str, str]], bare: bool) -> Case:
        tokens = one.input.kind == "tokens"
        features = one.input.features or 1
        values = [value % 11 if abs(value) < 1e9 else 1e18 for value in values] if tokens else values * features
        body = _elements(values, tokens)
        sizes = [len(values)] if tokens else [len(values) // features, features]
        headers = {b"content-type": b"application/octet-stream"}
        text = ",".join(map(str, sizes)) if shape is None else shape
        if text:
            headers[b"x-lengthwise-shape"] = text.encode("latin-1", "replace")
        if bare:
            headers[b"accept"] = b"application/octet-stream"
        named = [("model", one.name), *pairs]
        return Case(body, {}, "&".join(f"{name}={value}" for name, value in named).encode(), headers)

    shapes = st.none() | st.sampled_from(
        ["", "1", "1,2", "0,2", "-1,2", "1,2,3", "9" * 30, "9" * 50, " 1 , 2 ", "1;2", "²,2"]
    )
    value = _mostly(st.floats(-9, 9, width=32), st.floats(width=32))
    return st.builds(
        case,
        st.sampled_from(MODELS),
        st.lists(value, max_size=6),
        _mostly(st.none(), shapes),
        _mostly(st.just([]), query),
        st.booleans(),
    )


@dataclass(frozen=True)
class _Rectangle:
    """Tensors of a v2 request, for its three forms."""

    one: Manifest
    rows: int
    values: list[Any]
    lengths: list[Any] | None
    shape: list[Any]

    @property
    def tokens(self) -> bool:
        return self.one.input.kind == "tokens"

    def named(self) -> dict[str, Any]:
        """The name and type of the tensor."""
        return {"name": "tokens", "datatype": "INT64"} if self.tokens else {"name": "values", "datatype": "FP32"}

    def elements(self) -> bytes:
        return _elements(self.values, self.tokens)


def _rectangles() -> st.SearchStrategy[_Rectangle]:
    def of(drawn: tuple[Manifest, int, int]) -> st.SearchStrategy[_Rectangle]:
        one, rows, width = drawn
        tokens = one.input.kind == "tokens"
        shape = [rows, width] if tokens else [rows, width, one.input.features or 1]
        count = math.prod(shape)
        value: st.SearchStrategy[Any] = st.integers(0, 9) if tokens else st.floats(-9, 9, width=32)
        value = _mostly(value, st.sampled_from([None, 1e39, 1e38, -1, 10]))
        ends = st.lists(_mostly(st.integers(1, width), st.integers(-1, 10)), min_size=rows, max_size=rows)
        return st.builds(
            partial(_Rectangle, one, rows),
            _mostly(st.lists(value, min_size=count, max_size=count), st.lists(JUNK, max_size=count)),
            ends if rows > 1 else st.none() | ends,
            _mostly(st.just(shape), st.lists(st.integers(-2, 2**63 - 1), max_size=4)),
        )

    return st.tuples(st.sampled_from(MODELS), st.integers(1, 3), st.integers(1, 4)).flatmap(of)


OUTPUT_NAMES: Final = _mostly(
    st.just("probabilities"), st.sampled_from(["label", "attention", "step_labels", "logits"])
)
PARAMETERS: Final = st.dictionaries(
    st.sampled_from(["timeout", "timeout_ms", "priority", "binary_data_output", "sequence_id", ""]),
    _mostly(st.integers(1, 9) | st.booleans(), JUNK),
    max_size=3,
)


def _elements(values: list[Any], tokens: bool) -> bytes:
    """The values as the bytes of a tensor, whatever they are."""
    numbers = [0.5 if type(value) not in (int, float) else max(-1e300, min(value, 1e300)) for value in values]
    with np.errstate(all="ignore"):
        return np.array(numbers, dtype=np.float64).astype("<i8" if tokens else "<f4").tobytes()


def v2(binary: bool) -> st.SearchStrategy[Case]:
    """The Open Inference Protocol over HTTP, with its tensors as JSON or behind it."""

    def case(
        asked: _Rectangle,
        fields: dict[str, Any],
        outputs: list[str],
        junk: dict[str, Any],
        version: str | None,
        style: int,
        off: int,
    ) -> Case:
        steps = asked.named() | {"shape": asked.shape} | junk
        inputs, behind = [steps], b""
        if binary:
            behind = asked.elements()
            steps["parameters"] = {"binary_data_size": max(0, len(behind) + off)}
        else:
            steps["data"] = asked.values
        if asked.lengths is not None:
            inputs.append({"name": "lengths", "datatype": "INT32", "shape": [asked.rows], "data": asked.lengths})
        document: dict[str, Any] = {"inputs": inputs, **fields}
        if outputs:
            document["outputs"] = [{"name": name, "parameters": {"binary_data": binary}} for name in outputs]
        head = _text(document, style)
        headers = {b"inference-header-content-length": str(len(head) + off).encode()} if binary else {}
        path = {"model": asked.one.name} | ({} if version is None else {"version": version})
        return Case(head + behind, path, b"", headers)

    fields = st.fixed_dictionaries(
        {},
        optional={"id": _mostly(st.text(max_size=5), JUNK), "parameters": _mostly(PARAMETERS, JUNK), "strange": JUNK},
    )
    entry = st.dictionaries(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), JUNK, max_size=1)
    return st.builds(
        case,
        _rectangles(),
        _mostly(st.just({}), fields),
        _mostly(st.lists(OUTPUT_NAMES, max_size=2), st.lists(st.text(max_size=3), max_size=2)),
        _mostly(st.just({}), entry),
        _mostly(st.none(), VERSIONS),
        STYLES,
        _mostly(st.just(0), st.integers(-5, 5)),
    )


def rpc() -> st.SearchStrategy[Case]:
    """The same over gRPC: a message, its tensors typed or raw."""

    def case(asked: _Rectangle, raw: bool, outputs: list[str], version: str, parameters: dict[str, Any]) -> Case:
        request = pb.ModelInferRequest(model_name=asked.one.name, model_version=version)
        shape = [size if isinstance(size, int) and abs(size) < 2**63 else 1 for size in asked.shape]
        steps = request.inputs.add(**asked.named(), shape=shape)
        if raw:
            request.raw_input_contents.append(asked.elements())
        elif asked.tokens:
            steps.contents.int64_contents.extend(np.frombuffer(asked.elements(), "<i8").tolist())
        else:
            steps.contents.fp32_contents.extend(np.frombuffer(asked.elements(), "<f4").tolist())
        if asked.lengths is not None:
            lengths = request.inputs.add(name="lengths", datatype="INT32", shape=[asked.rows])
            if raw:
                request.raw_input_contents.append(np.array(asked.lengths, "<i4").tobytes())
            else:
                lengths.contents.int_contents.extend(asked.lengths)
        for name in outputs:
            request.outputs.add(name=name)
        for name, value in parameters.items():
            if isinstance(value, bool):
                request.parameters[name].bool_param = value
            elif isinstance(value, int) and abs(value) < 2**63:
                request.parameters[name].int64_param = value
            elif isinstance(value, float):
                request.parameters[name].double_param = value
            else:
                request.parameters[name].string_param = str(value).encode("utf-8", "replace").decode()
        return Case(request.SerializeToString())

    return st.builds(
        case,
        _rectangles(),
        st.booleans(),
        _mostly(st.lists(OUTPUT_NAMES, max_size=2), st.lists(st.text("abc\x00", max_size=3), max_size=2)),
        _mostly(st.just(""), VERSIONS),
        _mostly(st.just({}), PARAMETERS),
    )


def repository() -> st.SearchStrategy[Case]:
    """The calls of the repository extension: its index, load and unload."""
    places = st.sampled_from(["index", *(f"models/{one.name}/load" for one in MODELS), "models/none/load"])
    places |= st.sampled_from([f"models/{one.name}/unload" for one in MODELS] + ["models/%2e%2e/unload"])
    parameters = _mostly(
        st.dictionaries(st.just("unload_dependents"), JUNK, max_size=1),
        st.dictionaries(st.just("unload_dependents") | st.text(max_size=4), JUNK, max_size=2) | JUNK,
    )
    fields = {"ready": _mostly(st.booleans(), JUNK), "parameters": parameters}

    def document(place: str) -> st.SearchStrategy[Any]:
        name = "ready" if place == "index" else "parameters"
        right = st.fixed_dictionaries({}, optional={name: fields[name]})
        return st.tuples(st.just(place), _mostly(right, st.fixed_dictionaries({}, optional=fields) | JUNK))

    def case(asked: tuple[str, Any], style: int, empty: bool) -> Case:
        return Case(b"" if empty else _text(asked[1], style), {"place": asked[0]})

    return st.builds(case, places.flatmap(document), STYLES, _mostly(st.just(False), st.just(True)))
