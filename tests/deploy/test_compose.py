"""docker-compose.yml by its schema, and against the files that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.deploy.tools import DEPLOY, ROOT, program, run

FILES = (ROOT / "docker-compose.yml", DEPLOY / "compose.gpu.yml")
SCHEMA = "pip install check-jsonschema"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_schema_of_compose_accepts_it(file: Path) -> None:
    run([program("check-jsonschema", SCHEMA), "--builtin-schema", "vendor.compose-spec", file])


def test_the_schema_refuses_a_misspelt_key(tmp_path: Path) -> None:
    file = tmp_path / "docker-compose.yml"
    file.write_text(FILES[0].read_text().replace("read_only:", "readonly:"))
    said = run([program("check-jsonschema", SCHEMA), "--builtin-schema", "vendor.compose-spec", file], good=(1,))
    assert "readonly" in said


def test_every_file_that_is_mounted_exists() -> None:
    services = yaml.safe_load(FILES[0].read_text())["services"]
    mounted = [line.split(":")[0] for service in services.values() for line in service.get("volumes", [])]
    assert [path for path in mounted if path.startswith(".") and not (ROOT / path).exists()] == []


def test_the_default_demo_has_no_load_and_the_profile_has() -> None:
    services = yaml.safe_load(FILES[0].read_text())["services"]
    assert {name for name, service in services.items() if not service.get("profiles")} == {
        "lengthwise",
        "prometheus",
        "grafana",
    }
    assert services["load"]["profiles"] == ["load"]


def test_the_service_has_longer_to_stop_than_to_drain() -> None:
    service = yaml.safe_load(FILES[0].read_text())["services"]["lengthwise"]
    assert int(service["stop_grace_period"].removesuffix("s")) > 30
