"""The blocks of docs/deployment.md run as they are printed, as far as a machine without a cluster can run them."""

import itertools
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from lengthwise.bench.launch import free_port, running
from lengthwise.commands.cli import main
from lengthwise.settings import Settings
from tests.deploy.container import engine
from tests.deploy.tools import CHART, ROOT, chart_engine, objects, run

DOCUMENT = (ROOT / "docs" / "deployment.md").read_text()
BLOCKS = re.findall(r"^```(sh|yaml)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


LINES = "\n".join(text for kind, text in BLOCKS if kind == "sh").replace("\\\n", " ").splitlines()
PRINTED = [words for line in LINES if (words := shlex.split(line, comments=True))]
"""The words of every printed command, without what a comment says."""


def _commands(program: str) -> list[list[str]]:
    """The printed commands of a program."""
    return [words for words in PRINTED if words[0] == program]


def _options(words: list[str], name: str) -> list[str]:
    return [after for word, after in itertools.pairwise(words) if word == name]


def test_every_printed_command_is_of_a_program_that_is_tried_here() -> None:
    assert {words[0] for words in PRINTED} == {"make", "docker", "helm", "kubectl", "pip"}


def _releases() -> Iterator[dict[str, Any]]:
    """The chart's objects after each printed command of Helm; an upgrade keeps the values before it."""
    helm, files = chart_engine(), _value_files()
    values: dict[str, Any] = {}
    for words in _commands("helm"):
        if words[1] == "test":
            continue
        assert words[2:4] == ["lengthwise", "deploy/helm/lengthwise"]
        if "--reuse-values" not in words:
            values = {}
        chart = helm.Chart.load(str(CHART))
        for file in _options(words, "--values"):
            values = _merged(values, files[file] if file in files else yaml.safe_load((ROOT / file).read_text()))
        for given in _options(words, "--set"):
            values = _merged(values, helm.parse_set_string(given.replace("DIGEST", "0" * 64)))
        made = chart.render(values, name="lengthwise", namespace="default")
        found = [one for name, text in made.items() if name.endswith(".yaml") for one in objects(text)]
        yield {f"{one['kind']}/{one['metadata']['name']}": one for one in found}


def _value_files() -> dict[str, Any]:
    """What a printed block of values is to be called: the name in the text before it."""
    names = re.findall(r"into `(\S+\.yaml)`:\n\n```yaml\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return {name: yaml.safe_load(text) for name, text in names}


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(old[key], value) if isinstance(value, dict) and isinstance(old.get(key), dict) else value
        for key, value in new.items()
    }
    return {**old, **both}


def test_every_printed_release_installs() -> None:
    releases = list(_releases())
    assert len(releases) == len([words for words in _commands("helm") if words[1] != "test"]) >= 5
    for made in releases:
        assert {"Deployment/lengthwise", "HorizontalPodAutoscaler/lengthwise", "ServiceMonitor/lengthwise"} <= set(made)


def _secrets_in(made: Any) -> Iterator[tuple[str, str | None]]:
    """The Secrets that an object names, each with the entry that it reads, where it says one."""
    if isinstance(made, list):
        for one in made:
            yield from _secrets_in(one)
    elif isinstance(made, dict):
        if "secretName" in made:
            yield made["secretName"], None
        if "secretRef" in made:
            yield made["secretRef"]["name"], None
        for key in ("secret", "keySecret", "credentials"):
            if isinstance(made.get(key), dict) and "name" in made[key]:
                yield made[key]["name"], made[key]["key"]
        for one in made.values():
            yield from _secrets_in(one)


def test_every_secret_that_a_release_reads_is_made_by_a_printed_command() -> None:
    made: dict[str, set[str]] = {}
    for words in _commands("kubectl"):
        assert words[1:3] == ["create", "secret"]
        files = {word.removeprefix("--from-file=") for word in words if word.startswith("--from-file=")}
        made[words[4]] = files | ({"tls.crt", "tls.key"} if words[3] == "tls" else set())
    read = {found for release in _releases() for found in _secrets_in(release)}
    assert {name for name, _ in read} == set(made) - {"registry"}
    assert [(name, key) for name, key in read if key is not None and key not in made[name]] == []


@pytest.mark.parametrize("words", _commands("make"), ids=" ".join)
def test_every_printed_target_can_be_made(words: list[str]) -> None:
    run(["make", "--dry-run", *words[1:]])


CONTAINERS = sorted({
    line.partition("#")[0].strip()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    for line in re.findall(r"(?:^|`)(docker run (?:(?!\.\.\.)[^`\n])+)(?:`|$)", page.read_text(), re.MULTILINE)
})  # fmt: skip
"""Every `docker run` that a page prints, without those that leave words out."""


@pytest.mark.parametrize("line", CONTAINERS)
def test_every_container_that_is_printed_is_the_image_with_options_of_the_service(line: str) -> None:
    words = shlex.split(line)
    (image,) = [place for place, word in enumerate(words) if word.startswith("lengthwise:")]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert words[image] in (f"lengthwise:{version}", f"lengthwise:{version}-cuda")
    assert {given.partition("=")[0] for given in _options(words, "-e")} <= {
        f"LENGTHWISE_{name.upper()}" for name in Settings.model_fields
    }
    assert CliRunner().invoke(main, [*words[image + 1 :], "--help"]).exit_code == 0


@pytest.mark.deploy
def test_every_container_that_is_printed_serves(tmp_path: Path) -> None:
    # A GPU is not here; a folder of models may have any name.
    lines = sorted(
        {re.sub(r"-v \S+:/models", "-v ./models:/models", line) for line in CONTAINERS if "--gpus" not in line}
    )
    assert len(lines) >= 3
    models = shutil.copytree(ROOT / "service" / "lengthwise" / "models", tmp_path / "models")
    for path in (models, *models.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    made = engine()
    made.make_image()
    served = made.alone(tmp_path, "tests.deploy.printed_containers", *lines)
    assert [labels for labels in served.values() if labels != ["1", "3", "6"]] == []
    assert len(served) >= 2


def test_every_composition_that_is_printed_is_of_files_and_profiles_that_exist() -> None:
    for words in _commands("docker"):
        if words[1] == "compose":
            assert [file for file in _options(words, "-f") if not (ROOT / file).is_file()] == []
            services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
            assert set(_options(words, "--profile")) <= {
                one for service in services for one in service.get("profiles", [])
            }


@pytest.mark.deploy
def test_the_printed_installation_needs_no_index(tmp_path: Path) -> None:
    (make,) = [words for words in _commands("make") if words[1] == "wheelhouse"]
    (pip,) = [words for words in _commands("pip") if "--no-index" in words]
    run([*make, f"WHEELHOUSE={tmp_path / 'dist' / 'wheelhouse'}"], seconds=580)
    run([sys.executable, "-m", "venv", tmp_path / "venv"])
    nowhere = {"PIP_NO_INDEX": "1", "PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_EXTRA_INDEX_URL": ""}
    run([tmp_path / "venv" / "bin" / "python", "-m", *pip], cwd=tmp_path, env=nowhere, seconds=300)
    port = free_port()
    with running([str(tmp_path / "venv" / "bin" / "lengthwise"), "serve", "--port", str(port)], port):
        pass  # it got ready
