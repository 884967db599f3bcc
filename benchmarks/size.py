"""Counts what has to be read, held and run: `python -m benchmarks.size`.

`size.toml` has the bounds, which `tests/test_size.py` holds: those of flows, which have to run, among the long tests.
Code is bounded by its statements: those of Python by its parser, without docstrings, and those of C by their
semicolons. Lines are printed for information, so a docstring, a comment or a blank line costs nothing. `--tighten`
lowers each bound to the figure of today; `--raise` writes all of them anew, and prints a line for each that rises, for
the message of the commit that makes it rise.
Flows (the files and calls of a warm request, an export and a training) are followed in processes of their own; see
`path`.

The waist is what the exporter imports of the service: statements, and the modules that they name.

A room is a folder of a package, or a module beside the folders. An arrow is an import from one room to another,
without those for annotations only. Floors are the rooms of the longest chain of imports, without hooks.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import math
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
LONGEST_FUNCTION: Final = 40  # lines of code
LONGEST_NAME: Final = 70  # characters

TESTS_FOR_CODE: Final = "statements of tests for one of the packages"
_parsed: Final = functools.cache(ast.parse)
_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)

HEAD: Final = "# What `python -m benchmarks.size` may count at most; its head says how a bound falls, and how it rises."

Graph = dict[str, set[str]]


def figures() -> dict[str, float]:
    """The figures that need no run: statements, lines, rooms, options, complexity."""
    python = {name: [*folder.rglob("*.py")] for name, folder in PACKAGES.items()}
    every = [path for paths in python.values() for path in paths]
    in_c = [path for folder in PACKAGES.values() for pattern in ("*.c", "*.h") for path in folder.rglob(pattern)]
    of_files = {path: statements([path]) for path in every}
    benchmarks = [*(ROOT / "benchmarks").rglob("*.py")]
    found: dict[str, float] = {
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
        f"functions over {LONGEST_FUNCTION} lines": sum(
            count > LONGEST_FUNCTION for path in every for _, count in functions(path.read_text("utf-8"))
        ),
    }
    raising = [function for path in every for function in public_functions_that_raise(_tree(path))]
    silent = [function for function in raising if "Raises:" not in (ast.get_docstring(function) or "")]
    found |= {"public functions that raise": len(raising), "of these, without a section Raises": len(silent)}
    found |= {f"parameters of {name}": count for name, count in parameters().items()}
    found |= statements_by_room(of_files) | of_tests(found["statements of the packages"])
    over_the_waist = waist()
    found |= {"imports over the waist": len(over_the_waist), "modules of the waist": len({*over_the_waist})}
    for name, folder in PACKAGES.items():
        graph = rooms(folder)
        found |= {
            f"rooms of the {name}": len(graph),
            f"floors of the {name}": floors(graph, annexes(name)),
            f"arrows of the {name}": sum(map(len, graph.values())),
        }
    return found


def statements_by_room(of_files: Mapping[Path, int]) -> dict[str, float]:
    """The statements of each room, of those of each file, as `statements of the service: batching`."""
    found: dict[str, float] = {}
    for name, folder in PACKAGES.items():
        for path, count in sorted(of_files.items()):
            if path.is_relative_to(folder):
                room = f"statements of the {name}: {_room(path, name)}"
                found[room] = found.get(room, 0) + count
    return found


def of_tests(of_packages: float) -> dict[str, float]:
    """The statements of tests for one of the packages, and the names of tests that are too long to be a handle."""
    files = [*(ROOT / "tests").rglob("*.py")]
    names = (node.name for path in files for node in _statements(_tree(path)) if isinstance(node, _FUNCTIONS))
    return {
        TESTS_FOR_CODE: math.ceil(100 * statements(files) / of_packages) / 100,
        f"names of tests over {LONGEST_NAME} characters": sum(
            name.startswith("test_") and len(name) > LONGEST_NAME for name in names
        ),
    }


def path(flow: str) -> dict[str, float]:
    """The files and calls of a flow, followed in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.path", flow, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    counted = json.loads(done.stdout.splitlines()[-1])
    return {f"files of one {flow}": counted["files"], f"calls of one {flow}": counted["calls"]}


def bounds() -> dict[str, float]:
    """The most that each figure may be; those of a table by its name and theirs."""
    most: dict[str, float] = {}
    for name, value in tomllib.loads(BOUNDS.read_text("utf-8")).items():
        most |= (
            {f"{name}: {room}": count for room, count in value.items()} if isinstance(value, dict) else {name: value}
        )
    return most


def lines(files: Iterable[Path]) -> int:
    """The lines of files."""
    return sum(len(path.read_text("utf-8").splitlines()) for path in files)


def statements(files: Iterable[Path]) -> int:
    """The statements of Python files, without docstrings."""
    return sum(map(_is_statement, (node for path in files for node in _statements(_tree(path)))))


def _statements(tree: ast.Module, *, typed: bool = True) -> Iterator[ast.AST]:
    """Yields a module and its statements; if not `typed`, none that only a type checker reads."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if typed or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node
            nodes += (part for part in ast.iter_child_nodes(node) if not isinstance(part, ast.expr))


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Yields the functions of a module, those inside others too: the name of each, and its lines of code.

    The signature counts; docstrings, comments and blank lines do not. Nor do decorators.
    """
    rows = enumerate(map(str.strip, source.splitlines()), 1)
    code = {number for number, row in rows if row[:1] not in ("", "#")}
    tree = _parsed(source)
    for text in (node for node in ast.walk(tree) if isinstance(node, ast.Expr) and not _is_statement(node)):
        code -= {*range(text.lineno, (text.end_lineno or text.lineno) + 1)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, len(code.intersection(range(node.lineno, (node.end_lineno or node.lineno) + 1)))


def _tree(path: Path) -> ast.Module:
    return _parsed(path.read_text("utf-8"))


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
    for node in _statements(tree, typed=False):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}", *(f"{node.module}.{name.name}" for name in node.names)]
        parts = (name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}."))
        yield from (part for part in parts if part in known)


def waist() -> list[str]:
    """The module of the service that each import statement of the exporter names, those for annotations too."""
    statements_of_imports = (
        node
        for path in sorted(PACKAGES["exporter"].rglob("*.py"))
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
    )
    found: list[str] = []
    for node in statements_of_imports:
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            names = [_named_module(f"{node.module}", name.name) for name in node.names]
        found += sorted({name for name in names if name.split(".")[0] == PACKAGES["service"].name})
    return found


def _named_module(package: str, name: str) -> str:
    """The module that `from package import name` imports: the name, if it is a module of the package."""
    file = PACKAGES["service"].parent.joinpath(*package.split("."), name)
    return f"{package}.{name}" if file.is_dir() or file.with_suffix(".py").exists() else package


def floors(graph: Graph, above: Set[str] = frozenset()) -> int:
    """The rooms of the longest chain, without the hooks by which another room reaches an annex."""
    below = {room: known if room in above else known - above for room, known in graph.items()}
    height: dict[str, int] = {}
    for room in TopologicalSorter(below).static_order():
        height[room] = 1 + max((height[other] for other in below[room]), default=0)
    return max(height.values(), default=0)


@click.command()
@click.option("--tighten", is_flag=True, help="Lower the bounds to the figures of today.")
@click.option("--raise", "may_rise", is_flag=True, help="Write them all anew; prints those that rise.")
def main(tighten: bool, may_rise: bool) -> None:
    """Counts statements, lines, rooms, options, and what each flow enters, beside their bounds."""
    found, most = figures(), bounds()
    for flow in FLOWS:
        found |= path(flow)
    rows = [(name, f"{value:,}", f"{most[name]:,}" if name in most else "-") for name, value in found.items()]
    click.echo(pages.table(("figure", "today", "at most"), rows))
    if tighten or may_rise:
        new = tightened(most, found, may_rise)
        BOUNDS.write_text(written(new), "utf-8")
        for name, value in new.items():
            if value > most.get(name, math.inf):
                click.echo(f"{name}: {most[name]:,} to {value:,}")


def tightened(most: Mapping[str, float], found: Mapping[str, float], may_rise: bool = False) -> dict[str, float]:
    """Each bound lowered to its figure, or raised to it where it may rise; rooms are those of today.

    A ratio is lowered by hand: it rises where the packages shrink.
    """
    lowered: dict[str, float] = {}
    for name, bound in most.items():
        if name in found and isinstance(bound, float):
            lowered[name] = max(bound, found[name]) if may_rise else bound
        elif name in found:
            lowered[name] = found[name] if may_rise else min(bound, found[name])
    return lowered | {name: found[name] for name in found if ": " in name and name not in lowered}


def written(most: Mapping[str, float]) -> str:
    """The text of `size.toml`: the bounds, then each table in the order of its names."""
    tables: dict[str, dict[str, float]] = {"": {}}
    for name, bound in most.items():
        table, _, key = name.rpartition(": ")
        tables.setdefault(table, {})[key] = bound
    lines = [HEAD, *(f'"{name}" = {bound}' for name, bound in tables.pop("").items())]
    for table, of_rooms in sorted(tables.items()):
        lines += ["", f'["{table}"]', *(f"{room} = {bound}" for room, bound in sorted(of_rooms.items()))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
