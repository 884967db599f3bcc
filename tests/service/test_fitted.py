"""A model of one width: its answers say how a sequence was brought to it, and a longer one follows the policy."""

from typing import Any

import pytest
from pydantic import ValidationError

from lengthwise.runtime.manifest import Manifest, StepInput
from tests.support.numpy_models import manifest, model, serving

STEPS: list[list[int]] = [[1, 3], [2, 4], [5, 6]]


def of_width(width: int, **fields: Any) -> Manifest:
    """A manifest of a model that pads sequences to this width."""
    step = StepInput(features=2, width=width, fit="pad")
    return manifest().model_copy(update={"input": step, "max_length": width} | fields)


@pytest.mark.parametrize(
    ("path", "body"), [("/predict", {"sequences": [STEPS]}), ("/v1/models/sums:predict", {"instances": [STEPS]})]
)
async def test_an_answer_says_that_its_sequence_was_fitted(path: str, body: dict[str, Any]) -> None:
    async with serving(model(of_width(9))) as service:
        answer = (await service.client.post(path, json=body)).json()["predictions"][0]
    assert (answer["length"], answer["fitted"]) == (3, "pad")


async def test_a_model_of_any_width_does_not_say_so() -> None:
    async with serving(model(manifest())) as service:
        answer = (await service.predict({"sequences": [STEPS]})).json()["predictions"][0]
    assert "fitted" not in answer


async def test_a_sequence_longer_than_the_width_follows_the_policy() -> None:
    async with serving(model(of_width(2))) as service:
        refused = await service.predict({"sequences": [STEPS]})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/sequences/0")
    async with serving(model(of_width(2, long="tail"))) as service:
        answer = (await service.predict({"sequences": [STEPS]})).json()["predictions"][0]
    assert (answer["length"], answer["fitted"]) == (2, "pad")


def test_a_manifest_takes_no_sequence_that_does_not_fit() -> None:
    with pytest.raises(ValidationError, match="do not fit into input"):
        Manifest.model_validate(of_width(9).model_dump() | {"max_length": 10})
