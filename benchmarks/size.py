"""Counts what has to be read, held and run: `python -m benchmarks.size`.

`size.toml` has the bounds, which `tests/test_size.py` holds: those of flows, which have to run, among the long tests.
Code is bounded by its statements: those of Python by its parser, without docstrings, and those of C by their
semicolons. Lines are printed for information, so a docstring, a comment, a blank line or a test costs nothing. A bound
that rises says why beside it; `--tighten` lowers each bound to the figure of today, and keeps what is said beside it.
Flows (the files and calls of a warm request, an export and a training) are followed in processes of their own; see
`path`.

A room is a folder of a package, or a module beside the folders. An arrow is an import from one room to another,
without those for annotations only. Floors are the rooms of the longest chain of imports, without hooks.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Set
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import click

from benchmarks import pages

ROOT: Final = Path(__file__).parents[1]
BOUNDS: Final = Path(__file__).with_name("size.toml")
PACKAGES: Final = {"service": ROOT / "service" / "lengthwise", "exporter": ROOT / "model_export" / "lengthwise_export"}
FLOWS: Final = ("request", "export", "training")
LARGEST_FILE: Final = 280  # statements

Graph = dict[str, set[str]]


def figures() -> dict[str, int]:
    """The figures that need no run: statements, lines, rooms, options, complexity."""
    python = {name: [*folder.rglob("*.py")] for name, folder in PACKAGES.items()}
    every = [path for paths in python.values() for path in paths]
    in_c = [path for folder in PACKAGES.values() for pattern in ("*.c", "*.h") for path in folder.rglob(pattern)]
    of_files = {path: statements([path]) for path in every}
    benchmarks = [*(ROOT / "benchmarks").rglob("*.py")]
    found = {
        "statements of the packages": sum(of_files.values()),
        "statements of core": sum(
            of_files[path]
            for name, paths in python.items()
            for annex in [annexes(name)]
            for path in paths
            if _room(path, name) not in annex
        ),
        "statements of C": sum(path.read_text("utf-8").count(";") for path in in_c),
        "statements of benchmarks": statements(benchmarks),
        "lines of the packages": lines([*every, *in_c]),
        "lines of tests": lines((ROOT / "tests").rglob("*.py")),
        "lines of benchmarks": lines(benchmarks),
        "lines of documents": lines([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]),
        "options of commands": options(),
        "functions above a complexity of 10": complex_functions(),
        f"files over {LARGEST_FILE} statements": sum(count > LARGEST_FILE for count in of_files.values()),
    }
    raising = [function for path in every for function in public_functions_that_raise(_tree(path))]
    silent = [function for function in raising if "Raises:" not in (ast.get_docstring(function) or "")]
    found |= {"public functions that raise": len(raising), "of these, without a section Raises": len(silent)}
    found |= {f"parameters of {name}": count for name, count in parameters().items()}
    for name, folder in PACKAGES.items():
        graph = rooms(folder)
        found |= {
            f"rooms of the {name}": len(graph),
            f"floors of the {name}": floors(graph, annexes(name)),
            f"arrows of the {name}": sum(map(len, graph.values())),
        }
    return found


def path(flow: str) -> dict[str, int]:
    """The files and calls of a flow, followed in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.path", flow, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    counted = json.loads(done.stdout.splitlines()[-1])
    return {f"files of one {flow}": counted["files"], f"calls of one {flow}": counted["calls"]}


def bounds() -> dict[str, int]:
    """The most that each figure may be."""
    return tomllib.loads(BOUNDS.read_text("utf-8"))


def lines(files: Iterable[Path]) -> int:
    """The lines of files."""
    return sum(len(path.read_text("utf-8").splitlines()) for path in files)


def statements(files: Iterable[Path]) -> int:
    """The statements of Python files, without docstrings."""
    return sum(map(_is_statement, (node for path in files for node in ast.walk(_tree(path)))))


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _is_statement(node: ast.AST) -> bool:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return isinstance(node, ast.stmt) and not is_text


def public_functions_that_raise(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions and methods with public names that have a `raise` of their own, but for those to be overridden."""
    for part in ast.iter_child_nodes(node):
        if not isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or part.name.startswith("_"):
            continue
        if isinstance(part, ast.ClassDef):
            yield from public_functions_that_raise(part)
        elif any("NotImplementedError" not in ast.unparse(each) for each in _raises(part)):
            yield part


def _raises(node: ast.AST) -> Iterator[ast.Raise]:
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.Raise):
            yield part
        elif not isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _raises(part)


def annexes(package: str) -> set[str]:
    """The rooms of a package that `ARCHITECTURE.md` has as annexes."""
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    _, _, rest = page.partition(f"<!-- packages of {PACKAGES[package].name} -->\n")
    return {*re.findall(r"^\| `(\w+)` \| annex \|", rest.partition("\n\n")[0], re.MULTILINE)}


def _room(path: Path, package: str) -> str:
    return path.relative_to(PACKAGES[package]).with_suffix("").parts[0]


def options() -> int:
    """The options of all commands."""
    from lengthwise.commands.cli import main as group

    context = click.Context(group)
    commands = [group.get_command(context, name) for name in group.list_commands(context)]
    return sum(isinstance(option, click.Option) for command in commands if command for option in command.params)


def parameters() -> dict[str, int]:
    """The parameters of the exporter's Python functions; an object of options is one."""
    import lengthwise_export

    functions = {name: inspect.unwrap(getattr(lengthwise_export, name)) for name in ("export", "train")}
    return {name: len(inspect.signature(function).parameters) for name, function in functions.items()}


def complex_functions() -> int:
    """The functions that ruff's C901 names."""
    command = ["ruff", "check", "--isolated", "--select", "C901", "--output-format", "json", "--exit-zero"]
    done = subprocess.run([sys.executable, "-m", *command, *PACKAGES.values()], check=True, capture_output=True)
    return len(json.loads(done.stdout))


def rooms(folder: Path) -> Graph:
    """Every room of a package with the rooms that it imports; the source is read, nothing of it is run."""
    files = {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(folder.rglob("*.py"))
        if path != folder / "__init__.py"
    }
    graph: Graph = {}
    for name, path in files.items():
        room = name.partition(".")[0]
        known = {part.partition(".")[0] for part in _imports(_tree(path), folder.name, files)}
        graph.setdefault(room, set()).update(known - {room})
    return graph


def _imports(tree: ast.Module, package: str, known: Mapping[str, Path]) -> Iterator[str]:
    """The package's own modules that a module imports, without those under `if TYPE_CHECKING`."""
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in checked for inner in ast.walk(node)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}", *(f"{node.module}.{name.name}" for name in node.names)]
        if id(node) not in skipped:
            parts = (name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}."))
            yield from (part for part in parts if part in known)


def floors(graph: Graph, above: Set[str] = frozenset()) -> int:
    """The rooms of the longest chain, without the hooks by which another room reaches an annex."""
    below = {room: known if room in above else known - above for room, known in graph.items()}
    height: dict[str, int] = {}
    for room in TopologicalSorter(below).static_order():
        height[room] = 1 + max((height[other] for other in below[room]), default=0)
    return max(height.values(), default=0)


@click.command()
@click.option("--tighten", is_flag=True, help="Lower the bounds to the figures of today.")
def main(tighten: bool) -> None:
    """Counts statements, lines, rooms, options, and what each flow enters, beside their bounds."""
    found, most = figures(), bounds()
    for flow in FLOWS:
        found |= path(flow)
    rows = [(name, f"{value:,}", f"{most[name]:,}" if name in most else "-") for name, value in found.items()]
    click.echo(pages.table(("figure", "today", "at most"), rows))
    if tighten:
        BOUNDS.write_text(tightened(BOUNDS.read_text("utf-8"), found), "utf-8")


def tightened(text: str, found: Mapping[str, int]) -> str:
    """The text of `size.toml` with each bound that is above its figure lowered to it; comments stay."""

    def lower(bound: re.Match[str]) -> str:
        return f'"{bound[1]}" = {min(int(bound[2]), found[bound[1]])}'

    return re.sub(r'^"(.+?)" = (\d+)', lower, text, flags=re.MULTILINE)


if __name__ == "__main__":
    main()
