"""`[tool.lengthwise.check]` in pyproject.toml, and a check of all targets that it lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lengthwise.errors import ConfigurationError
from lengthwise_export.interface.project import Project
from tests.support.project_files import LEAKING, run_check
from tests.support.sarif import validate

MODELS = f"""{LEAKING}
class Sound(Leaking):
    def forward(self, x, lengths):
        valid = torch.arange(x.size(1)) < lengths[:, None]
        return self.head(x.masked_fill(~valid[..., None], -torch.inf).amax(1))

class Unknown(Leaking):
    def forward(self, x):
        return self.head(x.mean(1))
"""
TABLE = "[tool.lengthwise.check]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(folder: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    """The targets of a file's text, with the options that are set."""
    (folder / "pyproject.toml").write_bytes(text.encode())
    project = Project.of(folder)
    return [(one.target, one.options.model_dump(exclude_unset=True)) for one in project.targets]


def test_targets_have_their_own_options_and_those_of_all(tmp_path: Path) -> None:
    text = (
        TABLE + 'max-length = 40\nstrict = true\ntargets = ["a:b", {target = "c:d", max_length = 9, ignore = ["LW2"]}]'
    )
    assert listed(tmp_path, text) == [
        ("a:b", {"max_length": 40, "strict": True}),
        ("c:d", {"max_length": 9, "strict": True, "ignore": ("LW2",)}),
    ]


@pytest.mark.parametrize(
    "text",
    [
        '[[tool.lengthwise.check.targets]]\ntarget = "a:b"\nseed = 1\n',
        '\ufeff[[tool.lengthwise.check.targets]]\r\ntarget = "a:b"\r\nseed = 1\r\n',
        'tool.lengthwise.check.targets = [{target = "a:b", seed = 1}]',
    ],
)
def test_every_form_of_toml_will_do(text: str, tmp_path: Path) -> None:
    assert listed(tmp_path, text) == [("a:b", {"seed": 1})]


def test_one_target_may_stand_there_with_different_options(tmp_path: Path) -> None:
    text = TABLE + 'targets = [{target = "a:b", seed = 1}, {target = "a:b", seed = 2}]'
    assert [name for name, _ in listed(tmp_path, text)] == ["a:b", "a:b"]


def test_the_nearest_file_with_the_table_counts(tmp_path: Path) -> None:
    deep = tmp_path / "one" / "two"
    deep.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(TABLE + 'targets = ["a:b"]')
    (deep.parent / "pyproject.toml").write_text("[tool.lengthwise.other]\n[project]\n")
    project = Project.of(deep)
    assert (project.folder, [one.target for one in project.targets]) == (tmp_path, ["a:b"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.lengthwise.check\n", "cannot be read as TOML: Expected ']'"),
        ("\udcff", "cannot be read as TOML: 'utf-8' codec"),
        ("tool = 1", "tool must be a table"),
        ("[tool]\nlengthwise = []", "tool.lengthwise must be a table"),
        ("[[tool.lengthwise.check]]\n", "tool.lengthwise.check must be a table"),
        (TABLE + "targets = 'a:b'", "targets must be a list"),
        (TABLE + "target = 'a:b'", "target: unknown key; did you mean targets?"),
        (TABLE + "max-lenght = 9", "max-lenght: unknown key; did you mean max_length?"),
        (TABLE + "max-length = 9\nmax_length = 9", "has max_length twice"),
        (TABLE + "max_length = '9'", "max_length must be a whole number, got '9'"),
        (TABLE + "progress = 'x'", "progress: unknown key"),
        (TABLE + "html = 'x'", "html: unknown key"),
        (TABLE + "ignore = ['LW2O4']", "did you mean LW204?"),
        (TABLE + "select = []", "must name at least one rule"),
        (TABLE + "targets = [1]", "targets[0] must be a text, or a table"),
        (TABLE + "targets = ['']", "targets[0] must be a text, or a table"),
        (TABLE + "targets = [{seed = 1}]", "targets[0] must be a text, or a table"),
        (TABLE + "targets = ['a:b', {target = 'c:d', sed = 1}]", "targets[1] sed: unknown key; did you mean seed?"),
        (TABLE + "targets = [{target = 'c:d', seed = -1}]", "targets[0] (c:d): seed must be"),
        (
            TABLE + "targets = [{target = 'c:d', checkpoint = 'w.pt'}]",
            "checkpoint must be a file or folder that exists",
        ),
        (TABLE + "targets = ['a:b', 'c:d', 'a:b']", "targets[2]: a:b is listed twice with the same options"),
    ],
)
def test_a_wrong_table_is_refused_with_its_file_and_what_is_wrong(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError) as error:
        Project.of(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "pyproject.toml"))
    assert words in str(error.value)


def test_a_path_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "pyproject.toml").write_text(TABLE + "targets = [{target = 'c:d', checkpoint = 'w.pt'}]")
    assert Project.of(tmp_path / "deep").targets[0].options.checkpoint == "w.pt"


def test_a_named_target_has_its_listed_options_and_others_those_of_all(tmp_path: Path) -> None:
    listed(tmp_path, TABLE + 'seed = 7\ntargets = [{target = "a:b", seed = 1}]')
    project = Project.of(tmp_path)
    named = project.named(["a:b", "c:d", "a:b"], tmp_path)
    assert [(one.target, one.options.seed) for one in named] == [("a:b", 1), ("c:d", 7)]


def test_without_a_target_and_a_list_the_command_says_what_to_write(folder: Path) -> None:
    done = run_check()
    assert (done.exit_code, "[tool.lengthwise.check] targets = [" in done.output) == (2, True)
    (folder / "pyproject.toml").write_text(TABLE + "targets = []")
    assert run_check().exit_code == 2


def test_all_targets_are_checked_and_the_exit_code_is_that_of_a_leak(folder: Path) -> None:
    names = ("Sound", "Leaking", "Unknown", "Absent")
    listed(folder, TABLE + "max_length = 16\ntargets = [" + ", ".join(f"'nets.py:{name}'" for name in names) + "]")
    (folder / "deep").mkdir()
    done = run_check("--html", "out/page.html", "--sarif", "out/leaks.sarif", "--annotations", "github")
    assert done.exit_code == 1
    assert "4 targets: 1 sound, 1 leak, 2 uncheckable" in done.stdout
    assert "leak  nets.py:Leaking: the answer to a sequence changes" in done.stdout
    commands = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert [line.partition("::")[2].partition("::")[0] for line in commands] == [
        "error file=nets.py,line=11,title=LW201 mean-over-padding",
        "error file=nets.py,line=1,title=padding-not-checked",
        "error file=nets.py,line=1,title=padding-not-checked",
    ]
    log = json.loads((folder / "out" / "leaks.sarif").read_text())
    validate(log)
    (only,) = log["runs"]
    assert [one["ruleId"] for one in only["results"]] == ["LW201", "padding-not-checked", "padding-not-checked"]
    assert only["invocations"] == [{"executionSuccessful": False, "exitCode": 1}]
    page = (folder / "out" / "page.html").read_text()
    assert all(f"nets.py:{name}" in page for name in names)


@pytest.mark.long
def test_a_wrong_comment_ignores_nothing_and_is_an_error_beside_other_targets_too(folder: Path) -> None:
    (folder / "nets.py").write_text(MODELS.replace("\n", "  # lengthwise: ignore[LW2O1]\n"))
    alone, beside = run_check("nets.py:Leaking"), run_check("nets.py:Leaking", "nets.py:Sound", "--json")
    assert (alone.exit_code, beside.exit_code) == (2, 1)
    (message,) = alone.stderr.splitlines()
    assert message in beside.stderr.splitlines()
    assert "there is no rule LW2O1; did you mean LW2" in message
    assert [one["verdict"] for one in json.loads(beside.stdout)] == ["leak", "sound"]


def test_the_json_of_several_targets_is_a_list_and_paths_are_those_of_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(folder, TABLE + "max_length = 16\nignore = ['LW9']\ntargets = ['nets.py:Leaking', 'nets.py:Unknown']")
    (folder / "deep").mkdir()
    monkeypatch.chdir(folder / "deep")
    done = run_check("--json", "--ignore", "LW2")
    first, second = json.loads(done.stdout)
    assert (done.exit_code, first["target"], first["verdict"]) == (2, "nets.py:Leaking", "sound")
    assert [(one["file"], one["line"]) for one in first["ignored"]] == [("nets.py", 11)]
    assert (second["verdict"], second["padding_safe"]) == ("uncheckable", None)


def test_the_json_of_one_target_is_its_report(folder: Path) -> None:
    listed(folder, TABLE + "max_length = 16\ntargets = ['nets.py:Sound', 'nets.py:Leaking']")
    record = json.loads(run_check("nets.py:Sound", "--json").stdout)
    assert (record["target"], record["verdict"], record["max_length"]) == ("nets.py:Sound", "sound", 16)
    assert record["padding_safe"] is True


def test_a_rule_is_explained_without_a_target(folder: Path) -> None:
    done = run_check("--explain", "LW201")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "# LW201: mean-over-padding")
    wrong = run_check("--explain", "LW2O6")
    assert (wrong.exit_code, "there is no rule LW2O6; did you mean LW206?" in wrong.stderr) == (2, True)
