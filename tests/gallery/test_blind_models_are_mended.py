"""Models without lengths are given some: each then answers as the original alone, or is refused with the reason."""

from __future__ import annotations

import functools

import pytest

from lengthwise.errors import LengthwiseError
from lengthwise.runtime.manifest import GraphNames
from lengthwise_export.mending.mend import Mended, mend
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.gallery.blind_index import BLIND, UNMENDABLE
from tests.gallery.company import compare, mended_model
from tests.gallery.index import Exhibit
from tests.gallery.trials import TOLERANCE

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0"),
]

OPSET = 20
WIDEST = 128
"""Steps that a mended model must take: the longest sequence and what its company is padded with."""

SHORTEST_NOT_KNOWN = {
    "torch_blind/instance_norm_first": "the original raises for one step, which its graph does not",
    "torch_blind/std_pool": "the deviation of one step is NaN",
    "torch_blind/x_vector": "the deviation of one frame is NaN",
    "onnx_blind/deviation": "the deviation of one step is NaN",
}
"""Models of which a mend says that they take a shorter sequence than they do, and why."""


@functools.cache
def mended(exhibit: Exhibit) -> tuple[Mended, GraphNames]:
    """The mended graph, built as an export builds it, and the names of its inputs."""
    said = TargetOptions(
        features=exhibit.features if exhibit.is_torch or exhibit.channels_said else None,
        vocabulary=exhibit.vocabulary if exhibit.is_torch else None,
        channels_first=exhibit.channels_first,
        time_first=exhibit.time_first and exhibit.is_torch,
    )
    target = targets.read(exhibit.target if exhibit.is_torch else exhibit.make(), said, blind=True)
    graph = target.build(exhibit.name, OPSET)
    longest = min(exhibit.longest or WIDEST, WIDEST)
    return mend(graph, target.names, target.steps, max_length=longest), target.names


@pytest.mark.sampled(360)
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.gallery)])
@pytest.mark.parametrize("exhibit", BLIND, ids=str)
def test_a_mended_model_answers_as_the_original_alone(exhibit: Exhibit, count: int) -> None:
    result, names = mended(exhibit)
    assert compare(exhibit, mended_model(result.graph, exhibit, names), count=count).difference <= TOLERANCE
    assert result.changes
    assert all(change.cause and change.before and change.after for change in result.changes)
    # A mend says the shortest sequence that the original takes.
    assert (result.min_length == exhibit.shortest) == (str(exhibit) not in SHORTEST_NOT_KNOWN)


@pytest.mark.sampled(27)
@pytest.mark.parametrize("exhibit", UNMENDABLE, ids=str)
def test_what_cannot_be_mended_is_refused_with_the_reason(exhibit: Exhibit) -> None:
    with pytest.raises(LengthwiseError) as refused:
        mended(exhibit)
    assert any(word in str(refused.value).lower() for word in exhibit.reason), refused.value
