"""Steps that are objects: read by the names of the model's features, with the same bits as arrays."""

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.decoding import json_body
from lengthwise.decoding.calls import Call
from lengthwise.decoding.json_text import MAX_PARTS
from lengthwise.errors import InvalidRequest, RequestError, TooLarge
from lengthwise.runtime.manifest import Manifest
from tests.support.numpy_models import Service, manifest, model, serving

NAMES = ("ax", "ay", "a/z~", "ä b")
NAMED = manifest(inputs=NAMES)
TAKES_MISSING = manifest(inputs=NAMES, missing="zero")


def decode(sequences: list[Any], of: Manifest, **fields: Any) -> Call:
    text = json.dumps({"sequences": sequences, **fields}).encode()
    return read(text, of)


def read(text: bytes, of: Manifest) -> Call:
    served: Any = type("Served", (), {"manifest": of})
    return json_body.decode(text, lambda *_: served, max_sequences=1000)


def problems(sequences: list[Any], of: Manifest = NAMED) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        decode(sequences, of)
    return {problem.pointer: problem.detail for problem in caught.value.problems}


NUMBERS = st.one_of(st.integers(-(2**60), 2**60), st.floats(-1e30, 1e30))
ARRAYS = st.lists(st.lists(st.one_of(NUMBERS, st.none()), min_size=4, max_size=4), min_size=1, max_size=5)


def as_objects(steps: list[list[Any]], rng: random.Random, *, leave_out: bool) -> list[dict[str, Any]]:
    """The same steps with names in any order, those that are missing left out or null."""
    made = []
    for step in steps:
        pairs = [
            pair for pair in zip(NAMES, step, strict=True) if pair[1] is not None or not leave_out or rng.random() < 0.5
        ]
        made.append(dict(rng.sample(pairs, len(pairs))))
    return made


@given(st.lists(ARRAYS, min_size=1, max_size=3), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_objects_are_the_same_bits_as_arrays(arrays: Any, rng: Any, masked: bool, spaced: bool):
    def entry(steps: Any, mask: Any) -> Any:
        return {"id": "i", "steps": steps, **mask} if masked else steps

    masks = [
        {"step_mask": [True, *(rng.random() < 0.5 for _ in one[1:])], "feature_mask": [True, False, True, True]}
        for one in arrays
    ]
    first = decode([entry(*pair) for pair in zip(arrays, masks, strict=True)], TAKES_MISSING)
    objects = [as_objects(one, rng, leave_out=True) for one in arrays]
    text = json.dumps({"sequences": [entry(*pair) for pair in zip(objects, masks, strict=True)]}, ensure_ascii=spaced)
    second = read(text.replace("[", "[" + " " * 70_000 * spaced, 1).encode(), TAKES_MISSING)
    for one, other in zip(first.items, second.items, strict=True):
        assert one.steps.tobytes() == other.steps.tobytes()
        assert (one.id, one.sent_steps) == (other.id, other.sent_steps)
        assert [*(one.step_indices if one.step_indices is not None else ())] == [
            *(other.step_indices if other.step_indices is not None else ())
        ]


GOOD = dict(zip(NAMES, (1.0, 2.0, 3.0, 4.0), strict=True))


@pytest.mark.parametrize(
    ("steps", "pointer", "said"),
    [
        (
            [{**GOOD, "a_x": 1}],
            "/sequences/0/0/a_x",
            "unknown field; did you mean ax?; known are a/z~, ax, ay, ä b",
        ),
        ([GOOD, {"ay": 1, "a/z~": 2, "ä b": 3}], "/sequences/0/1/ax", "refuses missing values"),
        ([{"ax": 1, "ay": 2, "ä b": 3}], "/sequences/0/0/a~1z~0", "refuses missing values"),
        ([{**GOOD, "ay": None}], "/sequences/0/0/ay", "refuses missing values"),
        ([{**GOOD, "ay": "2"}], "/sequences/0/0/ay", "must be a number, got a string"),
        ([{**GOOD, "a/z~": 1e39}], "/sequences/0/0/a~1z~0", "beyond the range"),
        ([{**GOOD, "x" * 300: 1}], f"/sequences/0/0/{'x' * 256}...", "unknown field; known are a/z~"),
        ([GOOD, [1, 2, 3, 4]], "/sequences/0/1", "must be an object, as step 0 is, got an array"),
        ([GOOD, None], "/sequences/0/1", "must be an object, as step 0 is, got null"),
        ([[1, 2, 3, 4], GOOD], "/sequences/0/1", "got an object, and the first step is none"),
        ([{}], "/sequences/0/0/ax", "refuses missing values"),
    ],
)
@pytest.mark.parametrize("size", [0, 70_000])
def test_what_is_wrong_with_objects_is_told_with_the_name(steps: list[Any], pointer: str, said: str, size: int):
    text = json.dumps({"sequences": [steps]}).replace("[", "[" + " " * size, 1)
    with pytest.raises(InvalidRequest) as caught:
        read(text.encode(), NAMED)
    first = caught.value.problems[0]
    assert first.pointer == pointer
    assert said in first.detail


def test_what_is_wrong_with_arrays_names_the_feature():
    assert problems([[[1, None, 3, 4]]])["/sequences/0/0/1"].endswith("in its spec (ay)")
    assert "the model takes 4 features a step (ax, ay, a/z~, ä b), this one has 1" in str(problems([[[1]]]))


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (
            manifest(),
            "a step must be an array of 2 numbers, and none here is an array: the first is an object: the fea",
        ),
        (manifest(features=1), "must be a number, got an object: the features of sums/1 have no names"),
        (manifest(vocabulary=9), "must be a token id, a whole number, got an object: the features of sums/1 have no n"),
    ],
)
def test_objects_for_a_model_without_names_are_refused_with_what_to_do(of: Manifest, said: str):
    found = problems([[{"ax": 1, "ay": 2}]], of)
    assert [*found] == ["/sequences/0/0"]
    assert found["/sequences/0/0"].startswith(said)
    assert found["/sequences/0/0"].endswith("(export --feature-names), so a step is an array")


def test_names_may_be_escaped_and_one_that_stands_twice_is_refused():
    assert read(b'{"sequences":[[{"\\u0061x":1,"ay":2,"a\\/z~":3,"\\u00e4 b":4}]]}', NAMED).items[0].steps.tolist() == [
        [1, 2, 3, 4]
    ]
    with pytest.raises(InvalidRequest, match="the key 'ax' stands twice"):
        read(b'{"sequences":[[{"\\u0061x":1,"ax":2}]]}', NAMED)


def test_steps_that_leave_out_more_values_than_a_body_may_have_parts_are_refused():
    many = manifest(inputs=tuple(f"n{place}" for place in range(2000)), missing="zero", max_length=10**6)
    assert decode([[{}] * 3], many).items[0].steps.shape == (3, 2000)
    with pytest.raises(TooLarge, match="may leave out"):
        decode([[{}] * 300] * 2, many)
    assert MAX_PARTS < 600 * 2000


def test_unknown_names_are_told_in_a_bounded_answer():
    many = manifest(inputs=tuple(f"n{place}" for place in range(10_000)), max_length=10**6)
    with pytest.raises(RequestError) as caught:
        decode([[{f"m{place}": 1} for place in range(30_000)]], many)
    assert len(str(caught.value)) < 20_000


async def ask(service: Service, path: str, body: dict[str, Any]) -> list[Any]:
    answer = await service.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    return [*document["predictions"]]


async def test_both_doors_for_json_take_objects():
    arrays = [[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], [[0.5, 0.25, 0.0, -1.0]]]
    objects = [[dict(zip(NAMES[::-1], step[::-1], strict=True)) for step in one] for one in arrays]
    async with serving(model(NAMED)) as service:
        wanted = await ask(service, "/predict", {"sequences": arrays})
        assert await ask(service, "/predict", {"sequences": objects}) == wanted
        assert await ask(service, "/v1/models/sums:predict", {"instances": objects}) == wanted
        named = await ask(service, "/predict", {"sequences": [{"id": "a", "steps": objects[0]}]})
        assert named == [{"id": "a", **wanted[0]}]
        refused = await service.client.post("/v1/models/sums:predict", json={"instances": [[{"ax": 1}]]})
        assert (refused.status_code, "ay" in refused.text) == (400, True)


async def test_what_is_served_says_the_names():
    async with serving(model(NAMED)) as service:
        assert (await service.client.get("/healthz")).json()["models"][0]["names"] == list(NAMES)
        assert (await service.client.get("/v2/models/sums")).json()["parameters"] == {"names": list(NAMES)}
        config = (await service.client.get("/v2/models/sums/config")).json()
        assert json.loads(config["parameters"]["names"]["string_value"]) == list(NAMES)
    async with serving(model(manifest())) as service:
        assert (await service.client.get("/healthz")).json()["models"][0]["names"] is None
        assert "parameters" not in (await service.client.get("/v2/models/sums")).json()


def test_a_body_of_many_steps_with_names_is_read_as_numpy_reads_it():
    numbers = np.random.default_rng(0).normal(size=(5000, 4))
    body = [[dict(zip(NAMES, step, strict=True)) for step in numbers.tolist()]]
    long = manifest(inputs=NAMES, max_length=5000)
    assert decode(body, long).items[0].steps.tobytes() == numbers.astype(np.float32).tobytes()
