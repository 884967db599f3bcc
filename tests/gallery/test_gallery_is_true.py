"""Every leaking model leaks and every sound one is sound: seen by running them, without any checker."""

import inspect

import numpy as np
import pytest

from tests.gallery import index
from tests.gallery.index import (
    ONNX_LEAKING,
    ONNX_SOUND,
    TORCH_LEAKING,
    TORCH_SOUND,
    Exhibit,
)
from tests.gallery.trials import TOLERANCE, finite_differences, poison_difference, run_of


@pytest.mark.parametrize("exhibit", TORCH_LEAKING + ONNX_LEAKING, ids=str)
def test_a_leaking_model_leaks(exhibit: Exhibit) -> None:
    differences = finite_differences(exhibit, run_of(exhibit))
    assert 10 * TOLERANCE < max(differences.values()) < np.inf, differences


@pytest.mark.parametrize("exhibit", TORCH_SOUND + ONNX_SOUND, ids=str)
def test_a_sound_model_answers_alike_alone_and_padded(exhibit: Exhibit) -> None:
    differences = finite_differences(exhibit, run_of(exhibit))
    assert max(differences.values()) <= TOLERANCE, differences


@pytest.mark.parametrize("exhibit", [exhibit for exhibit in TORCH_SOUND + ONNX_SOUND if exhibit.features], ids=str)
def test_a_sound_model_is_a_warning_where_padding_that_is_not_finite_reaches_its_answer(exhibit: Exhibit) -> None:
    worst = poison_difference(exhibit, run_of(exhibit))
    assert (worst > TOLERANCE) == (exhibit.verdict == "warning"), worst


@pytest.mark.parametrize("exhibit", TORCH_LEAKING, ids=str)
def test_a_leaking_torch_source_marks_the_line_where_its_leak_begins(exhibit: Exhibit) -> None:
    assert exhibit.line is not None
    assert exhibit.file.read_text().splitlines()[exhibit.line - 1].endswith(index.MARKER)


@pytest.mark.parametrize("exhibit", ONNX_LEAKING, ids=str)
def test_a_leaking_graph_has_a_node_of_the_expected_name(exhibit: Exhibit) -> None:
    names = [node.name for node in exhibit.make().graph.node]
    assert any(operator in name for operator in exhibit.operator for name in names)


@pytest.mark.parametrize("exhibit", TORCH_LEAKING + TORCH_SOUND, ids=str)
def test_the_second_argument_is_named_for_what_it_is_or_has_to_be_said(exhibit: Exhibit) -> None:
    names = exhibit.arguments[1:] or [*inspect.signature(exhibit.make().forward).parameters][1:]
    taken = names if exhibit.second == "both" else names[:1]
    read = {"lengths" if "len" in name else "mask" if "mask" in name and "pad" not in name else None for name in taken}
    means = {"lengths", "mask"} if exhibit.second == "both" else {exhibit.second}
    assert exhibit.named == (read != means)
