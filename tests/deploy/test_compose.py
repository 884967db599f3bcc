"""docker-compose.yml by its schema, against the files that it names, and brought up."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lengthwise.commands.cli import main
from tests.deploy.container import BASE, engine
from tests.deploy.tools import APT, DEPLOY, PIP, ROOT, program, run

FILES = (ROOT / "docker-compose.yml", DEPLOY / "compose.gpu.yml")
SERVICES = yaml.safe_load(FILES[0].read_text())["services"]
SCHEMA = "pip install check-jsonschema"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_schema_of_compose_accepts_it(file: Path) -> None:
    run([program("check-jsonschema", SCHEMA), "--builtin-schema", "vendor.compose-spec", file])


def test_the_schema_refuses_a_misspelt_key(tmp_path: Path) -> None:
    file = tmp_path / "docker-compose.yml"
    file.write_text(FILES[0].read_text().replace("read_only:", "readonly:"))
    said = run([program("check-jsonschema", SCHEMA), "--builtin-schema", "vendor.compose-spec", file], good=(1,))
    assert "readonly" in said


def test_without_being_told_otherwise_no_port_is_open_to_other_machines() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 4
    addresses = {re.sub(r"\$\{\w+:-(.*?)\}", r"\1", port).rpartition(":")[0].rpartition(":")[0] for port in published}
    assert addresses == {"127.0.0.1"}


def test_every_file_that_is_mounted_exists() -> None:
    mounted = [line.split(":")[0] for service in SERVICES.values() for line in service.get("volumes", [])]
    assert [path for path in mounted if path.startswith(".") and not (ROOT / path).exists()] == []


def test_the_default_demo_has_no_load_and_the_profile_has() -> None:
    without = {name for name, service in SERVICES.items() if not service.get("profiles")}
    assert without == {"lengthwise", "prometheus", "grafana"}
    assert SERVICES["load"]["profiles"] == ["load"]


def test_the_load_has_options_that_bench_takes() -> None:
    assert CliRunner().invoke(main, [*SERVICES["load"]["command"], "--help"]).exit_code == 0


def test_the_service_has_longer_to_stop_than_to_drain() -> None:
    assert int(SERVICES["lengthwise"]["stop_grace_period"].removesuffix("s")) > 30


PROMETHEUS_STAND_IN = f"""
FROM {BASE}
COPY prometheus /bin/prometheus
RUN mkdir /prometheus && chown 65534:65534 /prometheus
USER 65534
ENTRYPOINT ["/bin/prometheus"]
"""


@pytest.mark.deploy
def test_service_and_prometheus_come_up_together(tmp_path: Path) -> None:
    made = engine()
    made.make_image()
    # No registry is at hand: the system's Prometheus under the name that the file gives.
    shutil.copy(program("prometheus", APT), tmp_path)
    program("iptables", APT)  # podman's network asks for it, and waits for ever without
    program("podman-compose", PIP)  # a skip in the process below would be a failure here
    (tmp_path / "Dockerfile").write_text(PROMETHEUS_STAND_IN)
    tag = f"docker.io/{SERVICES['prometheus']['image']}"
    run([*made.buildah, "bud", "--isolation", "chroot", "--pull-never", "--tag", tag, str(tmp_path)], seconds=200)
    seen = made.alone(tmp_path, "tests.deploy.composed")
    assert (seen["predict"], seen["instance"]) == (200, "lengthwise:9000")
    assert {"LengthwiseNotReady", "lengthwise:computed_padding_share:rate15m"} <= set(seen["rules"])
