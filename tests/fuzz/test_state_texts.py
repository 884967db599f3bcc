"""Forged, cut, swapped, old, foreign and very long states: each is refused, and none is read as another."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lengthwise.decoding.calls import Problems, make_item
from lengthwise.decoding.chunks import ABSENT, SentState, SentStates, resumed
from lengthwise.padding import Sample, planned_length
from lengthwise.runtime.states import StateKeys
from tests.support.streaming_models import graph_bytes, gru, manifest, mean

OWN = manifest(gru, graph_bytes(gru))
OTHER = manifest(gru, graph_bytes(gru, seed=1), version=2)
FOREIGN = manifest(mean, graph_bytes(mean))
STEPS_SEEN = {"name": "steps_seen", "shape": (1,), "dtype": "int64"}
COUNTING = manifest(
    gru,
    graph_bytes(gru),
    streaming={"state_bytes": 40, "states": [{"name": "hidden", "shape": (8,)}, STEPS_SEEN]},
)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=+/ \n\té"
Random = np.random.Generator


def raw(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def text_of(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def state(random: Random, keys: StateKeys, of: bytes = OWN.state_digest, size: int = 8) -> str:
    values = random.standard_normal(size).astype(np.float32)
    return keys.text(of, int(random.integers(1, 2**62)), values.tobytes())


def another_letter(text: str, random: Random, _: StateKeys) -> str:
    place = int(random.integers(len(text)))
    return text[:place] + ALPHABET[int(random.integers(len(ALPHABET)))] + text[place + 1 :]


def another_bit(text: str, random: Random, _: StateKeys) -> str:
    content = bytearray(raw(text))
    content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
    return text_of(bytes(content))


def cut(text: str, random: Random, _: StateKeys) -> str:
    return text[: int(random.integers(len(text)))]


def longer(text: str, random: Random, _: StateKeys) -> str:
    return text + text_of(random.bytes(int(random.integers(1, 60))))


def swapped(text: str, random: Random, keys: StateKeys) -> str:
    """The first part of one state and the last of another: format, digest and offset at least are of the first."""
    place, other = int(random.integers(36, len(text))), state(random, keys)
    return text[:place] + other[place:]


def foreign(_: str, random: Random, keys: StateKeys) -> str:
    return state(random, keys, FOREIGN.state_digest, 5)


def another_size(_: str, random: Random, keys: StateKeys) -> str:
    return state(random, keys, size=int(random.choice([0, 7, 9, 4000])))


def not_finite(_: str, random: Random, keys: StateKeys) -> str:
    values = random.standard_normal(8).astype(np.float32)
    values[int(random.integers(8))] = random.choice([np.nan, np.inf, -np.inf])
    return keys.text(OWN.state_digest, 5, values.tobytes())


def signed_by(other: StateKeys, _: str, random: Random, __: StateKeys) -> str:
    return state(random, other)


def very_long(_: str, random: Random, keys: StateKeys) -> str:
    return state(random, keys, size=int(random.integers(1000, 20_000)))


WAYS: list[Callable[[str, Random, StateKeys], str]] = [
    *(another_letter, another_bit, cut, longer, swapped, foreign, another_size, not_finite, very_long)
]


@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
def test_no_mutation_of_a_state_is_read_as_another(tmp_path: Path, signed: bool, count: int) -> None:
    file = tmp_path / "keys"
    file.write_text("ab" * 32)
    random, keys = np.random.default_rng(count), StateKeys(file if signed else None)
    file.write_text("cd" * 32)
    others = [StateKeys(file), *([StateKeys()] if signed else [])]  # whose states are not read
    ways = [*WAYS, *(partial(signed_by, other) for other in others)]
    for index in range(count):
        text = state(random, keys)
        changed = ways[index % len(ways)](text, random, keys)
        if changed == text:  # a letter that was replaced by itself
            continue
        problems = Problems()
        sent = SentStates([SentState(changed), SentState(text), SentState()], "/{}", "/{}/offset", problems, False)
        chosen, pasts = sent.read([OWN, OTHER], keys)
        found = [*problems.first, *sent.conflicts.first]
        assert [problem.pointer for problem in found] == ["/0"], (index, changed)
        assert chosen == 0
        assert pasts[1] is not None
        assert pasts[1].values["hidden"].tobytes() == raw(text)[25:-16]
        assert pasts[2] is None


FORGED = [1, -1, 5, 7, 10_000_000, 2**31, 2**62, 2**63 - 1, -(2**31), -(2**62), -(2**63)]


@pytest.mark.parametrize("count", FORGED)
@pytest.mark.parametrize("offset", [6, 0, 2**63 + 6])
def test_a_state_that_counts_other_steps_is_refused(count: int, offset: int) -> None:
    keys, hidden = StateKeys(), np.zeros(8, np.float32)
    text = keys.text(COUNTING.state_digest, offset, hidden.tobytes() + np.array([count]).tobytes())
    right = keys.text(COUNTING.state_digest, 6, hidden.tobytes() + np.array([6]).tobytes())
    problems = Problems()
    sent = SentStates([SentState(text), SentState(right, 6)], "/{}", "/{}/offset", problems, False)
    _, pasts = sent.read([COUNTING], keys)
    assert [problem.pointer for problem in problems.first] == ["/0"]
    assert "its values count others" in problems.first[0].detail
    assert sent.refused == {"malformed": 1}
    assert pasts[1] is not None
    assert pasts[1].values["steps_seen"].tolist() == [6]


@pytest.mark.parametrize(("offset", "repeated"), [(0, 0), (6, 6), (20, 20), (1000, 20)])
def test_what_the_model_looks_ahead_runs_again(offset: int, repeated: int) -> None:
    ahead = manifest(gru, graph_bytes(gru), streaming={"look_ahead_steps": 20})
    keys, steps = StateKeys(), np.zeros((3, 4), np.float32)
    text = keys.text(ahead.state_digest, offset, bytes(32))
    for of, expected in ((ahead, repeated), (OWN, 0)):
        sent = SentStates([SentState(text)], "/{}", "/{}/offset", Problems(), False)
        _, (past,) = sent.read([of], keys)
        row = resumed(make_item(steps, of, sent_steps=3), past).steps
        assert isinstance(row, Sample)
        assert row.repeated == expected
        assert planned_length(row) == 3 + expected


def test_a_megabyte_is_refused_in_no_time() -> None:
    keys = StateKeys()
    for text in (
        "A" * 1_000_000,
        "\ud800" * 1_000_000,
        keys.text(OWN.state_digest, 1, bytes(1_000_000)),
    ):
        problems = Problems()
        sent = SentStates([SentState(text, ABSENT)], "/{}", "/{}/offset", problems, False)
        sent.read([OWN], keys)
        assert problems.total == 1
