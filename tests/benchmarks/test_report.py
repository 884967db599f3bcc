"""From rounds to ratios, a table and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, report
from benchmarks.contenders import CONTENDERS, EMPTY, MOSEC, SERVICE

RATES = {
    "lengthwise": 2000.0,
    "lengthwise-int8": 3900.0,
    "onnxruntime-kernels": 1800.0,
    "empty-run": 10_000.0,
    "mosec": 1000.0,
    "mosec-sorted": 1500.0,
    "naive-fastapi": 800.0,
}


def figures(rate: float, p99: float = 10.0, *, slow: bool = False) -> dict[str, Any]:
    latency = {"p50": p99 / 2, "p95": p99 * 0.9, "p99": p99, "p99_9": p99 * 2, "mean": p99 / 2, "max": p99 * 3}
    return {
        "requests_per_second": rate / 2 if slow else rate,
        "latency_ms": latency,
        "padding_share": 0.1,
        "answers": {"200": 1000},
        "wrong": 1,
        "server_cpu_seconds": 1000 / rate,
    }


def limit(seconds: list[float]) -> dict[str, Any]:
    """What the graph alone takes in two rounds; what else runs on the machine takes no processor time from it."""
    cpu = [min(seconds)] * len(seconds)
    return {
        "seconds_per_sequence": seconds,
        "cpu_seconds_per_sequence": cpu,
        "padding_share": 0.03,
        "rows_per_batch": 9.0,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """Two rounds; in the second half of the machine is taken by something else."""
    everyone = [contender.name for contender in (*CONTENDERS, EMPTY)]
    closed = {
        name: {"8": [figures(RATES.get(name, 900.0)), figures(RATES.get(name, 900.0), 20.0, slow=True)]}
        for name in everyone
    }
    half = {name: [figures(500, 5.0 if name == SERVICE.name else 10.0), figures(500, 8.0)] for name in everyone}
    result: report.WorkloadResult = {
        "title": "some lengths",
        "connections": [8],
        "limit": {
            "onnxruntime": limit([0.0003, 0.0006]),
            "own": limit([0.0002, 0.0004]),
            "as_they_come": {
                "8": limit([0.0004, 0.0007]),
            },
        },
        "closed": closed,
        "half_load_rate": 750.0,
        "half_load": half,
    }
    result["ratios"] = report.ratios(result)
    return {"machine": machine.facts(), "settings": {"rounds": 2}, "workloads": {"some": result}}


def test_a_ratio_is_taken_within_a_round(results: dict[str, Any]):
    ratios = results["workloads"]["some"]["ratios"]["8"]
    assert ratios["over_mosec_sorted"]["low"] == ratios["over_mosec_sorted"]["high"] == pytest.approx(2000 / 1500)
    assert ratios["over_best_of_naive_and_mosec"]["median"] == pytest.approx(2)


def test_reach_is_throughput_over_the_no_waste_limit(results: dict[str, Any]):
    reach = results["workloads"]["some"]["ratios"]["8"]["reach"]
    assert reach["high"] == pytest.approx(2000 * (0.0003 + 0.0001))
    assert reach["low"] == pytest.approx(1000 * (0.0006 + 0.0002))


def test_the_service_is_held_against_the_limit_in_its_own_kernels_too(results: dict[str, Any]):
    ratios = results["workloads"]["some"]["ratios"]["8"]
    assert ratios["reach_own_kernels"]["high"] == pytest.approx(2000 * (0.0002 + 0.0001))
    assert ratios["reach_own_kernels"]["low"] == pytest.approx(1000 * (0.0004 + 0.0002))


def test_what_planning_is_worth_shows_in_everybodys_kernels(results: dict[str, Any]):
    ratios = results["workloads"]["some"]["ratios"]["8"]
    assert ratios["reach_same_kernels"]["high"] == pytest.approx(1800 * (0.0003 + 0.0001))
    assert ratios["same_kernels_over_mosec_sorted"]["median"] == pytest.approx(1800 / 1500)
    assert ratios["same_kernels_over_best_of_naive_and_mosec"]["median"] == pytest.approx(1800 / 1000)
    text = report.page(results)
    assert "in onnxruntime's kernels 450 us a sequence" in text
    assert "in Lengthwise's kernels 300 us a sequence" in text


def test_what_not_knowing_the_future_costs_has_a_reach_of_its_own(results: dict[str, Any]):
    reach = results["workloads"]["some"]["ratios"]["8"]["reach_as_they_come"]
    assert reach["high"] == pytest.approx(2000 * (0.0004 + 0.0001))
    assert reach["low"] == pytest.approx(1000 * (0.0007 + 0.0002))
    text = report.page(results)
    assert "planned as they come: 550 us at 8." in text
    assert "| the same, as they come |" in text


def test_what_no_server_can_pass_is_the_graph_alone_over_a_peer(results: dict[str, Any]):
    ratios = results["workloads"]["some"]["ratios"]["8"]
    over = ratios["graph_alone_over_mosec_sorted"]
    assert over["high"] == pytest.approx(1 / 0.0003 / 1500)
    assert over["low"] == pytest.approx(1 / 0.0006 / 750)
    assert "(the graph alone in these over it)" in report.page(results)


def test_int8_and_the_tail_are_held_against_mosec_sorted_by_hand(results: dict[str, Any]):
    ratios = results["workloads"]["some"]["ratios"]["8"]
    assert ratios["int8_over_mosec_sorted"]["low"] == pytest.approx(3900 / 1500)
    assert ratios["int8_over_own"]["high"] == pytest.approx(3900 / 2000)
    assert ratios["p99_over_mosec_sorted"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    text = report.page(results)
    assert "| the same at int8 |" in text
    assert "| p99 over that of mosec sorted by hand |" in text


def test_processor_time_does_not_see_what_else_runs_on_the_machine(results: dict[str, Any]):
    reach = results["workloads"]["some"]["ratios"]["8"]["core_second"]["reach"]
    assert reach["low"] == reach["high"] == pytest.approx(2000 * (0.0003 + 0.0001))


def test_the_tail_at_half_load_is_held_against_the_best_peers(results: dict[str, Any]):
    tail = results["workloads"]["some"]["ratios"]["half_load"]["p99_over_best_peer"]
    assert (tail["low"], tail["high"]) == (0.5, 1.0)


def test_the_table_has_a_row_of_medians_for_every_server(results: dict[str, Any]):
    text = report.page(results)
    assert all(f"| {contender.title} |" in text for contender in (*CONTENDERS, EMPTY))
    assert "| Lengthwise | 1,500 | 2,000 | 7.5 / 15.0 | 3.2 / 6.5 / 13.0 |" in text
    assert "10.0%" in text
    assert "unbatched: 4,000; different in a bit: 4." in text


def test_every_workload_has_its_two_plots(results: dict[str, Any], tmp_path: Path):
    paths = report.draw(results, tmp_path)
    assert len(paths) == 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_server_that_was_asked_again_is_named(results: dict[str, Any]):
    text = "Asked again after no answer: "
    assert text not in report.page(results)
    results["workloads"]["some"]["half_load"][MOSEC.name][1]["silent_loads"] = 2
    assert f"{text}{MOSEC.title}, 2 times." in report.page(results)
