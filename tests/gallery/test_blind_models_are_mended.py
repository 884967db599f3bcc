"""Models without lengths are given some: each then answers as the original alone, or is refused with the reason."""

from __future__ import annotations

import functools

import pytest

from lengthwise.errors import LengthwiseError
from lengthwise.runtime.manifest import GraphNames
from lengthwise_export.mending.engine import RULES
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

BY_DAY = {
    *("torch_blind/cropped_by_padding", "torch_blind/positions_from_the_end", "torch_blind/reflect_padding"),
    *("torch_blind/remaining_sum", "torch_blind/resampled_to_32", "torch_blind/reversed_by_index"),
    *("torch_blind/width_as_feature", "torch_blind/sum_over_root"),
    *("onnx_blind/attention_pool", "onnx_blind/average_pools", "onnx_blind/bilstm_last", "onnx_blind/conv1d_as_2d"),
    *("onnx_blind/encoder_block", "onnx_blind/group_norm", "onnx_blind/gru_final_state", "onnx_blind/keras_loop_gru"),
    *("onnx_blind/last_step_sliced", "onnx_blind/max_pools", "onnx_blind/mean_max_inputs", "onnx_blind/top_three"),
}
"""Models that `make test` tries, too: quick ones that need rules of each module."""


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


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.gallery)])
@pytest.mark.parametrize(
    "exhibit",
    [pytest.param(one, id=str(one), marks=() if str(one) in BY_DAY else pytest.mark.gallery) for one in BLIND],
)
def test_a_mended_model_answers_as_the_original_alone(exhibit: Exhibit, count: int) -> None:
    result, names = mended(exhibit)
    assert compare(exhibit, mended_model(result.graph, exhibit, names), count=count).difference <= TOLERANCE
    assert result.changes
    assert all(change.cause and change.before and change.after for change in result.changes)
    # A mend says the shortest sequence that the original takes.
    assert (result.min_length == exhibit.shortest) == (str(exhibit) not in SHORTEST_NOT_KNOWN)


def test_the_models_that_are_tried_by_day_need_each_module_of_rules() -> None:
    by_day = [exhibit for exhibit in BLIND if str(exhibit) in BY_DAY]
    assert len(by_day) == len(BY_DAY)
    changed = {change.kind for exhibit in by_day for change in mended(exhibit)[0].changes}
    modules = {kind: rule.writes.__module__ for kind, rule in RULES.items()}
    moving = modules["Transpose"]  # it only moves values, which is no change
    assert {modules[kind] for kind in changed & modules.keys()} == {*modules.values()} - {moving}


@pytest.mark.sampled(27)
@pytest.mark.parametrize("exhibit", UNMENDABLE, ids=str)
def test_what_cannot_be_mended_is_refused_with_the_reason(exhibit: Exhibit) -> None:
    with pytest.raises(LengthwiseError) as refused:
        mended(exhibit)
    assert any(word in str(refused.value).lower() for word in exhibit.reason), refused.value
