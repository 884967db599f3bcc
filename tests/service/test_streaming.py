"""States over `POST /predict` and v1: the answer after any chunks is the answer to the whole so far."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.states import StateKeys
from tests.support.numpy_models import Service, manifest, model, serving
from tests.support.streaming_models import convolution, cuts, gru, mean, sequences, whole
from tests.support.streaming_models import model as streaming

MODELS = {
    "gru": streaming(gru),
    "gru-steps": streaming(gru, options={"per_step": True, "seed": 2}, task="per-step", name="gru-steps"),
    "mean": streaming(mean, name="mean"),
    "convolution": streaming(convolution, name="convolution"),
}
KEYS = StateKeys()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """All models that stream, and one that does not."""
    async with serving(*MODELS.values(), model(manifest(features=4))) as made:
        yield made


async def predicted(service: Service, *items: Any, name: str = "streams", **options: Any) -> list[dict[str, Any]]:
    body = {"sequences": list(items), "model": name, "outputs": ["state"]} | options
    answer = await service.predict(body)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


async def refused(service: Service, *items: Any, **options: Any) -> tuple[int, list[str]]:
    body = {"sequences": list(items), "model": "streams", "outputs": ["state"]} | options
    answer = await service.predict(body)
    return answer.status_code, [error["pointer"] for error in answer.json().get("errors", ())]


def close(loaded: LoadedModel, actual: Any, expected: Any) -> bool:
    """Whether an answer is that to the whole: within rounding for the mean, else with equal bits."""
    given = np.asarray(actual, np.float32)
    if loaded.manifest.name == "mean":
        return bool(np.allclose(given, expected, atol=1e-5))
    return given.tobytes() == np.asarray(expected, np.float32).tobytes()


@pytest.mark.parametrize("name", ["gru", "mean", "convolution"])
async def test_any_cuts_give_the_answer_to_the_whole(service: Service, name: str) -> None:
    loaded, random = MODELS[name], np.random.default_rng(3)
    key = loaded.manifest.name
    for steps in sequences([1, 2, 7, 30, 60]):
        item: dict[str, Any] = {}
        for chunk in cuts(steps, random):
            others = [each.tolist() for each in sequences(random.integers(1, 40, 2).tolist(), int(random.integers(99)))]
            (answer, *_) = await predicted(service, item | {"steps": chunk.tolist()}, *others, name=key)
            item = {"state": answer["state"], "offset": answer["offset"]}
        assert item["offset"] == len(steps)
        assert close(loaded, answer["probabilities"], whole(loaded, steps))


async def test_per_step_answers_are_of_the_chunk(service: Service) -> None:
    loaded, (steps,) = MODELS["gru-steps"], sequences([9])
    (first,) = await predicted(service, steps[:4].tolist(), name="gru-steps")
    (second,) = await predicted(service, {"steps": steps[4:].tolist(), "state": first["state"]}, name="gru-steps")
    assert (second["length"], second["offset"], len(second["step_labels"])) == (5, 9, 5)
    joined = first["probabilities"] + second["probabilities"]
    assert close(loaded, joined, whole(loaded, steps))


async def test_a_chunk_without_steps_gives_the_same_answer(service: Service) -> None:
    (steps,) = sequences([5])
    (first,) = await predicted(service, {"id": "pump-7", "steps": steps.tolist()})
    again = {"steps": [], "state": first["state"], "offset": 5}
    masked = {"steps": steps[:2].tolist(), "step_mask": [False, False], "state": first["state"]}
    for answer in await predicted(service, again, masked):
        assert answer | {"length": 5, "id": "pump-7"} == first
        assert answer["length"] == 0


async def test_a_state_may_be_given_without_the_next(service: Service) -> None:
    (steps,) = sequences([9])
    (first,) = await predicted(service, steps[:4].tolist())
    (answer,) = await predicted(service, {"steps": steps[4:].tolist(), "state": first["state"]}, outputs=[])
    assert {*answer} == {"label", "score", "probabilities", "length"}
    assert close(MODELS["gru"], answer["probabilities"], whole(MODELS["gru"], steps))


async def test_equal_states_have_equal_texts(service: Service) -> None:
    (steps,) = sequences([9])
    (at_once,) = await predicted(service, steps.tolist())
    (first,) = await predicted(service, steps[:1].tolist())
    (second,) = await predicted(service, {"steps": steps[1:].tolist(), "state": first["state"]})
    assert second["state"] == at_once["state"]


async def test_calls_without_states_are_answered_as_before(service: Service) -> None:
    (steps,) = sequences([9])
    (answer,) = await predicted(service, steps.tolist(), outputs=[])
    assert {*answer} == {"label", "score", "probabilities", "length"}
    assert close(MODELS["gru"], answer["probabilities"], whole(MODELS["gru"], steps))


@pytest.mark.parametrize("state", ["", "no", 3, None, ["a"], "A" * 55])
async def test_what_is_no_state_is_422(service: Service, state: Any) -> None:
    status, pointers = await refused(service, [[0.0] * 4], {"steps": [[0.0] * 4], "state": state})
    assert (status, pointers) == (422, ["/sequences/1/state"])


@pytest.mark.parametrize("offset", ["1", -1, 1.0, True, None, 2**64])
async def test_an_offset_that_is_no_number_of_steps_is_422(service: Service, offset: Any) -> None:
    assert await refused(service, {"steps": [[0.0] * 4], "offset": offset}) == (422, ["/sequences/0/offset"])


async def test_a_model_that_does_not_stream_takes_no_state(service: Service) -> None:
    (first,) = await predicted(service, [[0.0] * 4])
    item = {"steps": [[0.0] * 4], "state": first["state"]}
    begun = {"steps": [[0.0] * 4], "offset": 0}
    status, pointers = await refused(service, item, begun, model="sums")
    assert (status, sorted(pointers)) == (422, ["/outputs/0", "/sequences/0/state", "/sequences/1/offset"])
    assert await refused(service, item, model="sums", outputs=[]) == (422, ["/sequences/0/state"])


async def test_a_state_of_another_model_is_409(service: Service) -> None:
    (other,) = await predicted(service, [[0.0] * 4], name="mean")
    item = {"steps": [[0.0] * 4], "state": other["state"]}
    assert await refused(service, [[0.0] * 4], item, item) == (409, ["/sequences/1/state", "/sequences/2/state"])


async def test_another_offset_than_the_states_is_409(service: Service) -> None:
    (first,) = await predicted(service, [[0.0] * 4])
    wrong = {"steps": [], "state": first["state"], "offset": 2}
    begun = {"steps": [[0.0] * 4], "offset": 1}
    right = {"steps": [], "state": first["state"], "offset": 1}
    pointers = ["/sequences/0/offset", "/sequences/1/offset"]
    assert await refused(service, wrong, begun, right) == (409, pointers)


async def test_what_is_422_comes_before_what_is_409(service: Service) -> None:
    (first,) = await predicted(service, [[0.0] * 4])
    wrong = {"steps": [[0.0] * 4], "state": first["state"], "offset": 2}
    assert await refused(service, wrong, [[0.0] * 3]) == (422, ["/sequences/1/0"])


async def test_a_state_of_another_size_or_not_finite_is_422(service: Service) -> None:
    digest = MODELS["gru"].manifest.state_digest
    for values in (np.zeros(7, np.float32), np.full(8, np.nan, np.float32)):
        text = KEYS.text(digest, 4, values.tobytes())
        assert await refused(service, {"steps": [], "state": text}) == (422, ["/sequences/0/state"])
        assert (await refused(service, {"steps": [], "state": text, "offset": 3}))[0] == 409


async def test_a_state_that_would_not_be_finite_is_422() -> None:
    loaded = streaming(mean)
    async with serving(loaded) as service:
        large = np.array([*[3e38] * 4, 1], np.float32).tobytes()
        text = KEYS.text(loaded.manifest.state_digest, 1, large)
        item = {"steps": [[3e38] * 4], "state": text}
        assert await refused(service, item) == (422, ["/sequences/0"])


async def test_max_length_bounds_a_chunk_and_max_steps_a_sequence() -> None:
    async with serving(streaming(gru, max_length=8, streaming={"max_steps": 10})) as service:
        steps = [[0.5] * 4]
        (first,) = await predicted(service, steps * 8)
        assert await refused(service, steps * 9) == (422, ["/sequences/0"])
        resumed = {"state": first["state"]}
        (second,) = await predicted(service, resumed | {"steps": steps * 2})
        assert second["offset"] == 10
        assert await refused(service, resumed | {"steps": steps * 3}) == (422, ["/sequences/0/steps"])


async def test_min_length_is_of_the_sequence_so_far() -> None:
    async with serving(streaming(gru, min_length=3)) as service:
        steps = [[0.5] * 4]
        assert (await refused(service, steps * 2))[0] == 422
        (first,) = await predicted(service, steps * 3)
        (second,) = await predicted(service, {"steps": steps, "state": first["state"]})
        assert second["offset"] == 4


class TestVersions:
    """Which version answers."""

    @pytest.fixture
    async def service(self) -> AsyncIterator[Service]:
        first, second = streaming(gru), streaming(gru, options={"seed": 1}, version=2)
        third = streaming(gru, options={"seed": 1}, version=3)
        async with serving(first, second, third) as made:
            yield made

    async def test_a_state_chooses_its_version(self, service: Service) -> None:
        (first,) = await predicted(service, [[0.5] * 4], version="1")
        item = {"steps": [[0.5] * 4], "state": first["state"]}
        body = {"sequences": [item, [[0.5] * 4]], "outputs": ["state"]}
        answer = (await service.predict(body)).json()
        assert answer["version"] == "1"
        assert answer["predictions"][1] == first

    async def test_the_version_that_the_call_names_must_be_its_own(self, service: Service) -> None:
        (first,) = await predicted(service, [[0.5] * 4], version="1")
        item = {"steps": [[0.5] * 4], "state": first["state"]}
        assert await refused(service, item, version="2") == (409, ["/sequences/0/state"])
        await predicted(service, item, version="1")

    async def test_a_version_in_the_path_is_named_too(self, service: Service) -> None:
        (first,) = await predicted(service, [[0.5] * 4], version="1")
        body = {"instances": [{"steps": [[0.5] * 4], "state": first["state"]}]}
        statuses = [
            (await service.client.post(f"/v1/models/streams{version}:predict", json=body)).status_code
            for version in ("", "/versions/1", "/versions/2")
        ]
        assert statuses == [200, 200, 409]

    async def test_an_unknown_version_is_404_before_all(self, service: Service) -> None:
        assert (await refused(service, {"steps": [], "state": "no"}, version="9"))[0] == 404
        (first,) = await predicted(service, [[0.5] * 4], version="1")
        assert (await refused(service, {"steps": [], "state": first["state"]}, version="9"))[0] == 404

    async def test_states_of_several_versions_are_409(self, service: Service) -> None:
        (first,) = await predicted(service, [[0.5] * 4], version="1")
        (second,) = await predicted(service, [[0.5] * 4], version="2")
        items = [{"steps": [], "state": answer["state"]} for answer in (first, second)]
        assert await refused(service, *items) == (409, ["/sequences/0/state", "/sequences/1/state"])

    async def test_a_state_is_of_every_version_with_an_equal_graph(self, service: Service) -> None:
        (first,) = await predicted(service, [[0.5] * 4], version="2")
        item = {"steps": [[0.5] * 4], "state": first["state"]}
        for version in ("2", "3"):
            await predicted(service, item, version=version)
        answer = (await service.predict({"sequences": [item]})).json()
        assert answer["version"] == "3"


class TestV1:
    """The items of KServe's v1 are those of `/predict`, with 400 for 422."""

    async def test_states_go_through_v1(self, service: Service) -> None:
        (steps,) = sequences([9])
        path = "/v1/models/streams:predict"
        first = (await service.client.post(path, json={"instances": [steps[:3].tolist()], "outputs": ["state"]})).json()
        item = {"steps": steps[3:].tolist(), "state": first["predictions"][0]["state"], "offset": 3}
        second = (await service.client.post(path, json={"instances": [item], "outputs": ["state"]})).json()
        (answer,) = second["predictions"]
        assert answer["offset"] == 9
        assert close(MODELS["gru"], answer["probabilities"], whole(MODELS["gru"], steps))

    async def test_refusals_have_v1s_form(self, service: Service) -> None:
        path = "/v1/models/streams:predict"
        wrong = {"steps": [[0.0] * 4], "offset": 1}
        conflict = await service.client.post(path, json={"instances": [wrong]})
        assert conflict.status_code == 409
        assert "/instances/0/offset: the state has seen 0 steps, not 1" in conflict.json()["error"]
        assert (await service.client.post(path, json={"instances": [{"steps": [], "state": "x"}]})).status_code == 400


async def test_chunks_and_refused_states_are_counted(service: Service) -> None:
    (first,) = await predicted(service, [[0.0] * 4])
    await predicted(service, {"steps": [], "state": first["state"]}, [[0.0] * 4], outputs=[])
    await predicted(service, [[0.0] * 4], outputs=[])
    await refused(service, {"steps": [], "state": first["state"], "offset": 7}, [[0.0] * 4])
    await refused(service, {"steps": [], "state": "no"}, {"steps": [], "state": "no"})
    (other,) = await predicted(service, [[0.0] * 4], name="mean")
    await refused(service, {"steps": [], "state": other["state"]})
    figures = await service.figures()
    labels = 'model="streams",version="1"'
    assert figures[f"lengthwise_chunks_total{{{labels}}}"] == 2
    for reason, count in (("malformed", 2), ("version", 1), ("offset", 1)):
        assert figures[f'lengthwise_state_refused_total{{model="streams",reason="{reason}",version="1"}}'] == count
