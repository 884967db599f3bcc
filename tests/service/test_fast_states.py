"""States of items in the reader in C: what it reads is what the reader in Python reads, and it leaves the rest."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from lengthwise.decoding import fast_json, validation
from lengthwise.decoding.calls import Call
from lengthwise.errors import RequestError
from lengthwise.padding import Sample
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.states import StateKeys
from tests.support.streaming_models import FEATURES, gru, model, sequences

pytestmark = pytest.mark.skipif(not fast_json.COMPILED, reason="no compiler at installation")

STEPS = [steps.tolist() for steps in sequences([3, 1, 2])]


class Streaming:
    """A catalog of one model that streams, with one version."""

    def __init__(self, loaded: LoadedModel, state_keys: StateKeys) -> None:
        self.manifest, self.state_keys = loaded.manifest, state_keys
        self.metrics = SimpleNamespace(count=lambda *_: None)

    def find(self, name: str | None, version: str | None) -> Any:
        return self

    def versions(self) -> list[Any]:
        return [self]


@pytest.fixture(scope="module")
def catalog() -> Streaming:
    return Streaming(model(gru), StateKeys())


def state(catalog: Streaming, offset: int = 7, scale: float = 0.25, units: int = 8) -> str:
    values = [np.full(units, scale, np.float32)]
    return catalog.state_keys.text(catalog.manifest.state_digest, offset, values)


def shown(call: Call) -> Any:
    """All that a reader makes of a body."""
    rows = []
    for item in call.items:
        steps = item.steps.steps if isinstance(item.steps, Sample) else item.steps
        beside = (
            {name: value.tolist() for name, value in item.steps.beside.items()} if isinstance(item.steps, Sample) else 0
        )
        wants = isinstance(item.steps, Sample) and item.steps.wants_state
        rows.append((steps.tolist(), beside, wants, item.seen, item.id, item.sent_steps))
    return rows, call.attention, call.states, call.pointer, call.timeout_ms


def both(document: Any, catalog: Streaming) -> tuple[Any, Any]:
    """What the readers in C and in Python make of a body; the first is None where C leaves it to Python."""
    body = orjson.dumps(document)
    found = []
    for read in (fast_json.read, validation.read):
        try:
            call = read(body, catalog.find, max_sequences=9, layout=validation.PREDICT)
            found.append(None if call is None else shown(call))
        except RequestError as error:
            found.append(str(error))
    return found[0], found[1]


@pytest.mark.parametrize("outputs", [[], ["state"]])
@pytest.mark.parametrize(
    "fields",
    [
        [{}, {}, {}],
        [{"state": 7}, {}, {"id": "c"}],
        [{"state": 7, "offset": 7}, {"offset": 0}, {"id": "c", "state": 2, "offset": 2}],
    ],
    ids=["none", "some", "with offsets"],
)
def test_items_with_states_are_read_as_in_python(fields: list[dict[str, Any]], outputs: list[str], catalog: Streaming):
    items = [{"steps": steps, **more} for steps, more in zip(STEPS, fields, strict=True)]
    for item in items:
        if "state" in item:
            item["state"] = state(catalog, item["state"])
    for document in ({"sequences": items}, {"sequences": items[:1]}, {"sequences": STEPS}, {"sequences": STEPS[:1]}):
        fast, slow = both(document | ({"outputs": outputs} if outputs else {}), catalog)
        assert fast == slow


@pytest.mark.parametrize(
    "item",
    [
        {"steps": STEPS[0], "state": ""},
        {"steps": STEPS[0], "state": "AcLx"},
        {"steps": STEPS[0], "state": 3},
        {"steps": STEPS[0], "state": None},
        {"steps": STEPS[0], "offset": -1},
        {"steps": STEPS[0], "offset": 2},
        {"steps": STEPS[0], "offset": 1.5},
        {"steps": STEPS[0], "step_mask": [True, False, True]},
        {"steps": [[0.5] * (FEATURES + 1)], "offset": 0},
        {"steps": [], "offset": 0},
        {"steps": STEPS[0], "states": "x"},
    ],
    ids=range(11),
)
def test_what_is_not_ordinary_is_left_to_the_reader_in_python(item: dict[str, Any], catalog: Streaming):
    assert both({"sequences": [item]}, catalog)[0] is None


def test_a_state_that_does_not_fit_is_left_to_the_reader_in_python(catalog: Streaming):
    good = {"steps": STEPS[0], "state": state(catalog)}
    for wrong in (
        {"steps": STEPS[0], "state": state(catalog) + "A"},
        {"steps": STEPS[0], "state": state(catalog, units=7)},
        {"steps": STEPS[0], "state": state(catalog, scale=np.inf)},
        {"steps": STEPS[0], "state": state(catalog), "offset": 8},
        {"steps": STEPS[0], "state": state(catalog, offset=2**62)},
        {"steps": [], "state": state(catalog)},
    ):
        assert both({"sequences": [good]}, catalog)[0] is not None
        assert both({"sequences": [good, wrong]}, catalog)[0] is None
