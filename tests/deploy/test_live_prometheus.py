"""A real Prometheus on the real service under load: target, metrics, rules, panels, and what autoscalers ask."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

from lengthwise.bench.launch import free_port, running, serve_command
from lengthwise.runtime import recurrent_kernels
from tests.deploy.live import asked, body, found, monitored, prometheus, value
from tests.deploy.tools import DEPLOY, RULES, chart_engine, loaded, objects, run

pytestmark = pytest.mark.deploy

HISTOGRAMS = ("request_duration", "queue_wait", "inference_duration", "decode_duration")
SHAPES = ("batch_rows", "batch_width_steps", "sequence_length_steps")
METRICS = (
    *(f"{name}_total" for name in ("requests", "sequences", "steps", "rejected", "batch_failures")),
    *(f"{name}_seconds_count" for name in HISTOGRAMS),
    *(f"{name}_count" for name in SHAPES),
    *("queue_cost_steps", "queue_sequences", "inflight_batches", "ready", "model_info"),
    *("runners", "max_queue_cost_steps", "refused_models"),
)
LOAD_SECONDS = 20
PANELS = json.loads((DEPLOY / "grafana" / "dashboards" / "lengthwise.json").read_text())["panels"]


async def _load(url: str) -> set[int]:
    """Good calls of many lengths, and one of each kind of bad one; the statuses seen."""
    seen: set[int] = set()
    limits = httpx2.Limits(max_connections=64)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=30) as client:

        async def call(content: bytes) -> None:
            seen.add((await client.post("/predict", content=content)).status_code)

        async def good(first: int) -> None:
            for turn in range(10_000):
                if asyncio.get_running_loop().time() > end:
                    return
                await call(body(*(7 + (first * 31 + turn * 17 + more * 53) % 200 for more in range(8))))

        end = asyncio.get_running_loop().time() + LOAD_SECONDS
        loads = [asyncio.create_task(good(first)) for first in range(6)]
        while asyncio.get_running_loop().time() < end:
            huge = [call(body(*[1000] * 15)) for _ in range(6)]
            await asyncio.gather(call(b"{"), call(body(5, model="none")), call(body(5, timeout_ms=0.01)), *huge)
        await asyncio.gather(*loads)
    return seen


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that has watched a loaded service."""
    port, folder = free_port(), tmp_path_factory.mktemp("prometheus")
    models, options = monitored(folder)
    command = serve_command(models, port, {**options, "max_queue_cost_steps": "40000"})
    with running(command, port), prometheus(folder, free_port(), f"127.0.0.1:{port}") as url:
        seen = asyncio.run(_load(f"http://127.0.0.1:{port}"))
        assert {200, 404, 422, 429, 504} <= seen
        yield url


OF_A_SLOW_MACHINE = {"LengthwiseSaturated", "LengthwiseQueueNearBound"} | {
    f"Lengthwise{what}Burn{speed}" for what in ("Availability", "Latency") for speed in ("Fast", "Slow")
}
"""Alerts that are right where a load is more than a machine can do, as it may be where this test runs."""


def test_a_healthy_service_under_load_alerts_nobody(tmp_path: Path) -> None:
    port = free_port()
    target = f"127.0.0.1:{port}"
    command = serve_command(None, port, {"workers": "1"})  # each measures for itself what padding costs
    with running(command, port), prometheus(tmp_path, free_port(), target) as url:
        load = ["--lengths", "lognormal:50,0.7", "--concurrency", "32", "--no-check"]
        run([sys.executable, "-m", "lengthwise", "bench", f"http://{target}", *load, "--duration-seconds", "15"])
        assert sum(value(url, 'lengthwise_steps_total{kind="padding"}')) > 0
        if recurrent_kernels.INSTRUCTION_SETS:
            # By the measured cost of a padding step, nearly none; 0.68 of all steps would be computed without kernels.
            [share] = value(url, "lengthwise:computed_padding_share:rate15m")
            [model] = httpx2.get(f"http://{target}/healthz").json()["models"]
            [padding] = value(url, 'sum(lengthwise_steps_total{kind="padding"}) / sum(lengthwise_steps_total)')
            [computed] = value(url, "sum(lengthwise_computed_padding_steps_total) / sum(lengthwise_steps_total)")
            assert computed == pytest.approx(model["padding_cost"] * padding)
            assert share < 0.25
        alerts = {one["metric"]["alertname"] for one in asked(url, "query", {"query": "ALERTS"})["result"]}
        assert alerts <= OF_A_SLOW_MACHINE


def test_the_target_is_up(live: str) -> None:
    (target,) = asked(live, "targets", {"state": "active"})["activeTargets"]
    assert (target["labels"]["job"], target["health"], target["lastError"]) == ("lengthwise", "up", "")


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_of_the_contract_is_there(live: str, metric: str) -> None:
    assert found(asked(live, "query", {"query": f"lengthwise_{metric}"})["result"])


def test_every_rule_evaluates(live: str) -> None:
    rules = [rule for group in asked(live, "rules", {})["groups"] for rule in group["rules"]]
    shipped = [
        rule.get("record") or rule.get("alert")
        for file in RULES.iterdir()
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    assert sorted(rule["name"] for rule in rules) == sorted(shipped)
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}


def test_every_recorded_series_has_a_value(live: str) -> None:
    rules = [
        rule for group in asked(live, "rules", {})["groups"] for rule in group["rules"] if rule["type"] == "recording"
    ]
    empty = [rule["name"] for rule in rules if not found(asked(live, "query", {"query": rule["name"]})["result"])]
    assert empty == []


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panels_queries_return_data(live: str, panel: dict[str, list[dict[str, str]]]) -> None:
    filled = loaded(DEPLOY / "grafana" / "picture.py").filled
    for target in panel["targets"]:
        query = filled(target["expr"], 30)
        assert found(asked(live, "query", {"query": query})["result"]), query


def test_every_curve_has_what_its_legend_names(live: str) -> None:
    picture = loaded(DEPLOY / "grafana" / "picture.py")
    for panel in PANELS:
        for target in panel["targets"]:
            for one in asked(live, "query", {"query": picture.filled(target["expr"], 30)})["result"]:
                assert "{{" not in picture.label(target["legendFormat"], one["metric"]), panel["title"]


@pytest.mark.parametrize("rule", range(2))
def test_a_query_of_prometheus_adapter_gives_one_value_a_pod(live: str, rule: int) -> None:
    of_adapter = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text())["rules"]["custom"][rule]
    assert found(asked(live, "query", {"query": of_adapter["seriesQuery"]})["result"])
    query = of_adapter["metricsQuery"]
    for placeholder, text in {
        "<<.Series>>": of_adapter["seriesQuery"].partition("{")[0],
        "<<.LabelMatchers>>": 'namespace="demo",pod="lengthwise-0"',
        "<<.GroupBy>>": "pod",
    }.items():
        query = query.replace(placeholder, text)
    (result,) = asked(live, "query", {"query": query})["result"]
    assert result["metric"] == {"pod": "lengthwise-0"}
    assert found([result])


def test_the_queries_of_keda_give_one_value_each(live: str) -> None:
    chart = chart_engine().Chart.load(str(DEPLOY / "helm" / "lengthwise"))
    made = chart.render({"autoscaling": {"kind": "keda"}}, name="lengthwise", namespace="default")
    (scaled,) = objects(made["lengthwise/templates/scaledobject.yaml"])
    asking = [one for one in scaled["spec"]["triggers"] if one["type"] == "prometheus"]
    assert len(asking) == 2
    for trigger in asking:
        (result,) = asked(live, "query", {"query": trigger["metadata"]["query"]})["result"]
        assert found([result])


def test_the_picture_of_the_docs_can_be_drawn(live: str, tmp_path: Path) -> None:
    picture = tmp_path / "dashboard.png"
    loaded(DEPLOY / "grafana" / "picture.py").draw(live, picture, seconds=30, interval_seconds=5)
    assert picture.read_bytes().startswith(b"\x89PNG")
