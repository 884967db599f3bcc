"""A release: its version, what is in it, and what users of an index, and of the release before, get."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lengthwise.bench.launch import free_port, running
from tests.deploy.live import started, until
from tests.deploy.tools import DEPLOY, ROOT, loaded, program, run
from tests.support.waiting import answers

BODY = (ROOT / "examples" / "japanese-vowels.json").read_bytes()
release = loaded(DEPLOY / "release.py")


def copied(folder: Path) -> Any:
    """The module, of a checkout of its own in `folder`."""
    files = subprocess.run(["git", "ls-files", *release.PAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    run(["git", "init", "--quiet"], cwd=folder)
    run(["git", "add", "--all"], cwd=folder)
    module = loaded(DEPLOY / "release.py")
    module.ROOT, module.CHANGELOG = folder, folder / "CHANGELOG.md"
    return module


def test_every_file_names_the_one_version() -> None:
    named = {str(file.relative_to(ROOT)) for file in release.mentions(release.current())}
    assert {
        *("pyproject.toml", "CITATION.cff", "README.md", "docker-compose.yml", "docs/api.md", "docs/deployment.md"),
        *("deploy/helm/lengthwise/Chart.yaml", "deploy/kubernetes/lengthwise.yaml", "docs/add-the-check.md"),
    } <= named


@pytest.mark.process
def test_the_next_version_is_written_everywhere_and_cuts_the_changelog(tmp_path: Path) -> None:
    module = copied(tmp_path)
    before = module.current()
    changes = module.section(module.CHANGELOG.read_text(), "Unreleased")
    count = len([*module.mentions(before)])
    module.write_version("9.1.0")
    assert module.current() == "9.1.0"
    assert [*module.mentions(before)] == []
    tags = (line for name in ("docs/add-the-check.md", "README.md") for line in (tmp_path / name).read_text().split())
    assert [word for word in tags if f"v{before}" in word] == []
    assert len([*module.mentions("9.1.0")]) == count
    assert module.check("v9.1.0") == changes
    assert module.section(module.CHANGELOG.read_text(), "Unreleased") is None


@pytest.mark.sampled(3)
@pytest.mark.process
@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("0.0.1", "above"),
        ("1.2", "three numbers"),
        ("v9.0.0", "three numbers"),
        ("", "three"),
        ("9.00.1", "three"),
        ("9.0.\u0663", "three"),
    ],
)
def test_a_version_that_is_no_next_one_is_refused(version: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=says):
        copied(tmp_path).write_version(version)


@pytest.mark.process
@pytest.mark.parametrize("words", [[], ["lst", "v0.2.0"]])
def test_a_command_that_is_none_is_said(words: list[str]) -> None:
    done = subprocess.run([sys.executable, ROOT / "deploy" / "release.py", *words], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: the commands are version, check and list")


@pytest.mark.process
def test_nothing_is_released_without_an_entry(tmp_path: Path) -> None:
    module = copied(tmp_path)
    module.write_version("9.1.0")
    with pytest.raises(SystemExit, match="nothing to release"):
        module.write_version("9.2.0")


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("v9.9.9", "is not of the version"),
        ("nothing", "is not of the version"),
        (f"v{release.current()} x", "is not of"),
    ],
)
def test_a_tag_of_another_version_is_refused(tag: str, says: str) -> None:
    with pytest.raises(SystemExit, match=says):
        release.check(tag)


@pytest.mark.process
def test_a_version_within_another_one_is_not_replaced(tmp_path: Path) -> None:
    module = copied(tmp_path)
    before = module.current()
    others = f"version: 1{before}\nversion: {before}.1\nversion: {before}0\nlibrary:{before}\n"
    (tmp_path / "others.yml").write_text(others)
    (tmp_path / "one.yml").write_bytes(f"version: {before}\r\n".encode())
    run(["git", "add", "--all"], cwd=tmp_path)
    module.CHANGELOG.write_bytes(module.CHANGELOG.read_bytes().replace(b"\n", b"\r\n"))
    module.write_version("9.1.0")
    assert (tmp_path / "others.yml").read_text() == others
    assert (tmp_path / "one.yml").read_text() == "version: 9.1.0\n"
    assert module.check("v9.1.0")


@pytest.mark.process
def test_a_heading_that_cannot_be_cut_is_no_release(tmp_path: Path) -> None:
    module = copied(tmp_path)
    module.CHANGELOG.write_text(module.CHANGELOG.read_text().replace("## [Unreleased]", "## [Unreleased] - soon"))
    before = module.current()
    with pytest.raises(SystemExit, match="nothing to release"):
        module.write_version("9.1.0")
    assert module.current() == before


@pytest.mark.parametrize(
    "name", ["lengthwise-0.0.1-py3-none-any.whl", "lengthwise-0.0.1.tar.gz", "lengthwise-0.0.1.tgz"]
)
def test_a_file_of_another_version_is_not_published(name: str, tmp_path: Path) -> None:
    version = release.current()
    own = ["-cp311-abi3-linux_x86_64.whl", "-py3-none-any.whl", ".tar.gz", ".tgz"]
    for file in (*(f"lengthwise-{version}{end}" for end in own), "site.zip", "sbom.json"):
        (tmp_path / file).write_bytes(b"")
    assert len(release.listed(tmp_path)) == 6
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SystemExit, match=f"of another version, which would be published: remove {re.escape(name)}"):
        release.listed(tmp_path)


def test_a_release_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="lacks the source, a wheel with the modules in C"):
        release.listed(tmp_path)


@pytest.mark.deploy
def test_a_dry_run_makes_every_file_and_publishes_nothing(tmp_path: Path) -> None:
    version = release.current()
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    said = run(
        ["make", "release", f"TAG=v{version}", "DRY_RUN=1", "SITE_OPTIONS=-D nb_execution_mode=off"], seconds=900
    )
    assert "dry run; what is left to do:" in said
    assert f"gh release create v{version} --notes-file dist/notes.md" in said
    sums = (ROOT / "dist" / "SHA256SUMS").read_text()
    for name in (f"lengthwise-{version}.tar.gz", f"lengthwise-{version}-py3-none-any.whl", "site.zip"):
        assert name in sums
    run(["sha256sum", "--check", "SHA256SUMS"], cwd=ROOT / "dist")


@contextmanager
def index(wheels: list[Path], folder: Path) -> Iterator[str]:
    """A package index with these files, which twine has uploaded; the address of its list."""
    server = program("pypi-server", "pip install pypiserver")
    port = free_port()
    (folder / "files").mkdir()
    command = [server, "run", "-p", str(port), "-i", "127.0.0.1", "-P", ".", "-a", ".", str(folder / "files")]
    with started(command, folder / "index.log"):
        until("the index answers", 30, lambda: answers(port, "/simple/"))
        upload = ["-m", "twine", "upload", "--non-interactive", "--repository-url", f"http://127.0.0.1:{port}/"]
        run([sys.executable, *upload, "-u", "", "-p", "", *wheels], seconds=100)
        yield f"http://127.0.0.1:{port}/simple/"


def installed(folder: Path, *wanted: str) -> Path:
    """The command of an environment that has nothing else."""
    run([sys.executable, "-m", "venv", folder])
    run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted], seconds=500, cwd=folder)
    return folder / "bin" / "lengthwise"


def labels(port: int) -> list[str]:
    answer = httpx2.post(f"http://127.0.0.1:{port}/predict", content=BODY)
    return [one["label"] for one in json.loads(answer.content)["predictions"]]


@pytest.mark.deploy
def test_what_an_index_has_installs_by_name_and_answers_the_call_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    wheels = loaded(DEPLOY / "wheels.py").make(tmp_path / "dist")
    with index(wheels, tmp_path) as address:
        command = installed(tmp_path / "venv", "--extra-index-url", address, "lengthwise[serve,cpu]")
    port = free_port()
    with running([str(command), "serve", "--port", str(port)], port):
        assert labels(port) == ["1", "3", "6"]


def last_release() -> str:
    """The commit that cut the newest release, but for the current commit."""
    git = ["git", "-C", str(ROOT)]
    head = run([*git, "rev-parse", "HEAD"]).strip()
    for version in re.findall(r"^## \[(\d[\d.]*)\]", release.CHANGELOG.read_text(), re.MULTILINE):
        found = run([*git, "log", "--format=%H", f'-Sversion = "{version}"', "--", "pyproject.toml"]).split()
        if found and found[0] != head:
            return found[0]
    pytest.skip("this checkout has no history")


@pytest.mark.deploy
def test_an_upgrade_keeps_a_repository_of_models_with_its_kernels_and_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LENGTHWISE_WORKERS", raising=False)  # that of the tests; the release before may not know it
    git, commit = ["git", "-C", str(ROOT)], last_release()
    run([*git, "worktree", "add", "--detach", tmp_path / "before", commit])
    try:
        before = installed(tmp_path / "old", f"lengthwise[serve,cpu,parquet] @ file://{tmp_path / 'before'}")
    finally:
        run([*git, "worktree", "remove", "--force", tmp_path / "before"])
    models, records = tmp_path / "models", tmp_path / "records"
    shutil.copytree(ROOT / "service" / "lengthwise" / "models", models)
    after = installed(tmp_path / "new", f"lengthwise[serve,cpu,parquet] @ file://{ROOT}")
    seen: list[Any] = []
    for command in (before, after):
        port = free_port()
        options = ["--record", str(records), "--record-share", "1"]
        with running([str(command), "serve", str(models), "--port", str(port), *options], port):
            seen.append((labels(port), httpx2.get(f"http://127.0.0.1:{port}/healthz").json()["models"][0]["version"]))
        kernels = [*models.rglob("kernels.json")]
        seen.append([(file.name, file.read_text()) for file in kernels])
    assert seen[0] == seen[2]  # the same answers of the same version
    assert seen[1] == seen[3]  # with the same choice of kernels
    rows = 0
    for number, file in enumerate(
        sorted(records.rglob("*.parquet"))
    ):  # of both: the new one reads what the old one wrote
        scored = tmp_path / f"{number}.jsonl"
        run([after, "score", file, scored, "--model", models / "japanese-vowels" / "1"], seconds=100)
        rows += len(scored.read_text().splitlines())
    assert rows == 6
