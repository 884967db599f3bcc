"""Tuning takes what shows, and leaves what does not."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from lengthwise.bench.figures import Figures, Latency
from lengthwise.bench.tune import candidates, loads, table, tune
from lengthwise.errors import ConfigurationError
from tests.support.bench_figures import FIGURES

TRIED = {"runners": ["1", "2"], "max_batch_rows": ["16", "128"]}


def figures(*, rate: float = 100.0, p99: float = 0.01, offered: float | None = None, broken: int = 0) -> Figures:
    return replace(
        FIGURES,
        offered_rate=offered,
        requests_per_second=rate,
        latency_ms=Latency.of(np.array([p99])),
        broken=broken,
    )


def machine(rate: Callable[[Mapping[str, str]], float]) -> tuple[Callable[[Mapping[str, str]], Figures], list[dict]]:
    """A service whose throughput is a function of its options."""
    seen: list[dict] = []

    def measure(options: Mapping[str, str]) -> Figures:
        seen.append(dict(options))
        return figures(rate=rate(options))

    return measure, seen


def test_what_helps_is_taken_and_the_next_option_is_tried_on_top_of_it():
    measure, seen = machine(lambda options: 180 if options.get("runners") == "2" else 100)
    best, steps = tune(measure, TRIED, {})
    assert best == {"runners": "2"}
    assert [step.chosen for step in steps] == ["2", None]
    assert "+80.0%" in steps[0].reason
    assert {"runners": "2", "max_batch_rows": "128"} in seen


def test_a_gain_below_the_noise_is_not_taken():
    rates = iter([100, 112, 101, 80, 96, 103] + [100] * 6)
    measure, _ = machine(lambda _options: next(rates))
    best, steps = tune(measure, TRIED, {})
    assert best == {}
    assert steps[0].noise == pytest.approx(0.2)
    assert "no value is better" in steps[0].reason


def test_what_is_given_stays_and_is_not_tried():
    measure, seen = machine(lambda options: float(options.get("max_batch_rows", 50)))
    best, _ = tune(measure, TRIED, {"max_batch_rows": "32"})
    assert best == {"max_batch_rows": "32"}
    assert {options["max_batch_rows"] for options in seen} == {"32"}


def test_at_a_given_rate_a_lower_tail_is_better():
    def measure(options: Mapping[str, str]) -> Figures:
        return figures(p99=0.005 if options.get("runners") == "1" else 0.01, offered=100.0)

    best, steps = tune(measure, TRIED, {})
    assert best == {"runners": "1"}
    assert "10.00 ms at p99 as it was, 5.00 ms at p99 with 1" in steps[0].reason


def test_settings_are_measured_in_turns():
    measure, seen = machine(lambda _options: 100)
    tune(measure, {"runners": ["1"]}, {})
    assert seen == [{}, {"runners": "1"}] * 2
    assert loads({"runners": ["1"]}) == len(seen)


def test_a_service_that_loses_requests_is_not_tuned():
    with pytest.raises(ConfigurationError, match="did not answer every request"):
        tune(lambda _options: figures(broken=1), TRIED, {})


def test_runners_are_tried_up_to_the_cores():
    assert candidates(3)["runners"] == ["1", "2", "3"]


def test_the_table_gives_each_options_reason():
    measure, _ = machine(lambda _options: 100)
    _, steps = tune(measure, TRIED, {})
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table(steps, title="t"))
    assert "max_batch_rows" in console.export_text()
    assert steps[0].to_json()["chosen"] is None
