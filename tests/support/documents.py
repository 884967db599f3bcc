"""Runs the blocks of a page from top to bottom, and compares what they print with what the page says.

| block | is |
|---|---|
| `python` | runs, with the names of the blocks before; if its first line is `# name.py`, it is a file |
| `sh` | commands, or a script of bash; behind a command `# exit 1` is its exit code, `# leak` its verdict |
| `text` | what the block before prints: of `python` all, of `sh` lines in this order; `...` stands for anything |
| `json` | the answer of the block before; numbers that are not whole may differ a little |
| `toml`, `diff` | a spec, or the file that its first line names; a change of a file that the page wrote |
| `console`, `csv`, `yaml` | not run: files, and what needs more than this project or never ends |

Behind a fence that says `long` ("sh long"), a block runs in the long tests only, and behind `shown` never.
`lengthwise serve` starts a service that runs until the end of the page, on free ports; `runs/` is a folder of the test;
a block of `sh` that only sets variables sets them for all scripts behind it.
"""

import contextlib
import io
import json
import linecache
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lengthwise
from lengthwise.bench.launch import free_port
from lengthwise.commands.cli import main
from tests.support.server_process import started
from tests.support.specs import parsed_spec

ROOT = Path(__file__).parents[2]
NOT_RUN = ("console", "csv", "yaml")
OURS = ("lengthwise", "python", "pytest")
IN_PROCESS = ("check", "export", "train")
"""Commands that need no process of their own."""
VERDICTS = {"sound": 0, "warning": 0, "leak": 1, "uncheckable": 2}
"""The exit code of each."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    section: str
    language: str
    mark: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in its order."""
    found = []
    section = ""
    for title, language, mark, text in re.findall(
        r"^## ([^\n]*)$|^```(\w+)( long| shown)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S
    ):
        if language:
            found.append(Block(section, language, mark.strip(), text))
        else:
            section = title
    return found


@dataclass(slots=True)
class PageRun:
    """One run through a page, in the working directory."""

    name: str
    folder: Path
    grpc_port: int
    ends: contextlib.ExitStack
    apart: bool = False
    port: int = 8000
    setup: str = ""
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})

    def serve(self, arguments: Sequence[str]) -> str:
        """Starts a service: what it says until it is ready."""
        server = self.ends.enter_context(started(*(str(self.grpc_port) if one == "8001" else one for one in arguments)))
        self.port = server.port
        return server.text

    def run(self, block: Block) -> str:
        """Runs a block: what it prints, on stdout and stderr."""
        text = block.text.replace("runs/", f"{self.folder}/")
        if block.language == "python":
            return self._python(text)
        lines = _lines(text)
        if all(re.match(r"\w+=", line) for line in lines):
            self.setup += text
            return ""
        if "<<" in text or " | " in text or not any(_tool(line) in OURS for line in lines):
            return self._script(text)
        return "".join(self._command(line) for line in lines)

    def _here(self, text: str) -> str:
        """With the ports of the service in the place of those of the page."""
        return text.replace("localhost:8000", f"127.0.0.1:{self.port}").replace(
            "localhost:8001", f"127.0.0.1:{self.grpc_port}"
        )

    def _python(self, text: str) -> str:
        if named := re.match(r"# (\w+)\.py\n", text):
            Path(f"{named[1]}.py").write_text(text, encoding="utf-8")
            sys.modules.pop(named[1], None)
            return ""
        if self.apart:
            return _ended([sys.executable, "-W", "error", "-c", self._here(text)], 0, {})
        name = f"{self.name}: {text[:40]}"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # as a notebook does it
        with _captured() as printed:
            exec(compile(self._here(text), name, "exec"), self.names)
        return printed.getvalue()

    def _script(self, text: str) -> str:
        """The output of bash; the errors are printed behind it."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return _ended(["bash", "-eu", "-c", self._here(self.setup + text)], 0, {"PATH": path})

    def _command(self, line: str) -> str:
        command, _, remark = (part.strip() for part in line.partition("  # "))
        verdict = VERDICTS.get(remark)
        expected = int(remark.removeprefix("exit ")) if remark.startswith("exit ") else verdict or 0
        words = shlex.split(command)
        tool = _tool(command)
        if tool not in OURS:
            return self._script(command)
        if tool == "lengthwise" and words[1] == "serve":
            return self.serve(words[2:])
        if tool == "lengthwise" and words[1] in IN_PROCESS:
            printed = _invoked(main, words[1:], expected)
        elif tool == "python" and len(words) == 2:
            with _captured() as text:
                runpy.run_path(words[1], run_name="__main__")
            printed = text.getvalue()
        else:
            printed = _ended([sys.executable, *(() if tool == "python" else ("-m", tool)), *words[1:]], expected, {})
        assert verdict is None or re.search(rf"^{remark}\b", printed, re.M), printed
        return printed


def walk(page: Path, run: PageRun, *, long: bool, sections: Sequence[str] = (), tolerance: float = 1e-6) -> int:
    """Runs the blocks of a page, and compares what is printed: the number of blocks that ran."""
    count = 0
    last: tuple[Block, str] | None = None  # what ran, and what it printed that was not compared yet
    for block in blocks(page):
        if (sections and block.section not in sections) or block.mark == "shown" or (block.mark == "long" and not long):
            continue
        if block.language in ("python", "sh"):
            _nothing_is_left(last)
            last = block, run.run(block)
            count += 1
        elif block.language == "toml" and (named := re.match(r"# (\S+\.toml)\n", block.text)):
            Path(named[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "toml":
            parsed_spec(block.text)
            count += 1
        elif block.language == "diff":
            subprocess.run(["git", "apply", "-p0", "-"], input=block.text, text=True, check=True)
        elif block.language in ("text", "json"):
            assert last is not None, f"nothing is printed before {block.text}"
            _compare(block, *last, tolerance)
            last = None
        else:
            assert block.language in NOT_RUN, f"a block of {block.language}"
    _nothing_is_left(last)
    return count


@contextlib.contextmanager
def page_run(name: str, working: Path, folder: Path, *, apart: bool = False) -> Iterator[PageRun]:
    """A run in a folder, which is the working directory meanwhile and where modules are found."""
    own = {*sys.modules}
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as ends:
        patch.chdir(working)
        patch.syspath_prepend(str(working))
        run = PageRun(name, folder, free_port(), ends, apart)
        yield run
    for client in run.names.values():
        if isinstance(client, lengthwise.Client):
            client.close()
    for module in {*sys.modules} - own:  # those that the page wrote
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(folder)):
            del sys.modules[module]


def _nothing_is_left(last: tuple[Block, str] | None) -> None:
    if last is not None:
        block, printed = last
        assert block.language == "sh" or not printed, f"the page does not say that this prints {printed}\n{block.text}"
        assert '"type":"about:blank"' not in printed, f"refused: {block.text}"


def _compare(said: Block, block: Block, printed: str, tolerance: float) -> None:
    if said.language == "json":
        compare_json(json.loads(said.text), json.loads(printed.splitlines()[-1]), tolerance)
    elif block.language == "python":
        pattern = ".*?".join(re.escape(part) for part in said.text.split("..."))
        assert re.fullmatch(pattern, printed, re.S), f"printed is\n{printed}"
    else:
        compare_text(said.text, printed)


def compare_text(said: str, printed: str) -> None:
    """Each line of the page must occur in what was printed, in this order; a terminal may wrap it elsewhere."""
    whole = " ".join(printed.split())
    place = 0
    for line in filter(None, (" ".join(line.split()) for line in said.splitlines())):
        found = re.compile(".*?".join(re.escape(part.strip()) for part in line.split("..."))).search(whole, place)
        assert found is not None, f"{line!r} is not printed; printed is\n{printed}"
        place = found.end()


def compare_json(said: Any, answered: Any, tolerance: float) -> None:
    """Both are the same, in the same order, but for how other processors round."""
    if isinstance(said, dict):
        assert list(said) == list(answered)
        for name in said:
            compare_json(said[name], answered[name], tolerance)
    elif isinstance(said, list):
        assert len(said) == len(answered)
        for one, other in zip(said, answered, strict=True):
            compare_json(one, other, tolerance)
    elif isinstance(said, float):
        assert answered == pytest.approx(said, rel=1e-3, abs=tolerance)
    else:
        assert said == answered


def _tool(line: str) -> str:
    """The program of a command, without its folder."""
    return line.split(maxsplit=1)[0].rpartition("/")[2]


def _lines(text: str) -> list[str]:
    """The commands of a block: a line that ends in a backslash goes on, and a remark is none."""
    commands: list[str] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if commands and commands[-1].count("'") % 2:  # a text that goes on
            commands[-1] += f"\n{line}"
        elif line.strip() and not line.startswith("#"):
            commands.append(line)
    return commands


def _invoked(command: Any, words: Sequence[str], expected: int) -> str:
    done = CliRunner().invoke(command, words)
    assert done.exit_code == expected, f"{words}: exit {done.exit_code}\n{done.output}\n{done.exception!r}"
    return done.output


def _ended(words: Sequence[str], expected: int, variables: dict[str, str]) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LENGTHWISE_", "PYTEST_"))}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=plain | variables)
    assert done.returncode == expected, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stderr + done.stdout


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield text
