"""States through whole services: a model directory, keys that are read again, and many keys interleaved."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lengthwise
from lengthwise.runtime.states import StateKeys
from tests.support.numpy_models import Service, serving
from tests.support.server_process import ServerProcess, exit_of, started
from tests.support.streaming_models import convolution, cuts, gru, mean, model, place, sequences, whole

FIRST, SECOND = "ab" * 32, "cd" * 32
STEPS = [[0.5, 0.25, 0.0, 1.0]]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("make", [gru, mean, convolution], ids=lambda make: make.__name__)
def test_a_model_directory_that_streams_is_verified_and_streams(tmp_path: Path, make: Any) -> None:
    loaded = lengthwise.load(place(tmp_path, make))
    (steps,) = sequences([40])
    stream = loaded.stream()
    for chunk in np.split(steps, [1, 1, 20]):
        prediction = stream.push(chunk)
    assert np.allclose(prediction.probabilities, loaded.predict([steps])[0].probabilities, atol=1e-6)


@pytest.mark.long
@pytest.mark.process
def test_states_are_signed_and_a_rotation_is_read_on_sighup(tmp_path: Path) -> None:
    place(tmp_path / "models", gru)
    file = tmp_path / "state-keys"
    file.write_text(FIRST)
    with started(str(tmp_path / "models"), "--state-key-file", str(file)) as server:
        (first,) = server.predict({"sequences": [STEPS], "outputs": ["state"]}).json()["predictions"]
        item = {"steps": STEPS, "state": first["state"]}
        assert server.predict({"sequences": [item]}).status_code == 200
        unsigned = StateKeys().text(bytes(16), 1, bytes(32))
        assert server.predict({"sequences": [{"steps": STEPS, "state": unsigned}]}).status_code == 422
        file.write_text("no key")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("the old ones stay")
        assert server.predict({"sequences": [item]}).status_code == 200
        file.write_text(f"{SECOND}\n{FIRST}")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("the keys of states were read again")
        (second,) = server.predict({"sequences": [item], "outputs": ["state"]}).json()["predictions"]
    file.write_text(SECOND)
    assert StateKeys(file).read(second["state"]) is not None
    assert StateKeys(file).read(first["state"]) is None


@pytest.mark.long
@pytest.mark.process
def test_a_bad_key_file_ends_the_start_with_2(tmp_path: Path) -> None:
    file = tmp_path / "state-keys"
    file.write_text("ab")
    code, text = exit_of("--state-key-file", str(file))
    assert code == 2
    assert ":1: a key is at least 32 bytes" in text


@pytest.mark.long
@pytest.mark.process
def test_a_sequence_goes_on_at_another_server_when_one_is_killed(tmp_path: Path) -> None:
    place(tmp_path, gru)
    random, loaded = np.random.default_rng(7), model(gru)
    kept = {index: (steps, cuts(steps, random)) for index, steps in enumerate(sequences([50] * 20))}
    states: dict[int, dict[str, Any]] = {index: {"offset": 0} for index in kept}
    answers: dict[int, Any] = {}

    def go_on(server: ServerProcess, index: int) -> None:
        item = states[index] | {"steps": kept[index][1].pop(0).tolist()}
        (answers[index],) = server.predict({"sequences": [item], "outputs": ["state"]}).json()["predictions"]
        states[index] = {name: answers[index][name] for name in ("state", "offset")}

    with started(str(tmp_path)) as first, started(str(tmp_path)) as second:
        for index in kept:
            go_on(first, index)
        first.process.kill()
        while remaining := [index for index in kept if kept[index][1]]:
            for index in remaining:
                go_on(second, index)
    for index, (steps, _) in kept.items():
        expected = whole(loaded, steps)
        assert np.allclose(answers[index]["probabilities"], expected, atol=1e-6)
        assert answers[index]["offset"] == len(steps)


class Key:
    """A sequence that goes on, as its caller keeps it: the chunks that were answered, and the last state."""

    def __init__(self, steps: Any, random: np.random.Generator) -> None:
        self.chunks = cuts(steps, random)
        self.steps, self.next, self.random = steps, 0, random
        self.item: dict[str, Any] = {"offset": 0}
        self.answer: dict[str, Any] = {}

    async def go_on(self, service: Service, other: Any) -> None:
        """Sends the next chunk; some come twice, some with a wrong offset, and beside an ordinary sequence."""
        sent = self.item | {"steps": self.chunks[self.next].tolist()}
        wrong = sent | {"offset": self.item["offset"] + 1}
        if self.random.random() < 0.1:
            refused = await service.predict({"sequences": [other, wrong], "model": "streams"})
            assert refused.status_code == 409
        for _ in range(1 + (self.random.random() < 0.2)):  # a replay gives the same answer
            body = {"sequences": [sent, other], "model": "streams", "outputs": ["state"]}
            answered = await service.predict(body)
            assert answered.status_code == 200, answered.text
            answer = answered.json()["predictions"][0]
            assert answer["offset"] == self.item["offset"] + len(sent["steps"])
            assert self.answer.get("again", answer) == answer
            self.answer = answer | {"again": answer}
        self.answer.pop("again")
        self.item = {"state": self.answer["state"], "offset": self.answer["offset"]}
        self.next += 1


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.long)])
async def test_many_keys_interleaved_all_get_the_answer_to_the_whole(count: int) -> None:
    random, loaded = np.random.default_rng(6), model(gru)
    keys = [Key(steps, random) for steps in sequences(random.integers(1, 50, count).tolist())]
    ordinary = [steps.tolist() for steps in sequences([1, 17, 33], 1)]

    async def client(queue: list[Key], service: Service) -> None:
        while waiting := [key for key in queue if key.next < len(key.chunks)]:
            await waiting[int(random.integers(len(waiting)))].go_on(service, ordinary[int(random.integers(3))])

    async with serving(loaded, model(mean, name="mean")) as service:
        await asyncio.gather(*(client(keys[index::32], service) for index in range(32)))
        figures = await service.figures()
    for key in keys:
        expected = whole(loaded, key.steps)
        assert np.asarray(key.answer["probabilities"], np.float32).tobytes() == expected.tobytes()
    assert not figures['lengthwise_state_refused_total{model="streams",reason="malformed",version="1"}']
    assert figures['lengthwise_state_refused_total{model="streams",reason="offset",version="1"}']
