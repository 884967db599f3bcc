"""Models without a head, whose answer is a vector: under every protocol, in Python, for engines and in records."""

import json
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest

import lengthwise
from lengthwise.batching.limits import BatchLimits
from lengthwise.decoding.calls import Item
from lengthwise.errors import ManifestError
from lengthwise.monitoring.consumers import AnsweredCall
from lengthwise.monitoring.record_file import rows_of
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest
from lengthwise.scoring.engine_batches import answer_columns
from lengthwise.scoring.opened import OpenModel
from tests.support.numpy_models import serving
from tests.support.streaming_models import UNITS, gru, model, sequences, whole

EMBEDDING: dict[str, Any] = {"labels": [], "task": "embedding", "dimensions": UNITS}
LOADED = model(gru, options={"head": False}, **EMBEDDING)
(STEPS,) = sequences([9])
EXPECTED = whole(LOADED, STEPS)


async def test_an_answer_has_values_in_the_place_of_a_label() -> None:
    async with serving(LOADED) as service:
        answer = (await service.predict({"sequences": [STEPS.tolist()]})).json()
        assert answer["labels"] == []
        (prediction,) = answer["predictions"]
        assert {*prediction} == {"values", "length"}
        assert np.array(prediction["values"], np.float32).tobytes() == EXPECTED.tobytes()
        shape = {"x-lengthwise-shape": "9,4", "content-type": "application/octet-stream"}
        octets = await service.client.post(
            "/predict", content=STEPS.tobytes(), headers=shape | {"accept": "application/octet-stream"}
        )
        assert octets.content == EXPECTED.tobytes()


async def test_an_embedding_streams_too() -> None:
    async with serving(LOADED) as service:
        body = {"sequences": [STEPS[:4].tolist()], "outputs": ["state"]}
        (first,) = (await service.predict(body)).json()["predictions"]
        item = {"steps": STEPS[4:].tolist(), "state": first["state"]}
        (second,) = (await service.predict({"sequences": [item]})).json()["predictions"]
        assert np.array(second["values"], np.float32).tobytes() == EXPECTED.tobytes()


async def test_in_tensors_the_output_is_values() -> None:
    async with serving(LOADED) as service:
        metadata = (await service.client.get("/v2/models/streams")).json()
        assert metadata["outputs"][0] == {"name": "values", "datatype": "FP32", "shape": [-1, UNITS]}
        values = {"name": "values", "datatype": "FP32", "shape": [1, 9, 4], "data": STEPS.ravel().tolist()}
        answer = (await service.client.post("/v2/models/streams/infer", json={"inputs": [values]})).json()
        (output,) = answer["outputs"]
        assert (output["name"], output["shape"]) == ("values", [1, UNITS])
        assert np.array(output["data"], np.float32).tobytes() == EXPECTED.tobytes()


async def test_python_and_the_client_give_values() -> None:
    local = lengthwise.Model(OpenModel(LOADED, BatchLimits(), 1))
    (prediction,) = local.predict([STEPS])
    async with serving(LOADED) as service:
        transport = httpx2.ASGITransport(service.app)
        async with lengthwise.AsyncClient("http://service", transport=transport) as client:
            (remote,) = await client.predict([STEPS])
    for answer in (prediction, remote):
        assert answer.values is not None
        assert answer.values.tobytes() == EXPECTED.tobytes()
        assert (answer.probabilities.size, answer.label, answer.score) == (0, None, None)
    assert "values=" in repr(prediction)
    assert prediction._repr_html_()
    assert local.predict([STEPS, STEPS])._repr_html_()
    assert "embedding" in local._repr_html_()


def test_engines_get_a_column_of_values() -> None:
    columns = answer_columns(LOADED.manifest, attention=False, errors=False)
    assert [(column.name, column.kind) for column in columns] == [("values", "numbers"), ("length", "count")]


def test_a_record_of_an_embedding_has_no_label() -> None:
    served: Any = SimpleNamespace(manifest=LOADED.manifest)
    call = AnsweredCall(served, [Item(STEPS, 9)], [Answer(EXPECTED)], "id", 0.0, 0.0, 0.0, STEPS.nbytes)
    (row,) = rows_of(call)
    assert row["answer"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": []},
        {"labels": ["a"], "task": "embedding", "dimensions": 3},
        {"labels": [], "task": "embedding"},
        {"labels": ["a"], "dimensions": 3},
    ],
)
def test_labels_and_dimensions_exclude_each_other(fields: dict[str, Any]) -> None:
    table = {"name": "m", "version": 1, "input": {"features": 2}} | fields
    with pytest.raises(ManifestError, match="in their place"):
        Manifest.from_json(json.dumps(table))


def test_the_bytes_of_a_state_are_those_of_its_values() -> None:
    with pytest.raises(ValueError, match="the values of the states are 32 bytes"):
        model(gru, streaming={"state_bytes": 33})
