"""Binary bodies through the service: one sequence as the bytes of its steps, and the options in the query."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import numpy as np
import pytest

from lengthwise.decoding import options
from lengthwise.decoding.calls import missing_message
from lengthwise.protocols.binary_bodies import read_query
from lengthwise.runtime.manifest import Manifest
from tests.support.numpy_models import MANIFESTS, NOT_FINITE, Service, manifest, model, serving

OCTETS = "application/octet-stream"


class Asking:
    """Sends steps as octets to a service."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, steps: Any, query: str = "", **headers: str) -> httpx2.Response:
        array = np.asarray(steps, dtype="<f4") if not isinstance(steps, np.ndarray) else steps
        sent = {"content-type": OCTETS, "x-lengthwise-shape": ",".join(map(str, array.shape))}
        sent |= {name.replace("_", "-"): text for name, text in headers.items()}
        return await self.service.client.post(f"/predict{query}", content=array.tobytes(), headers=sent)


@asynccontextmanager
async def asking(*manifests: Manifest, **options: Any) -> AsyncIterator[Asking]:
    async with serving(*[model(one) for one in manifests], **options) as service:
        yield Asking(service)


async def test_octets_get_the_answer_of_the_same_numbers_in_json() -> None:
    steps = np.random.default_rng(0).normal(size=(7, 2)).astype("<f4")
    steps[3, 1] = np.nan
    numbers = [[None if number != number else number for number in row] for row in steps.tolist()]
    async with asking(MANIFESTS["takes missing"]) as ask:
        raw = await ask(steps)
        written = await ask.service.predict({"sequences": [numbers]})
    assert raw.status_code == 200
    assert raw.json() == written.json()
    assert raw.headers["server-timing"].startswith("decode;dur=")


async def test_tokens_are_whole_numbers_of_eight_bytes() -> None:
    async with asking(MANIFESTS["tokens"]) as ask:
        raw = await ask(np.array([1, 9, 0], dtype="<i8"))
        written = await ask.service.predict({"sequences": [[1, 9, 0]]})
        beyond = await ask(np.array([1, 10], dtype="<i8"))
    assert raw.json() == written.json()
    assert beyond.json()["errors"] == [{"pointer": "", "detail": "step 1 is not a token id: the vocabulary has 0 to 9"}]


async def test_an_unknown_alias_is_said_with_what_else_is_wrong_with_the_query() -> None:
    async with asking(manifest(), aliases={"sums": {"champion": 1}}) as ask:
        assert (await ask([[1, 2]], "?version=champion")).status_code == 200
        bad = await ask([[1, 2]], "?version=best&priority=x")
    assert bad.status_code == 422
    priority, version = [one["detail"] for one in bad.json()["errors"]]
    assert priority.startswith("query parameter priority:")
    assert version.startswith("query parameter version:")
    assert "an alias of the model: champion" in version


async def test_options_stand_in_the_query() -> None:
    async with asking(manifest(), manifest(version=2)) as ask:
        query = "?model=sums&version=1&outputs=attention&timeout_ms=2500.5&priority=9&id=a%20b"
        body = (await ask([[1, 3], [1, 3]], query)).json()
        assert body["version"] == "1"
        assert body["predictions"][0]["id"] == "a b"
        assert body["predictions"][0]["attention"] == [0.5, 0.5]
        assert (await ask([[1, 3]], "?timeout_ms=1e-300")).status_code == 504
        assert (await ask([[1, 3]], "?version=3")).status_code == 404


@pytest.mark.parametrize(
    ("query", "details"),
    [
        ("?sequences=1", ["sequences: is not known; known are id, model, outputs, priority, timeout_ms, version"]),
        ("?id=a&id=b", ["id: stands twice"]),
        (f"?id={'a' * 257}", ["id: must have at most 256 characters, it has 257"]),
        ("?version=01", ['version: must be ASCII digits that do not start with 0, like "1"']),
        ("?timeout_ms=nan", ["timeout_ms: must be a number of milliseconds, got a string"]),
        ("?timeout_ms=1e400", ["timeout_ms: must be finite and above 0"]),
        ("?timeout_ms=1_000", ["timeout_ms: must be a number of milliseconds, got a string"]),
        ("?timeout_ms=0", ["timeout_ms: must be finite and above 0"]),
        ("?priority=1.0", ["priority: must be a whole number from 0 to 9"]),
        ("?outputs=logits", ["outputs/0: must be 'attention', got 'logits'"]),
        ("?priority=&timeout_ms=", ["timeout_ms: must be a number", "priority: must be a whole number"]),
    ],
)
async def test_a_wrong_query_is_refused_with_the_names_of_its_parameters(query: str, details: list[str]) -> None:
    async with asking(manifest()) as ask:
        answer = await ask([[1, 3]], query)
    assert answer.status_code == 422
    errors = answer.json()["errors"]
    assert len(errors) == len(details)
    for error, detail in zip(errors, details, strict=True):
        assert error["pointer"] == ""
        assert error["detail"].startswith(f"query parameter {detail}")


@pytest.mark.parametrize(
    ("query", "detail"), [("?id=" + "a" * 5000, "the query may have 4096 bytes"), ("?id=%ff", "the query is no text")]
)
async def test_what_is_no_query_is_refused_each_time(query: str, detail: str) -> None:
    async with asking(manifest()) as ask:
        for _ in range(2):
            assert (await ask([[1, 3]], query)).json()["detail"] == detail


def test_a_query_that_comes_again_has_the_same_options_and_problems_of_its_own() -> None:
    query = b"model=vowels&version=3&priority=2&timeout_ms=1e3&id=a"
    first, again = (read_query(query) for _ in range(2))
    assert first == again
    assert first[:2] == (options.CallOptions(model="vowels", version="3", priority=2, timeout_ms=1000.0), "a")
    first[2].add("", "no such alias")
    assert read_query(query)[2].total == 0
    for _ in range(2):
        asked, _, problems = read_query(b"priority=11&colour=red")
        assert (asked, problems.total) == (options.CallOptions(), 2)


@pytest.mark.parametrize(
    ("shape", "detail"),
    [
        ("2", "must be STEPS,FEATURES, in digits"),
        ("1,2,1", "must be STEPS,FEATURES, in digits"),
        ("1,-2", "must be STEPS,FEATURES, in digits"),
        ("1,2.0", "must be STEPS,FEATURES, in digits"),
        ("1,²", "must be STEPS,FEATURES, in digits"),
        ("1," + "2" * 100, "must be STEPS,FEATURES, in digits"),
        ("0,2", "a sequence has at least one step, and a step a feature"),
        ("2,2", "x-lengthwise-shape: 2,2 of float32 is 16 bytes, the body has 8"),
        ("99999999999999999999,2", "is 799999999999999999992 bytes, the body has 8"),
        ("2,1", "the model takes 2 features a step, this one has 1"),
        (None, "the header x-lengthwise-shape: STEPS,FEATURES is missing"),
    ],
)
async def test_a_shape_that_does_not_fit_is_refused(shape: str | None, detail: str) -> None:
    async with asking(manifest()) as ask:
        sent = {"content-type": OCTETS} | ({} if shape is None else {"x-lengthwise-shape": shape.encode()})
        answer = await ask.service.client.post("/predict", content=bytes(8), headers=sent)  # type: ignore[arg-type]
    assert answer.status_code == 422
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    ("steps", "detail"),
    [
        ([[1, np.inf]], "step 0 holds a number that is not finite as float32"),
        ([[1, 2], [np.nan, 1]], f"step 1 lacks a value: {missing_message(manifest())}"),
        ([[NOT_FINITE, NOT_FINITE]], "the model's answer to this sequence is not finite"),
    ],
)
async def test_a_sequence_that_the_model_cannot_answer_is_refused_alone(steps: Any, detail: str) -> None:
    async with asking(manifest()) as ask:
        answer = await ask(steps)
        assert (answer.status_code, answer.json()["errors"]) == (422, [{"pointer": "", "detail": detail}])
        assert (await ask([[1, 3]])).status_code == 200


async def test_a_caller_who_accepts_octets_gets_the_probabilities_bare() -> None:
    async with asking(manifest()) as ask:
        bare = await ask([[1, 3]], accept=OCTETS)
        written = (await ask([[1, 3]])).json()["predictions"][0]["probabilities"]
    assert (bare.headers["content-type"], bare.headers["x-lengthwise-shape"]) == (OCTETS, "3")
    assert np.frombuffer(bare.content, "<f4").tolist() == np.array(written, dtype="<f4").tolist()


async def test_the_bare_answer_of_a_per_step_model_has_a_row_for_each_step() -> None:
    async with asking(manifest(task="per-step", attention=False)) as ask:
        bare = await ask([[1, 3], [0, 0]], accept=OCTETS)
    assert bare.headers["x-lengthwise-shape"] == "2,3"
    assert np.frombuffer(bare.content, "<f4").reshape(2, 3).sum(axis=1) == pytest.approx([1, 1], abs=1e-6)


async def test_attention_has_no_place_in_a_bare_answer_and_none_in_some_models() -> None:
    async with asking(manifest()) as ask:
        bare = await ask([[1, 3]], "?outputs=attention", accept=OCTETS)
    assert "attention cannot be returned as a raw tensor" in bare.json()["detail"]
    async with asking(manifest(attention=False)) as ask:
        without = await ask([[1, 3]], "?outputs=attention")
    assert "has no attention: see docs/targets.md" in without.json()["detail"]


@pytest.mark.parametrize("name", ["model", "version", "id", "outputs", "timeout_ms", "priority"])
async def test_an_option_in_the_query_of_a_json_body_is_refused_and_not_lost(name: str) -> None:
    async with serving(model(manifest())) as service:
        body = {"sequences": [[[1, 3]]]}
        answer = await service.client.post(f"/predict?{name}=", json=body)
        assert answer.status_code == 422
        said = f"query parameter {name}: is for a binary body; in a JSON body it is a field"
        assert answer.json()["detail"] == said
        assert (await service.client.post("/predict?mine=1", json=body)).status_code == 200


@pytest.mark.parametrize("steps", [1, 700, 15_000])
async def test_an_option_beside_a_json_body_of_any_size_is_refused(steps: int) -> None:
    async with serving(model(manifest(max_length=20_000)), model(manifest(version=2, max_length=20_000))) as service:
        body = {"sequences": [[[1, 3]] * steps]}
        answer = await service.client.post("/predict?version=1", json=body)
        assert answer.status_code == 422, "version 2 would answer"
        assert "query parameter version" in answer.json()["detail"]
