"""What `docs/observability.md` says is what there is: its metrics, the fields of its example line, its variables."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lengthwise.commands.logs import JsonLines
from tests.support.numpy_models import manifest, model, serving

PAGE = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()


def table(heading: str) -> set[str]:
    """The names in the first column of the first table below a heading."""
    rows = PAGE.partition(f"\n{heading}\n")[2].partition("\n|---|")[2].partition("\n\n")[0]
    cells = [line.split(" | ")[0] for line in rows.splitlines()[1:]]
    return {name.partition("{")[0] for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


async def test_its_metrics_are_those_that_there_are(tmp_path: Path) -> None:
    monitored: dict[str, Any] = {"record": tmp_path, "verify_share": 1, "shadow": "sums/2"}
    async with serving(model(manifest()), triton_metrics=True, **monitored) as service:
        await service.predict({"sequences": [[[1, 3]]]})
        families = list(text_string_to_metric_families(service.serving.metrics.text().decode()))
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    own = {name.removeprefix("lengthwise_") for name in names if name.startswith("lengthwise_")}
    assert table("## Metrics") == own
    of_the_process = {name for name in names if name.startswith(("process_", "python_"))}  # prometheus-client's own
    assert set(re.findall(r"`(nv_\w+)`", PAGE)) == names - {f"lengthwise_{name}" for name in own} - of_the_process


async def test_its_line_of_the_access_log_has_the_fields_of_a_real_one(caplog: pytest.LogCaptureFixture) -> None:
    shown = json.loads(re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)[0])
    caplog.set_level(logging.INFO, "lengthwise.access")
    async with serving(model(manifest()), access_log=1) as service:
        await service.predict({"sequences": [[[1, 3], [1, 3]], [[1, 3]]]}, x_request_id=shown["request_id"])
    (record,) = (record for record in caplog.records if record.name == "lengthwise.access")
    real = json.loads(JsonLines().format(record))
    varying = {"time", "message", "duration_ms", "model"}
    assert list(real) == list(shown)
    assert {name: real[name] for name in real.keys() - varying} == {
        name: shown[name] for name in shown.keys() - varying
    }
    in_both = [re.sub(r"(duration_ms|model)=\S+", r"\1", line["message"]) for line in (real, shown)]
    assert in_both[0] == in_both[1]
    assert table("## Logs") - {"reason", "trace_id"} == real.keys() - {"time", "level", "logger", "message"}
