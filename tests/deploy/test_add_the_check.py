"""What other repositories take from this one: the hook of pre-commit and the action of GitHub, by running them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import ROOT, program, run
from tests.support.documents import blocks
from tests.support.parts import MODULE

ACTION = ROOT / "action.yml"
HOOKS = ROOT / ".pre-commit-hooks.yaml"
LIST = '[tool.lengthwise.check]\nmax_length = 20\ntargets = ["nets.py:Mean", "nets.py:Leaking"]\n'
LEAKING = "\n\nclass Leaking(Mean):\n    def forward(self, x, lengths):\n        return self.out(x.mean(1))\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Another repository, with a module that is sound and one that leaks."""
    (tmp_path / "pyproject.toml").write_text(LIST)
    (tmp_path / "nets.py").write_text(MODULE + LEAKING)
    return tmp_path


def steps() -> list[dict[str, Any]]:
    return yaml.safe_load(ACTION.read_text())["runs"]["steps"]


def run_step(step: dict[str, Any], folder: Path, given: dict[str, str], **variables: str) -> tuple[int, str]:
    """Runs a step as GitHub does: its exit code and what it prints."""
    inputs = {name: one["default"] for name, one in yaml.safe_load(ACTION.read_text())["inputs"].items()} | given

    def filled(text: str) -> str:
        for name, value in inputs.items():
            text = text.replace(f"${{{{ inputs.{name} }}}}", value)
        assert "${{" not in text
        return text

    own = {name: filled(value) for name, value in step["env"].items()}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=folder / filled(step.get("working-directory", ".")),
        env=os.environ | variables | own,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_action_is_valid_for_github_and_puts_no_input_into_its_scripts() -> None:
    run(
        [
            program("check-jsonschema", "pip install check-jsonschema"),
            "--builtin-schema",
            "vendor.github-actions",
            ACTION,
        ]
    )
    assert [step["name"] for step in steps() if "${{" in step["run"]] == []


@pytest.mark.long
@pytest.mark.process
def test_the_action_checks_the_listed_targets_and_annotates_the_lines(repository: Path) -> None:
    code, printed = run_step(steps()[-1], repository, {"python": sys.executable})
    assert code == 1
    line = (MODULE + LEAKING).splitlines().index("        return self.out(x.mean(1))") + 1
    assert f"::error file=nets.py,line={line},title=LW201 mean-over-padding::" in printed


@pytest.mark.long
@pytest.mark.process
def test_the_action_takes_arguments_and_a_folder(repository: Path) -> None:
    (repository / "inner").mkdir()
    given = {
        "python": sys.executable,
        "arguments": "../nets.py:Mean --max-length 20 --sarif leaks.sarif",
        "working-directory": "inner",
    }
    code, printed = run_step(steps()[-1], repository, given)
    assert code == 0, printed
    assert (repository / "inner" / "leaks.sarif").is_file()


@pytest.mark.long
def test_the_action_installs_lengthwise_beside_the_users_torch(repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "action"
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in ("service", "model_export"):
        shutil.copytree(ROOT / name, source / name, ignore=left_out)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    python = environment / "bin" / "python"
    # What is needed to build and to run stands beside: no index is asked.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "GITHUB_ACTION_PATH": str(source)}
    install, check = steps()
    code, printed = run_step(install, repository, {"python": str(python)}, **offline)
    assert code == 0, printed
    assert (site / "lengthwise_export").is_dir()
    code, printed = run_step(check, repository, {"python": str(python)})
    assert (code, "title=LW201" in printed) == (1, True), printed


@pytest.mark.long
@pytest.mark.process
def test_the_hook_checks_the_targets_that_changed_files_can_change(repository: Path) -> None:
    (hook,) = yaml.safe_load(HOOKS.read_text())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for file, code in (("nets.py", 1), ("README.md", 0)):
        words = [*shlex.split(hook["entry"]), file]
        done = subprocess.run(words, cwd=repository, env=os.environ | {"PATH": path}, capture_output=True, check=False)
        assert done.returncode == code, done.stdout


def test_the_page_names_the_hook_and_the_inputs_that_there_are() -> None:
    texts = [block.text for block in blocks(ROOT / "docs" / "add-the-check.md") if block.language == "yaml"]
    hooks, workflow = map(yaml.safe_load, texts)
    known = {hook["id"] for hook in yaml.safe_load(HOOKS.read_text())}
    assert {hook["id"] for repository in hooks["repos"] for hook in repository["hooks"]} <= known
    (ours,) = [step for step in workflow["jobs"]["padding"]["steps"] if "lengthwise" in step.get("uses", "")]
    assert set(ours["with"]) <= set(yaml.safe_load(ACTION.read_text())["inputs"])
