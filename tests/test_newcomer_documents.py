"""The pages for newcomers are true: their blocks run from top to bottom, and print what the pages say."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lengthwise.settings import Settings
from lengthwise_export.interface.cli import main
from tests.support import documents
from tests.support.server_process import ServerProcess

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = ("tutorial-torch", "tutorial-keras")
WALKED = (*TUTORIALS, "coming-from", "troubleshooting")
PAGES = (*WALKED, "upgrading")
STARTS = ServerProcess
"""These tests start servers."""


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path) -> Iterator[None]:
    own = {*sys.modules}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Keras', about masks that layers drop
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras', in a training
        yield
    for name in {*sys.modules} - own:  # modules that a page wrote
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.long
@pytest.mark.parametrize("name", WALKED)
def test_every_block_of_the_page_runs_and_prints_what_it_says(name: str, tmp_path: Path) -> None:
    assert documents.walk(DOCS / f"{name}.md", tmp_path) >= 6


@pytest.mark.parametrize("name", ["tutorial-torch", "coming-from", "troubleshooting"])
def test_a_check_says_what_the_page_says(name: str, tmp_path: Path) -> None:
    """The checks alone, with new weights: the short form of the walk."""
    found = documents.blocks(DOCS / f"{name}.md")
    checked = 0
    with documents.page_run(tmp_path) as run:
        for block, after in zip(found, [*found[1:], None], strict=True):
            if block.language == "python" and re.match(r"# \w+\.py\n", block.text):
                run.run(block)
            line = block.text.splitlines()[-1]
            if block.language == "sh" and line.startswith("lengthwise check "):
                command, _, remark = re.sub(r"--checkpoint \S+ | --fix", "", line).partition("  # ")
                done = CliRunner().invoke(main, shlex.split(command)[1:])
                assert done.exit_code == int(remark.removeprefix("exit ") or 0), done.output
                assert after is not None
                if block.text == f"{line}\n":
                    documents.compare_text(after.text, done.output)
                checked += 1
    assert checked


@pytest.mark.parametrize("name", PAGES)
def test_what_it_points_to_is_there(name: str) -> None:
    text = (DOCS / f"{name}.md").read_text()
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"\s+", " ", text)):
        file, _, anchor = target.partition("#")
        page = DOCS / file if file else DOCS / f"{name}.md"
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page), target


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_every_option_that_it_names_exists(name: str) -> None:
    text = (DOCS / f"{name}.md").read_text()
    text = re.sub(r"```console\n.*?```", "", text, flags=re.S)
    ours = {f"--{option.replace('_', '-')}" for option in Settings.model_fields}
    ours |= {option for command in main.commands.values() for each in command.params for option in each.opts}
    ours |= {"--help", "--bind"}
    theirs = {"--models", "--start", "--model-store", "--model_config_file", "--batching_parameters_file"}
    theirs |= {"--model-control-mode", "--model"}
    named = {option for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    assert named <= ours | theirs


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_first_time_reader_finds_it_on_the_first_screen(name: str) -> None:
    readme = (DOCS.parent / "README.md").read_text()
    assert f"docs/{name}.md" in "\n".join(readme.splitlines()[:30])


def test_a_walk_that_finds_another_text_fails() -> None:
    documents.compare_text("a ... c\n...\nd", "a b c\nother\n d")
    with pytest.raises(AssertionError, match="is not printed"):
        documents.compare_text("a ... c\nd", "d\na b c")
    documents.compare_json({"a": [0.5, "x"]}, {"a": [0.6, "x"]})
    with pytest.raises(AssertionError):
        documents.compare_json({"a": [0.5]}, {"a": [0.9]})
