"""`check --padding` and `--packed` are right about each model of the gallery: verdict, rule, line or node."""

from typing import Any

import pytest
from onnx import ModelProto

import lengthwise_export
from tests.gallery.layout_index import EXHIBITS, LayoutExhibit


@pytest.mark.sampled(84)
@pytest.mark.parametrize("exhibit", EXHIBITS, ids=str)
def test_each_model_gets_its_verdict_and_each_leak_its_rule_and_where_it_begins(exhibit: LayoutExhibit) -> None:
    model = exhibit.make()
    options: dict[str, Any] = {"packed" if exhibit.is_packed else "padding": exhibit.layout} | exhibit.options
    if not isinstance(model, ModelProto):
        options |= {"features": exhibit.features, "vocabulary": exhibit.vocabulary}
    report = lengthwise_export.check(model, max_length=64, **options)
    if exhibit.verdict == "sound":  # NaN behind the last sequence may reach an answer, where weights of 0 multiply it
        assert report.verdict in ("sound", "warning"), str(report)
        return
    assert report.verdict == "leak", str(report)
    leak = report.leaks[0]
    assert leak.cause.code in exhibit.rule, str(report)
    if exhibit.line is None:
        assert leak.operator == exhibit.operator
    else:
        assert leak.location is not None
        assert leak.location.line == exhibit.line, str(report)
