"""Rules, configuration and dashboard, without a running Prometheus."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from lengthwise.monitoring.monitoring import Monitoring
from lengthwise.settings import Settings
from lengthwise.telemetry.families import Family
from lengthwise.telemetry.metrics import Bounds, Metrics
from tests.deploy.tools import DEPLOY, ROOT, RULES, as_literal, loaded, node_packages, program, run, typescript
from tests.support.used_metrics import page_of

CASES = ROOT / "tests" / "deploy" / "rules_test.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.py"
PROMETHEUS = "apt-get install prometheus"


def _rules(kind: str) -> dict[str, dict[str, Any]]:
    groups = [group for file in RULES.iterdir() for group in yaml.safe_load(file.read_text())["groups"]]
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


def _exported() -> set[str]:
    with tempfile.TemporaryDirectory() as folder:
        options = Settings(record=Path(folder), verify_share=1)
        monitoring = Monitoring(options, lambda: True)
        restarts = Family("counter", "largest", "worker_restarts", "As `Serving` has it.", (), [((), 0)])
        metrics = Metrics(dict, lambda: Bounds(1, 1, 0, 0, 1), lambda: [*monitoring.families(), restarts])
        metrics.model("m", "1", {"provider": "p", "digest": "d"})
        return set(re.findall(r"^# TYPE (lengthwise_\S+) ", page_of(metrics).decode(), re.MULTILINE))


def test_promtool_accepts_rules_and_configuration() -> None:
    promtool = program("promtool", PROMETHEUS)
    run([promtool, "check", "rules", *sorted(RULES.iterdir())])
    run([promtool, "check", "config", "--syntax-only", DEPLOY / "prometheus" / "prometheus.yml"])


@pytest.mark.long
def test_every_alert_fires_where_it_should_and_is_silent_where_it_should_not() -> None:
    run([program("promtool", PROMETHEUS), "test", "rules", CASES])


def test_every_alert_has_a_case_that_fires_and_one_that_is_silent() -> None:
    cases = [case for group in yaml.safe_load(CASES.read_text())["tests"] for case in group["alert_rule_test"]]
    alerts = set(_rules("alert"))
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_every_alert_has_its_section_in_the_runbook() -> None:
    sections = re.findall(r"^## (\w+)$(.*?)(?=^## |\Z)", (ROOT / "docs" / "runbook.md").read_text(), re.M | re.S)
    assert {name for name, _ in sections} == set(_rules("alert"))
    for _, text in sections:
        assert all(part in text for part in ("**Means.**", "**Look at.**", "**Do.**"))
    for name, rule in _rules("alert").items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"


def _queried(text: str) -> set[str]:
    found = re.findall(r"\blengthwise_[a-z_]+", text)
    return {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in found}


@pytest.mark.parametrize(
    "file", [*sorted(RULES.iterdir()), DEPLOY / "prometheus" / "adapter.yaml"], ids=lambda f: f.name
)
def test_rules_ask_only_for_metrics_that_the_service_has(file: Path) -> None:
    exported = {re.sub(r"_total$", "", name) for name in _exported()}
    derived = {"lengthwise_runners_busy_share"}  # the name under which the adapter serves a quotient
    assert _queried(file.read_text()) <= exported | derived


def test_the_dashboard_is_what_its_program_makes() -> None:
    dashboard = loaded(DASHBOARD)
    assert dashboard.FILE.read_text() == dashboard.text(), "make dashboard"


def test_the_dashboard_asks_for_every_metric_of_the_service() -> None:
    text = (DEPLOY / "grafana" / "dashboards" / "lengthwise.json").read_text()
    assert _queried(text) == {re.sub(r"_total$", "", name) for name in _exported()}


def test_the_dashboard_has_the_shape_that_grafana_declares(tmp_path: Path) -> None:
    node_packages()
    made = json.loads((DEPLOY / "grafana" / "dashboards" / "lengthwise.json").read_text())
    declared = (
        'import type {{ Dashboard }} from "@grafana/schema";\nconst d = {} satisfies Partial<Dashboard>;\nvoid d;\n'
    )
    assert typescript(declared.format(as_literal(made)), tmp_path) == ""
    made["pannels"] = made.pop("panels")
    (tmp_path / "misspelt").mkdir()
    assert "pannels" in typescript(declared.format(as_literal(made)), tmp_path / "misspelt")


def test_grafana_finds_dashboard_and_prometheus_where_compose_puts_them() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounted = {line.split(":")[1] for line in compose["grafana"]["volumes"]}
    provider = yaml.safe_load((provisioning / "dashboards" / "lengthwise.yml").read_text())["providers"][0]
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert {provider["options"]["path"], "/etc/grafana/provisioning"} <= mounted
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
