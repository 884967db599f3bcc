"""Models without lengths are given some: each then answers as the original alone, or is refused with the reason."""

from __future__ import annotations

import functools
from typing import Any

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

NOT_MENDED: dict[str, str] = {}
"""Models that ought to be mended and are not: refused, or wrong."""

SHORTEST_NOT_KNOWN = {
    "torch_blind/instance_norm_first": "the original raises for one step, which its graph does not",
    "torch_blind/std_pool": "the deviation of one step is NaN",
    "torch_blind/x_vector": "the deviation of one frame is NaN",
    "onnx_blind/deviation": "the deviation of one step is NaN",
}
"""Models of which a mend says that they take a shorter sequence than they do, and why."""


def marked(exhibits: tuple[Exhibit, ...], *reasons: dict[str, str]) -> list[Any]:
    """The exhibits as parameters; those with a reason are expected to fail, and have to."""
    known = {name: reason for each in reasons for name, reason in each.items()}
    unknown = set(known) - {str(exhibit) for exhibit in BLIND + UNMENDABLE}
    if unknown:
        raise ValueError(f"not in the catalogue: {unknown}")
    return [
        pytest.param(
            exhibit,
            id=str(exhibit),
            marks=[pytest.mark.xfail(strict=True, reason=known[str(exhibit)])] if str(exhibit) in known else [],
        )
        for exhibit in exhibits
    ]


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


def difference(exhibit: Exhibit, count: int) -> float:
    """The largest difference between the mended graph in company and the original alone."""
    result, names = mended(exhibit)
    return compare(exhibit, mended_model(result.graph, exhibit, names), count=count).difference


@pytest.mark.sampled(36)
@pytest.mark.parametrize("exhibit", marked(BLIND, NOT_MENDED))
def test_a_mended_model_answers_as_the_original_alone(exhibit: Exhibit) -> None:
    assert difference(exhibit, 100) <= TOLERANCE
    result, _ = mended(exhibit)
    assert result.changes
    assert all(change.cause and change.before and change.after for change in result.changes)
    assert str(exhibit) in SHORTEST_NOT_KNOWN or result.min_length == exhibit.shortest


@pytest.mark.gallery
@pytest.mark.parametrize("exhibit", marked(BLIND, NOT_MENDED))
def test_a_mended_model_answers_a_thousand_sequences_as_the_original_alone(exhibit: Exhibit) -> None:
    assert difference(exhibit, 1000) <= TOLERANCE


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "exhibit", marked(tuple(each for each in BLIND if str(each) in SHORTEST_NOT_KNOWN), SHORTEST_NOT_KNOWN)
)
def test_a_mend_says_the_shortest_sequence_that_the_original_takes(exhibit: Exhibit) -> None:
    assert mended(exhibit)[0].min_length == exhibit.shortest


@pytest.mark.sampled(5)
@pytest.mark.parametrize("exhibit", UNMENDABLE, ids=str)
def test_what_cannot_be_mended_is_refused_with_the_reason(exhibit: Exhibit) -> None:
    with pytest.raises(LengthwiseError) as refused:
        mended(exhibit)
    assert any(word in str(refused.value).lower() for word in exhibit.reason), refused.value
