"""What an operator asks of the service as figures: protocols side by side, reloads, neighbours. Each benchmark runs."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import machine, neighbours, protocols, reloads
from benchmarks.protocols import FORMS, ProtocolLoad
from benchmarks.workloads import japanese_vowels
from lengthwise.padding import Steps

TINY = ProtocolLoad(at_once=2, seconds=0.2, warmup_seconds=0.0, rounds=1)
CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    return protocols.compare([5], TINY, CORES)["5"]


def test_every_protocol_answers_in_fewer_bytes_the_less_it_says(compared: dict[str, Any]) -> None:
    assert list(compared) == [form.name for form in FORMS]
    for figures in compared.values():
        assert figures["failed"] == 0
        assert figures["requests_per_second"] > 0
        assert figures["latency_ms"]["p50"] > 0
    octets, json = compared["octets `/predict`"], compared["JSON `/predict`"]
    assert 5 * 12 * 4 < octets["sent_bytes"] < json["sent_bytes"]
    assert 9 * 4 < octets["received_bytes"] < json["received_bytes"]


def test_a_protocol_that_gives_other_bits_is_not_measured_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(target: Any, steps: Steps) -> bytes:
        return FORMS[2].write(target, steps * np.float32(2))

    monkeypatch.setattr(protocols, "FORMS", (FORMS[0], replace(FORMS[2], write=doubled)))
    with pytest.raises(ValueError, match="v1: other bits than JSON"):
        protocols.compare([5], TINY, CORES)


def test_the_figures_become_a_page(compared: dict[str, Any]) -> None:
    load = {"at_once": 2, "rounds": 1, "seconds": 0.2}
    both = {"protocols": {"5": compared}, "without_the_graph": {"5": compared}}
    page = protocols.page(machine.facts(), {"load": load, **both})
    assert page.count("\n| 5 | ") == len(FORMS)


@pytest.mark.long
def test_reloads_lose_no_request_and_no_refused_version_answers() -> None:
    for period in (1.0, 4.0, 16.0):  # on a busy machine the requests end before the second version is loaded
        found = reloads.measure(japanese_vowels(0, 10).sequences, 8, period, CORES)
        if found["versions_that_answered"] > 1:
            break
    assert found["reloads"] == 8
    assert found["refused"] == 1
    assert found["requests"] > 10
    assert found["versions_that_answered"] > 1
    assert reloads.good(found, 1000), found
    page = reloads.page(machine.facts(), found | {"good": True})
    assert "| answers with labels of another version | 0 |" in page


@pytest.mark.parametrize(
    "spoilt",
    [{"failed": 1}, {"wrong": ["x"]}, {"answers_of_refused_versions": 2}, {"unexpected": ["x"]}, {"growth_mib": 17.0}],
)
def test_a_reload_with_any_error_does_not_pass(spoilt: dict[str, Any]) -> None:
    fine = {"failed": 0, "wrong": [], "answers_of_refused_versions": 0, "unexpected": [], "growth_mib": 1.0}
    assert reloads.good(fine, 16)
    assert not reloads.good(fine | spoilt, 16)


def test_an_answer_whose_labels_are_of_another_version_is_wrong() -> None:
    answers = reloads.Answers()
    assert answers.check(0, b'{"model":"vowels","version":"7","labels":["1 of 7","2"],"predictions":[]}')
    assert not answers.check(0, b'{"model":"vowels","version":"7","labels":["1 of 6","2"],"predictions":[]}')
    assert answers.count == {7: 2}
    assert len(answers.wrong) == 1


@pytest.mark.long
def test_the_quiet_model_is_measured_alone_and_beside_a_flood() -> None:
    for seconds in (1.0, 4.0, 16.0):  # on a busy machine the flood begins late
        found = neighbours.measure(japanese_vowels(0, 20), 0.05, 4, seconds, 1, CORES[0])
        ((alone,), (beside,)) = found["rounds"].values()
        if beside["flood_per_second"] > 0:
            break
    assert alone["failed"] == beside["failed"] == 0
    assert alone["flood_per_second"] == 0 < beside["flood_per_second"]
    assert found["p99_ratio"] == beside["latency_ms"]["p99"] / alone["latency_ms"]["p99"]
