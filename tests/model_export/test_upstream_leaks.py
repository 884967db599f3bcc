"""Leaks of public projects, rebuilt from their descriptions, are found at their lines; their cured twins are sound."""

from __future__ import annotations

import pytest

import lengthwise_export
from tests.model_export.upstream_leaks import UPSTREAM, UpstreamLeak

each = pytest.mark.parametrize("leak", UPSTREAM, ids=lambda leak: leak.see)


@pytest.mark.sampled(13)
@each
def test_a_leak_of_a_public_project_is_found_by_its_rule_at_its_line(leak: UpstreamLeak) -> None:
    report = lengthwise_export.check(leak.make(cured=False), **leak.options)
    assert report.verdict == "leak"
    found = [(one.cause.code, one.location.source) for one in report.leaks if one.location is not None]
    assert found == [(leak.code, leak.line)]


@pytest.mark.sampled(15)
@each
def test_the_cured_twin_is_sound(leak: UpstreamLeak) -> None:
    report = lengthwise_export.check(leak.make(cured=True), **leak.options)
    assert (report.verdict, report.leaks) == ("sound", ())
