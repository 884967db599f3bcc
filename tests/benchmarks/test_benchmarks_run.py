"""The benchmarks run: every contender starts, answers, and has its figures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest
from rich.console import Console
from rich.progress import Progress

from benchmarks import bench, itself, machine, report
from benchmarks.contenders import CONTENDERS, EMPTY
from benchmarks.workloads import japanese_vowels
from lengthwise.bench.trial import LoadSpec, LoadTest

TINY = bench.BenchPlan((2,), 1, seconds=0.3, half_load_seconds=0.3, warmup_seconds=0, table_seconds=0.2, sequences=6)


@pytest.fixture
def cores() -> Iterator[list[int]]:
    """All of them; whatever a benchmark does to this process's own is undone."""
    before = os.sched_getaffinity(0)
    yield sorted(before)
    os.sched_setaffinity(0, before)


@pytest.mark.long
def test_every_contender_answers_and_is_compared(cores: list[int]):
    with Progress(console=Console(quiet=True), auto_refresh=False) as progress:
        result = bench.measure(japanese_vowels(0, TINY.sequences), TINY, cores, progress)
    for contender in (*CONTENDERS, EMPTY):
        ((figures,),) = result["closed"][contender.name].values()
        assert figures["answers"].keys() == {"200"}
        assert figures["unanswered"] == figures["broken"] == 0
        assert 0 < figures["server_cpu_seconds"] < 2
    assert result["closed"]["lengthwise"]["2"][0]["wrong"] == 0
    assert result["ratios"]["2"]["reach"]["median"] > 0
    page = report.page({"machine": machine.facts(), "settings": {"rounds": 1}, "workloads": {"some": result}})
    assert page.startswith("Measured at commit ")


class Losing:
    """A server that loses the request of so many loads."""

    target = "127.0.0.1:1"

    def __init__(self, silent: int) -> None:
        self.rates = iter([0.0] * silent + [5.0])

    def run(self, load: LoadSpec) -> Any:
        rate = next(self.rates)
        return SimpleNamespace(to_json=lambda: {"requests_per_second": rate})


def test_a_server_that_lost_a_request_is_asked_again():
    figures = bench.measure_load(cast(LoadTest, Losing(2)), os.getpid(), LoadSpec(warmup_seconds=0))
    assert (figures["requests_per_second"], figures["silent_loads"]) == (5.0, 2)


def test_a_server_that_answers_nothing_is_named():
    with pytest.raises(click.ClickException, match=r"127\.0\.0\.1:1 answered nothing, 3 times"):
        bench.measure_load(cast(LoadTest, Losing(3)), os.getpid(), LoadSpec(warmup_seconds=0))


def test_memory_is_that_of_the_server(cores: list[int]):
    found = itself.memory(japanese_vowels(0, 20), 50, cores)
    assert 50 < found["idle_mib"] <= found["late_mib"] < 1000


@pytest.mark.long
def test_waits_are_those_that_the_server_says(cores: list[int]):
    found = itself.bypass(japanese_vowels(0, 20), 0.5, 1, 0, cores)
    assert list(found) == ["lengthwise", "arrival-order"]
    for by_arrivals in found.values():
        assert list(by_arrivals) == ["poisson", "constant"]
        for seen in by_arrivals.values():
            (requests,), (longest,), (mean,) = seen["requests"], seen["longest_ms"], seen["mean_ms"]
            assert requests > 10
            assert longest >= mean > 0
            assert seen["median_ratio"] == pytest.approx(longest / mean)
