"""The reader in C on items with states: it reads what the one in Python reads, and leaves it the rest."""

import json
from collections.abc import Sequence
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.decoding import fast_json, validation
from lengthwise.decoding.calls import Call
from lengthwise.errors import RequestError
from lengthwise.padding import Sample
from lengthwise.runtime.input_tables import StaticInput, StepInput
from lengthwise.runtime.states import StateKeys
from tests.support.numpy_models import OneModel
from tests.support.streaming_models import FEATURES, UNITS, graph_bytes, gru, manifest

native = pytest.importorskip(
    "lengthwise.decoding._fast_json", reason="it is optional: this installation had no C compiler"
)
KEYS = StateKeys()


class Streams(OneModel):
    """A catalog of one model that streams."""

    state_keys = KEYS
    metrics = SimpleNamespace(count=lambda *_: None)

    def versions(self) -> list[OneModel]:
        return [self]


CATALOG = Streams(manifest(gru, graph_bytes(gru), max_length=8, streaming={"max_steps": 20}))
WITH_STATIC = Streams(CATALOG.manifest.like(input=StepInput(features=FEATURES, static=StaticInput(count=2))))
DIGEST = CATALOG.manifest.state_digest


def state(offset: int, digest: bytes = DIGEST) -> str:
    return KEYS.text(digest, offset, np.full(UNITS, offset, np.float32).tobytes())


STATES = st.one_of(st.integers(1, 20).map(state), st.sampled_from([state(4), state(4, bytes(16)), "", "no", 5, None]))
OFFSETS = st.one_of(st.integers(0, 20), st.sampled_from([4, -1, 1.0, "4", None, True, 2**63, 2**64, 10**30]))
STATIC = st.one_of(st.just([1, -2.5]), st.lists(st.one_of(st.integers(-9, 9), st.none(), st.text()), max_size=3))
ITEM = st.fixed_dictionaries(
    {"steps": st.lists(st.lists(st.integers(-9, 9), min_size=FEATURES, max_size=FEATURES), max_size=9)},
    optional={"id": st.text(max_size=4), "state": STATES, "offset": OFFSETS, "static": STATIC},
)
BODY = st.fixed_dictionaries(
    {"sequences": st.lists(st.one_of(ITEM, st.just([[1] * FEATURES])), min_size=1, max_size=3)},
    optional={"outputs": st.sampled_from([["state"], ["attention"], ["state", "state"], []])},
)


def seen(call: Call) -> list[Any]:
    """What a call holds, as values that can be compared."""
    found = []
    for item in call.items:
        row = item.steps if isinstance(item.steps, Sample) else Sample(item.steps)
        beside = {name: (array.dtype.str, array.tolist()) for name, array in row.beside.items()}
        before = None if row.state is None else (row.state.dtype.descr, row.state.tobytes())
        found.append((row.steps.tolist(), beside, before, row.wants_state, item.seen, item.id, item.sent_steps))
    return [found, call.states, call.attention, call.pointer]


@settings(max_examples=20 * settings.default.max_examples)
@given(BODY, st.sampled_from([(",", ":"), (", ", ": ")]), st.sampled_from([CATALOG, WITH_STATIC]))
def test_what_c_reads_is_what_python_reads(body: Any, separators: tuple[str, str], catalog: Streams) -> None:
    content = json.dumps(body, separators=separators).encode()
    fast = fast_json.read(content, catalog.find, max_sequences=8)  # type: ignore[arg-type]
    if fast is None:
        return
    assert seen(fast) == seen(validation.read(content, catalog.find, max_sequences=8))  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [*permutations(("steps", "state", "static"))])
def test_static_values_are_read_in_c_beside_states(order: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"steps": [[1, 2, 3, 4]], "state": state(4), "static": [1, -2.5]}
    content = json.dumps({"sequences": [{name: fields[name] for name in order}]}).encode()
    monkeypatch.setattr(fast_json, "_other_fields", None)  # Python reads no field
    call = fast_json.read(content, WITH_STATIC.find, max_sequences=8)  # type: ignore[arg-type]
    assert call is not None
    assert seen(call) == seen(validation.read(content, WITH_STATIC.find, max_sequences=8))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields", ['"state":"%s"', '"offset":4,"state":"%s"', '"id":"a", "state" : "%s", "offset" : 4']
)
@pytest.mark.parametrize("outputs", ["", ',"outputs":["state"]'])
def test_an_ordinary_chunk_is_read_in_c(fields: str, outputs: str) -> None:
    item = f'{{"steps":[[1,2,3,4]],{fields % state(4)}}}'
    content = f'{{"sequences":[{item}, [[1,2,3,4]]]{outputs}}}'.encode()
    call = fast_json.read(content, CATALOG.find, max_sequences=8)  # type: ignore[arg-type]
    assert call is not None
    assert [item.seen for item in call.items] == [4, 0 if outputs else None]


@pytest.mark.parametrize(
    "fields",
    [
        *(f'"state":"{state(4)}","state":"{state(4)}"', '"offset":4,"offset":4', '"offset":04', '"offset":4.0'),
        *('"offset":-1', f'"offset":{10**18}', '"offset":"4"', '"state":"\\u0041"', '"state":null', '"state":5'),
        *(f'"state":"{state(4)}","offset":3', f'"state":"{state(4, bytes(16))}"', f'"state":"{state(20)}"'),
    ],
)
def test_every_other_chunk_is_left_to_python(fields: str) -> None:
    content = f'{{"sequences":[{{"steps":[[1,2,3,4]],{fields}}}]}}'.encode()
    assert fast_json.read(content, CATALOG.find, max_sequences=8) is None  # type: ignore[arg-type]
    with pytest.raises(RequestError):
        validation.read(content, CATALOG.find, max_sequences=8)  # type: ignore[arg-type]
