"""From what the client saw to the figures that are shown."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from lengthwise.bench.figures import Figures, Latency, figures, padding, table
from lengthwise.bench.load import Measurement
from lengthwise.bench.remote import Totals


def measurement(
    latency: list[float], *, status: list[int] | None = None, seconds: float = 2.0, **changed: int
) -> Measurement:
    due = np.linspace(0, 1, len(latency))
    return Measurement(
        due=due,
        sent=due + 0.001,
        answered=due + np.array(latency),
        status=np.array(status or [200] * len(latency), dtype=np.int64),
        **{"unsent": 0, "unanswered": 0, "broken": 0, "wrong": 0, **changed},
        seconds=seconds,
        cpu_seconds=0.5,
    )


def shown(seen: Measurement, growth: Totals | None = None, **options: object) -> Figures:
    return figures(seen, growth, **{"load": "a load", "seconds": 2.0, **options})


def test_a_percentile_is_a_latency_that_occurred():
    latency = Latency.of(np.arange(1, 101) / 1e3)
    assert (latency.p50, latency.p95, latency.p99, latency.p99_9) == pytest.approx((50, 95, 99, 100))
    assert (latency.mean, latency.max) == pytest.approx((50.5, 100))


def test_a_closed_loops_throughput_leaves_out_what_came_after_its_time():
    seen = measurement([0.1, 0.1, 0.1, 3.0], seconds=4.0)
    assert shown(seen).requests_per_second == pytest.approx(3 / 2)


def test_a_closed_loop_bounded_by_a_count_is_judged_over_the_time_it_took():
    assert shown(measurement([0.1] * 10, seconds=1.25), seconds=60.0).requests_per_second == pytest.approx(8)


def test_an_open_loops_throughput_counts_every_answer_over_the_time_they_took():
    assert shown(measurement([0.1, 3.0], seconds=4.0), offered_rate=1.0).requests_per_second == pytest.approx(0.5)


def test_refusals_are_answers_but_neither_throughput_nor_latency():
    seen = shown(measurement([0.1, 9.0], status=[200, 429]))
    assert seen.answers == {200: 1, 429: 1}
    assert seen.latency_ms is not None
    assert seen.latency_ms.max == pytest.approx(100)
    assert seen.requests_per_second == pytest.approx(0.5)
    assert seen.is_sound


@pytest.mark.parametrize("failure", ["unanswered", "broken", "wrong"])
def test_a_load_with_a_missing_or_wrong_answer_is_not_sound(failure: str):
    assert not shown(measurement([0.1], **{failure: 1})).is_sound


@pytest.mark.parametrize(("computed", "share"), [(0, 0), (10, 0.1)])
def test_padding_and_rows_come_from_the_servers_counters(computed: int, share: float):
    growth = {
        ("lengthwise_steps_total", "valid"): 90.0,
        ("lengthwise_steps_total", "padding"): 10.0,
        ("lengthwise_computed_padding_steps_total", ""): float(computed),
        ("lengthwise_batch_rows_sum", ""): 30.0,
        ("lengthwise_batch_rows_count", ""): 5.0,
    }
    seen = shown(measurement([0.1]), growth, sequences_per_request=4)
    assert (seen.padding_share, seen.computed_padding_share, seen.rows_per_batch) == (0.1, share, 6)
    assert padding(seen) == f"{share:.1%} (10.0%)"
    assert seen.sequences_per_second == 4 * seen.requests_per_second


def test_a_server_without_counters_has_neither():
    assert shown(measurement([0.1]), {("up", ""): 1.0}).padding_share is None
    assert shown(measurement([0.1])).rows_per_batch is None


def test_the_client_says_its_share_of_a_core_and_how_late_it_sent():
    seen = shown(measurement([0.1] * 50))
    assert seen.client_core_share == 0.25
    assert seen.client_us_per_request == pytest.approx(10_000)
    assert seen.late_ms == pytest.approx(1)


def test_a_load_without_any_answer_has_figures_too():
    seen = shown(measurement([], unanswered=3), checked=False)
    assert seen.latency_ms is None
    assert seen.wrong is None
    assert seen.to_json()["answers"] == {}


def test_the_table_names_every_error_by_what_it_was():
    console = Console(width=200, file=io.StringIO(), record=True)
    rows = [
        shown(measurement([0.1, 0.1], status=[200, 429], unsent=3, broken=2, wrong=1)),
        shown(measurement([], unanswered=1), checked=False),
    ]
    console.print(table(rows, title="t"))
    text = console.export_text()
    assert "429: 1, unsent: 3, broken: 2, wrong: 1" in text
    assert "not compared" in text
    assert "unanswered: 1" in text


def test_the_table_of_a_sound_load_fits_into_80_columns():
    seen = replace(shown(measurement([0.0123, 0.0123, 1.23])), load="constant 10,000/s", wrong=0)
    seen = replace(seen, padding_share=0.625, computed_padding_share=0.625)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table([seen], title="t"))
    text = console.export_text()
    assert "…" not in text
    assert "12.3" in text
    assert "1230" in text
