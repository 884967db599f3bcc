"""Streams in Python, without a server and of one: `stream.push`, `states=`, and their errors."""

import pickle
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy as np
import pytest
from pydantic import ValidationError

import lengthwise
from lengthwise.batching.limits import BatchLimits
from lengthwise.decoding.calls import Item
from lengthwise.decoding.json_body import prediction
from lengthwise.errors import ConfigurationError, InvalidSequences, Problem, StateConflict
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.states import StateKeys
from lengthwise.scoring.opened import OpenModel
from tests.support.numpy_models import Service, manifest, serving
from tests.support.numpy_models import model as sums
from tests.support.streaming_models import FEATURES, convolution, cuts, gru, mean, sequences, whole
from tests.support.streaming_models import model as streaming

GRU = streaming(gru)


def opened(loaded: Any) -> lengthwise.Model:
    return lengthwise.Model(OpenModel(loaded, BatchLimits(), 1))


@pytest.fixture
def model() -> lengthwise.Model:
    return opened(GRU)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving(GRU, sums(manifest(features=4))) as made:
        yield made


@pytest.fixture
async def client(service: Service) -> AsyncIterator[lengthwise.AsyncClient]:
    transport = httpx2.ASGITransport(service.app)
    async with lengthwise.AsyncClient("http://service", transport=transport, model="streams") as made:
        yield made


class TestModel:
    """Without a server."""

    @pytest.mark.parametrize("make", [gru, mean, convolution], ids=lambda make: make.__name__)
    def test_a_stream_gives_the_answer_to_the_whole(self, make: Any) -> None:
        loaded, random = streaming(make), np.random.default_rng(5)
        for steps in sequences([1, 9, 60]):
            stream = opened(loaded).stream()
            assert stream.state is None
            for chunk in cuts(steps, random):
                prediction = stream.push(chunk)
                assert prediction.state == stream.state
            assert prediction.offset == len(steps)
            assert np.allclose(prediction.probabilities, whole(loaded, steps), atol=1e-6)

    def test_a_stream_goes_on_from_a_state(self, model: lengthwise.Model) -> None:
        (steps,) = sequences([9])
        stream = model.stream()
        stream.push(steps[:4])
        prediction = model.stream(stream.state).push(steps[4:])
        assert prediction.offset == 9
        assert prediction.probabilities.tobytes() == whole(GRU, steps).tobytes()

    @pytest.mark.parametrize("nothing", [np.zeros((0, FEATURES)), []], ids=["array", "list"])
    def test_no_steps_give_the_same_answer(self, model: lengthwise.Model, nothing: Any) -> None:
        stream = model.stream()
        first = stream.push(sequences([4])[0])
        again = stream.push(nothing)
        assert again.probabilities.tobytes() == first.probabilities.tobytes()
        assert (again.state, again.offset, again.length) == (first.state, 4, 0)

    def test_states_are_a_list_with_one_of_each_sequence(self, model: lengthwise.Model) -> None:
        first, second = sequences([5, 7])
        begun = model.predict([first[:3], second], outputs=["state"])
        states, rest = [begun[0].state, None], [first[3:], second]
        answers = model.predict(rest, states=states, offsets=[3, None], outputs=["state"])
        for answer, steps in zip(answers, (first, second), strict=True):
            assert answer.probabilities.tobytes() == whole(GRU, steps).tobytes()
        assert [answer.offset for answer in answers] == [5, 7]
        assert [answer.state for answer in model.predict(rest, states=states)] == [None, None]

    def test_a_state_that_does_not_fit_is_a_conflict(self, model: lengthwise.Model) -> None:
        (steps,) = sequences([4])
        other = opened(streaming(mean)).stream().push(steps).state
        own = model.stream().push(steps).state
        with pytest.raises(StateConflict) as raised:
            model.predict([steps] * 3, states=[None, other, own], offsets=[None, None, 5])
        assert raised.value.indices == (1, 2)
        assert [problem.pointer for problem in raised.value.problems] == ["/sequences/1/state", "/sequences/2/offset"]

    def test_what_is_no_state_is_told_with_its_sequence(self, model: lengthwise.Model) -> None:
        (steps,) = sequences([4])
        with pytest.raises(InvalidSequences, match="sequence 1: state: is no state") as raised:
            model.predict([steps, steps], states=[None, "no"])
        assert raised.value.indices == (1,)
        with pytest.raises(InvalidSequences, match="1 states for 2 sequences"):
            model.predict([steps, steps], states=[None])

    def test_a_model_that_does_not_stream_says_so(self) -> None:
        (steps,) = sequences([4])
        plain = opened(sums(manifest(features=4)))
        with pytest.raises(ConfigurationError, match="takes and gives no states"):
            plain.stream().push(steps)
        with pytest.raises(ConfigurationError, match="must be 'attention' or 'state', got 'logits'"):
            plain.predict([steps], outputs=["logits"])

    def test_what_would_not_be_finite_is_an_error(self) -> None:
        loaded = streaming(mean)
        values = np.array([*[3e38] * 4, 1], np.float32).tobytes()
        state = StateKeys().text(loaded.manifest.state_digest, 1, values)
        with pytest.raises(InvalidSequences, match="not finite"):
            opened(loaded).stream(state).push(np.full((1, FEATURES), 3e38))


def wrong_states(state: str) -> list[tuple[dict[str, Any], str]]:
    """Options of `predict` for one sequence, and what is said of them."""
    return [
        ({"states": [state.encode()]}, "sequence 0: state: must be a string, got bytes"),
        ({"states": [7]}, "sequence 0: state: must be a string, got int"),
        ({"states": [state], "offsets": [4.0]}, "sequence 0: offset: must be a whole number of steps, from 0"),
        (
            {"states": [state], "offsets": [np.array([4])]},
            "sequence 0: offset: must be a whole number of steps, from 0",
        ),
        ({"states": [state], "offsets": ["4"]}, "sequence 0: offset: must be a whole number of steps, from 0"),
        ({"states": [state], "offsets": [True]}, "sequence 0: offset: must be a whole number of steps, from 0"),
        ({"states": [state], "offsets": [np.int64(-1)]}, "sequence 0: offset: must be a whole number of steps, from 0"),
    ]


class TestBoth:
    """The same without a server and of one."""

    @pytest.mark.parametrize("index", range(7))
    async def test_what_is_no_state_is_told(
        self, client: lengthwise.AsyncClient, model: lengthwise.Model, index: int
    ) -> None:
        (steps,) = sequences([4])
        state = model.stream().push(steps).state
        assert state is not None
        options, message = wrong_states(state)[index]
        with pytest.raises(InvalidSequences, match=message):
            model.predict([steps], **options)
        with pytest.raises(InvalidSequences, match=message):
            await client.predict([steps], **options)
        of_item = {name.removesuffix("s"): values[0] for name, values in options.items()}
        with pytest.raises(InvalidSequences, match=message):
            model.predict([{"steps": steps, **of_item}])

    @pytest.mark.parametrize("offset", [9, np.int64(9), np.uint8(9), np.array(9)], ids=repr)
    async def test_an_offset_is_any_whole_number(
        self, client: lengthwise.AsyncClient, model: lengthwise.Model, offset: Any
    ) -> None:
        steps, more = sequences([9, 2])
        options: Any = {"states": [np.str_(model.stream().push(steps).state)], "offsets": [offset]}
        expected = whole(GRU, np.concatenate([steps, more])).tobytes()
        (answer,) = model.predict([more], **options)
        assert answer.probabilities.tobytes() == expected
        (answer,) = await client.predict([more], **options)
        assert answer.probabilities.tobytes() == expected
        (answer,) = await client.predict([{"steps": more, "state": options["states"][0], "offset": offset}])
        assert answer.probabilities.tobytes() == expected


class TestClient:
    """Of a server."""

    async def test_a_stream_gives_the_answer_to_the_whole(self, client: lengthwise.AsyncClient) -> None:
        random = np.random.default_rng(5)
        for steps in sequences([1, 9, 60]):
            stream = client.stream()
            for chunk in cuts(steps, random):
                prediction = await stream.push(chunk)
            assert prediction.offset == len(steps)
            assert prediction.probabilities.tobytes() == whole(GRU, steps).tobytes()

    async def test_a_state_goes_between_client_and_model(
        self, client: lengthwise.AsyncClient, model: lengthwise.Model
    ) -> None:
        (steps,) = sequences([9])
        stream = client.stream(model.stream().push(steps[:3]).state)
        await stream.push(steps[3:5])
        prediction = model.stream(stream.state).push(steps[5:])
        assert prediction.probabilities.tobytes() == whole(GRU, steps).tobytes()

    async def test_no_steps_give_the_same_answer(self, client: lengthwise.AsyncClient) -> None:
        stream = client.stream()
        first = await stream.push(sequences([4])[0])
        again = await stream.push(np.zeros((0, FEATURES)))
        assert (again.state, again.offset, again.length) == (first.state, 4, 0)

    async def test_a_conflict_names_its_sequences(self, client: lengthwise.AsyncClient) -> None:
        (steps,) = sequences([4])
        (first,) = await client.predict([steps], outputs=["state"])
        with pytest.raises(StateConflict) as raised:
            await client.predict([steps, steps], states=[None, first.state], offsets=[None, 3])
        problem = Problem("/sequences/1/offset", "the state has seen 4 steps, not 3")
        assert (raised.value.status, raised.value.problems, raised.value.indices) == (409, (problem,), (1,))
        copied = pickle.loads(pickle.dumps(raised.value))
        assert (type(copied), copied.problems) == (StateConflict, raised.value.problems)

    async def test_objects_may_have_their_states(self, client: lengthwise.AsyncClient) -> None:
        (steps,) = sequences([9])
        (first,) = await client.predict([steps[:4]], outputs=["state"])
        item = {"id": "pump-7", "steps": steps[4:], "state": first.state, "offset": 4}
        (second,) = await client.predict([item], outputs=["state"])
        assert (second.id, second.offset) == ("pump-7", 9)
        assert second.probabilities.tobytes() == whole(GRU, steps).tobytes()

    async def test_prepared_sequences_take_no_states(self, client: lengthwise.AsyncClient) -> None:
        prepared = await client.prepare(sequences([4]))
        (first,) = await client.predict(prepared, outputs=["state"])
        assert first.offset == 4
        with pytest.raises(ConfigurationError, match="states go with the sequences"):
            await client.predict(prepared, states=[first.state])


class TestDecided:
    """Where the manifest has `stop_at`, answers to steps with states say whether a label is as likely as that."""

    STEPS = np.zeros((2, 4), np.float32)

    def said(self, probability: float, seen: int | None, keys: StateKeys | None) -> dict[str, Any]:
        of = streaming(gru, stop_at={"probability": 0.7, "steps": 3}).manifest
        answer = Answer(np.array([probability, 1 - probability, 0], np.float32), state=bytes(32))
        return prediction(of, Item(self.STEPS, 2, seen=seen), answer, attention=False, state_keys=keys)

    @pytest.mark.parametrize(("probability", "seen", "decided"), [(0.7, 1, True), (0.9, 0, False), (0.69, 9, False)])
    def test_it_needs_the_probability_and_the_steps(self, probability: float, seen: int, decided: bool) -> None:
        assert self.said(probability, seen, StateKeys())["decided"] is decided
        assert self.said(probability, seen, None)["decided"] is decided

    def test_an_ordinary_answer_says_nothing(self) -> None:
        assert "decided" not in self.said(0.9, None, None)

    def test_no_other_task_has_a_label_to_decide(self) -> None:
        with pytest.raises(ValidationError, match="stop_at: only the one label of a sequence is decided"):
            streaming(gru, stop_at={"probability": 0.7, "steps": 3}, task="multi-label")

    def test_a_prediction_has_it(self) -> None:
        model = opened(streaming(gru, stop_at={"probability": 0.1, "steps": 2}))
        stream = model.stream()
        assert [stream.push(self.STEPS[:1]).decided for _ in range(3)] == [False, True, True]
        assert model.predict([self.STEPS])[0].decided is None
