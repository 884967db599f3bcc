"""Runs the blocks of a page from top to bottom in a folder, and compares what they print with what the page says.

| block | is |
|---|---|
| `python`, whose first line is `# name.py` | a file that is written; any other one runs |
| `sh` | commands; `# exit 1` behind one is its exit code |
| `text` | what the block before prints: each line must occur, in this order; `...` stands for anything |
| `json` | the answer of the block before; probabilities may differ a little |
| `toml` and others | are read by nobody here |
| `console` | commands that need more than this project, such as docker: not run |

`lengthwise serve` starts a service that runs until the end of the page, on a free port.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lengthwise_export.interface.cli import main
from tests.support.server_process import ServerProcess, started

IN_PROCESS = ("check", "export", "train", "compare")
"""Commands that need no process of their own."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    number: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in its order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(number, *parts) for number, parts in enumerate(found)]


class PageRun:
    """One run through a page.

    Args:
        folder: The folder in which its commands run.
        in_process: Whether commands run in this process, which saves their start; otherwise as a reader runs them.
    """

    def __init__(self, folder: Path, *, in_process: bool = True) -> None:
        self.folder = folder
        self._in_process = in_process
        self.server: ServerProcess | None = None
        self.names: dict[str, Any] = {"__name__": "page"}
        self._ends = contextlib.ExitStack()

    def close(self) -> None:
        """Ends the service."""
        self._ends.close()

    def run(self, block: Block) -> str:
        """Runs a block: what it prints, on stdout and stderr."""
        if block.language == "python":
            return self._python(block)
        assert block.language == "sh"
        return "".join(self._command(line) for line in _lines(block.text))

    def _python(self, block: Block) -> str:
        first = block.text.splitlines()[0]
        if named := re.fullmatch(r"# (\w+\.py)", first):
            (self.folder / named[1]).write_text(block.text, encoding="utf-8")
            sys.modules.pop(named[1].removesuffix(".py"), None)
            return ""
        text = self._local(block.text)
        with _captured() as printed:
            exec(compile(text, f"block {block.number}", "exec"), self.names)
        return printed.getvalue()

    def _command(self, line: str) -> str:
        command, _, remark = line.partition("  # ")
        expected = int(remark.removeprefix("exit ")) if remark.startswith("exit ") else 0
        words = shlex.split(self._local(command))
        name = words[0].rpartition("/")[2]
        if name == "lengthwise" and words[1] == "serve":
            self.server = self._ends.enter_context(started(*words[2:]))
            return self.server.text
        if self._in_process and name == "lengthwise" and words[1] in IN_PROCESS:
            done = CliRunner().invoke(main, words[1:])
            assert done.exit_code == expected, f"{command}: exit {done.exit_code}\n{done.output}\n{done.exception!r}"
            return done.output
        if self._in_process and name == "python" and len(words) == 2:
            with _captured() as printed:
                runpy.run_path(words[1], run_name="__main__")
            return printed.getvalue()
        if name in ("lengthwise", "python", "pytest"):
            words = [sys.executable, *(() if name == "python" else ("-m", name)), *words[1:]]
        ended = subprocess.run(words, capture_output=True, text=True, check=False, env=_plain_environment())
        assert ended.returncode == expected, f"{command}: exit {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout + ended.stderr

    def _local(self, text: str) -> str:
        return text if self.server is None else text.replace("localhost:8000", f"127.0.0.1:{self.server.port}")


@contextlib.contextmanager
def page_run(folder: Path, *, in_process: bool = True) -> Iterator[PageRun]:
    """A run in a folder, which is the working directory meanwhile and where modules are found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        run = PageRun(folder, in_process=in_process)
        try:
            yield run
        finally:
            run.close()


def walk(page: Path, folder: Path) -> int:
    """Runs every block of a page, and compares what is printed: the number of blocks that ran."""
    count = 0
    printed: str | None = None
    with page_run(folder) as run:
        for block in blocks(page):
            if block.language in ("python", "sh"):
                printed = run.run(block)
                count += 1
            elif block.language == "text":
                assert printed is not None, f"block {block.number}: nothing is printed before it"
                compare_text(block.text, printed)
            elif block.language == "json":
                assert printed is not None, f"block {block.number}: nothing answers before it"
                compare_json(json.loads(block.text), json.loads(printed))
            else:
                assert block.language in ("console", "toml", "yaml", "ini"), f"block {block.number}: {block.language}"
    return count


def compare_text(said: str, printed: str) -> None:
    """Each line of the page must occur in what was printed, in this order; a terminal may wrap it elsewhere."""
    whole = " ".join(printed.split())
    place = 0
    for line in filter(None, (" ".join(line.split()) for line in said.splitlines())):
        found = re.compile(".*?".join(re.escape(part.strip()) for part in line.split("..."))).search(whole, place)
        assert found is not None, f"{line!r} is not printed; printed is\n{printed}"
        place = found.end()


def compare_json(said: Any, answered: Any) -> None:
    """Both are the same; numbers that are not whole may differ by 0.15, for another processor trains other weights."""
    if isinstance(said, dict):
        assert said.keys() == answered.keys()
        for name in said:
            compare_json(said[name], answered[name])
    elif isinstance(said, list):
        assert len(said) == len(answered)
        for one, other in zip(said, answered, strict=True):
            compare_json(one, other)
    elif isinstance(said, float):
        assert answered == pytest.approx(said, abs=0.15)
    else:
        assert said == answered


def _lines(text: str) -> list[str]:
    """The commands of a block: a line that ends in a backslash goes on, and a remark is none."""
    whole = re.sub(r"\\\n\s*", "", text)
    commands: list[str] = []
    for line in whole.splitlines():
        if commands and commands[-1].count("'") % 2:  # a text that goes on
            commands[-1] += f"\n{line}"
        elif line.strip() and not line.startswith("#"):
            commands.append(line)
    return commands


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield text


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("LENGTHWISE_", "PYTEST_"))}
