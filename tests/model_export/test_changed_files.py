"""`lengthwise check --changed FILE...`: of the listed targets, those that depend on the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lengthwise_export.interface.changed_files import depending_targets
from lengthwise_export.interface.project import Project
from tests.support.project_files import LEAKING, run_check

LIST = """
[tool.lengthwise.check]
targets = ["models/tagger.py:make", "zoo.nets.deep:make", "graph.onnx", "published", "broken.py:make",
           {target = "plain.py:make", checkpoint = "weights.pt"}]
"""
FILES = {
    "pyproject.toml": LIST,
    "models/tagger.py": "import layers\nfrom zoo import heads\ndef make(): ...\n",
    "models/layers.py": "def f():\n    import shared.inner\n",
    "shared/inner.py": "",  # a package without __init__.py
    "src/zoo/__init__.py": "",
    "src/zoo/heads.py": "import torch\nif TYPE_CHECKING:\n    import zoo.typed\nelse:\n    import zoo.late\n",
    "src/zoo/late.py": "",
    "src/zoo/typed.py": "",  # only a type checker reads it
    "src/zoo/nets/__init__.py": "",
    "src/zoo/nets/deep.py": "from . import parts\nfrom ..heads import Head\n",
    "src/zoo/nets/parts.py": "from .deep import make\n",  # a circle
    "graph.onnx": "",
    "published/model.json": "",
    "broken.py": "def make(:\n",
    "plain.py": "import math\n",
    "weights.pt": "",
    "README.md": "",
    "tests/test_tagger.py": "import tagger\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "targets"),
    [
        (["models/tagger.py"], "tagger"),
        (["models/layers.py"], "tagger"),
        (["shared/inner.py"], "tagger"),
        (["src/zoo/heads.py"], "tagger deep"),
        (["src/zoo/late.py"], "tagger deep"),
        (["src/zoo/typed.py"], ""),
        (["src/zoo/__init__.py"], "tagger deep"),
        (["src/zoo/nets/parts.py"], "deep"),
        (["graph.onnx"], "graph"),
        (["published/model.json"], "published"),
        (["weights.pt"], "plain"),
        (["plain.py", "graph.onnx"], "graph plain"),
        (["README.md", "tests/test_tagger.py", "setup.py"], ""),
        (["pyproject.toml"], "tagger deep graph published broken plain"),
        ([], ""),
    ],
    ids=str,
)
def test_the_targets_that_depend_on_changed_files(folder: Path, changed: list[str], targets: str) -> None:
    depending = depending_targets(Project.of(folder), changed, folder)
    # What cannot be parsed may import any module.
    expected = {*targets.split(), *(["broken"] if any(".py" in name for name in changed) else [])}
    assert {
        name
        for name in ("tagger", "deep", "graph", "published", "broken", "plain")
        if any(name in one.target for one in depending)
    } == expected


def test_names_of_files_are_relative_to_the_working_directory(folder: Path) -> None:
    (folder / "broken.py").write_text("")
    depending = depending_targets(Project.of(folder / "models"), ["layers.py"], folder / "models")
    assert [one.target for one in depending] == ["models/tagger.py:make"]


def test_the_command_checks_only_what_depends_on_the_files(folder: Path) -> None:
    (folder / "plain.py").write_text(LEAKING)
    (folder / "pyproject.toml").write_text(
        '[tool.lengthwise.check]\nmax_length = 20\ntargets = ["plain.py:Leaking", "models/tagger.py:make"]\n'
    )
    result = run_check("--changed", "plain.py", "README.md")
    assert (result.exit_code, "plain.py:Leaking" in result.stdout, "tagger" in result.output) == (1, True, False)
    for nothing in (("README.md",), ()):
        result = run_check("--changed", *nothing)
        assert (result.exit_code, result.stdout) == (0, "")
        assert "nothing to check: no target of pyproject.toml depends on these files" in result.stderr
    assert json.loads(run_check("--changed", "README.md", "--json").stdout) == []


def test_changed_files_without_a_list_are_a_wrong_call(folder: Path) -> None:
    (folder / "pyproject.toml").unlink()
    result = run_check("--changed", "plain.py")
    assert result.exit_code == 2
    assert "[tool.lengthwise.check]" in result.stderr
