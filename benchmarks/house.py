"""Counts the house: rooms, floors, arrows, lines, names. `python -m benchmarks.house --at REVISION`.

A room is a folder of a package, or a module that lies beside the folders. An arrow is an import from one room to
another, without those for annotations only. Floors are the rooms of the longest chain of imports. Each revision is
unpacked from git into a temporary folder; the last column is the working tree.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import click

from benchmarks import pages

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "service": ("service/lengthwise", "service"),
    "exporter": ("model_export/lengthwise_export", "model_export"),
}
"""Where each package is, the newest place first."""

Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Package:
    """The counts of one package.

    Attributes:
        rooms: Every room with the rooms that it imports.
        modules: Every module with the modules that it imports.
        classes: Names of classes, with the number of their definitions.
        public: Names without an underscore that modules define.
        lines: Of Python.
        lines_of_c: Of C, with headers.
    """

    rooms: Graph
    modules: Graph
    classes: Counter[str]
    public: int
    lines: int
    lines_of_c: int


def package(folder: Path) -> Package:
    """Reads a package's source; nothing of it is run."""
    files = {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(folder.rglob("*.py"))
        if not path.stem.endswith("_pb2") and path != folder / "__init__.py"
    }
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    modules = {name: {*imports(tree, folder.name, files)} - {name} for name, tree in trees.items()}
    folders = {path.parent.name for path in folder.glob("*/*.py")}

    def room(module: str) -> str:
        return module.partition(".")[0]

    rooms: Graph = {room(name): set() for name in modules if room(name) in folders or "." not in name}
    for name, known in modules.items():
        rooms[room(name)] |= {room(other) for other in known} - {room(name)}
    return Package(
        rooms=rooms,
        modules={name: known for name, known in modules.items() if files[name].stem != "__init__"},
        classes=Counter(node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)),
        public=sum(len({*public_names(tree)}) for tree in trees.values()),
        lines=sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py")),
        lines_of_c=sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.[ch]")),
    )


def imports(tree: ast.Module, package: str, known: Mapping[str, Path]) -> Iterator[str]:
    """The package's own modules that a module imports, without those under `if TYPE_CHECKING`."""
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = [f"{node.module}.{name.name}" for name in node.names]
            names = inner if any(name.removeprefix(f"{package}.") in known for name in inner) else [node.module]
        yield from (part for name in names if (part := name.removeprefix(f"{package}.")) in known and part != name)


def public_names(tree: ast.Module) -> Iterator[str]:
    """Functions, classes and variables of a module without an underscore in front."""
    for node in tree.body:
        names: list[ast.expr | str] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [*node.targets]
        elif isinstance(node, ast.AnnAssign | ast.TypeAlias if sys.version_info >= (3, 12) else ast.AnnAssign):
            names = [node.target if isinstance(node, ast.AnnAssign) else node.name]
        for name in names:
            text = name if isinstance(name, str) else name.id if isinstance(name, ast.Name) else "_"
            if not text.startswith("_"):
                yield text


def circles(graph: Graph) -> list[set[str]]:
    """Groups of nodes that reach each other."""
    reach = {node: reached(graph, node) for node in graph}
    groups = [{other for other in reach[node] if node in reach[other]} for node in graph if node in reach[node]]
    return [group for place, group in enumerate(groups) if group not in groups[:place]]


def reached(graph: Graph, start: str) -> set[str]:
    """All nodes that a node reaches."""
    seen: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += graph.get(node, ())
    return seen


def floors(graph: Graph) -> int:
    """The nodes of the longest chain; those of a circle count as one."""
    group = {node: min(circle) for circle in circles(graph) for node in circle}
    merged: Graph = {}
    for node, below in graph.items():
        own = group.get(node, node)
        merged.setdefault(own, set()).update({group.get(other, other) for other in below} - {own})
    height: dict[str, int] = {}
    try:
        for node in TopologicalSorter(merged).static_order():
            height[node] = 1 + max((height[below] for below in merged.get(node, ())), default=0)
    except CycleError as error:  # circles were merged
        raise AssertionError(error) from error
    return max(height.values(), default=0)


def counted(root: Path) -> dict[str, str]:
    """The rows of one checkout."""
    found = {
        title: package(next(root / place for place in places if (root / place / "__init__.py").is_file()))
        for title, places in PACKAGES.items()
    }
    rows: dict[str, str] = {}
    for title, each in found.items():
        rows |= {
            f"{title}: rooms": f"{len(each.rooms)}",
            f"{title}: floors of rooms": f"{floors(each.rooms)}",
            f"{title}: arrows between rooms": f"{sum(map(len, each.rooms.values()))}",
            f"{title}: circles of rooms": f"{len(circles(each.rooms))}",
            f"{title}: modules": f"{len(each.modules)}",
            f"{title}: floors of modules": f"{floors(each.modules)}",
            f"{title}: arrows between modules": f"{sum(map(len, each.modules.values()))}",
            f"{title}: circles of modules": f"{len(circles(each.modules))}",
            f"{title}: public names": f"{each.public:,}",
            f"{title}: lines of Python": f"{each.lines:,}",
            f"{title}: lines of C": f"{each.lines_of_c:,}",
        }
    classes = sum((each.classes for each in found.values()), Counter[str]())
    rows["class names with several meanings"] = f"{len(repeated(classes))}"
    rows["classes with such a name"] = f"{sum(classes[name] for name in repeated(classes))}"
    for folder in ("tests", "benchmarks"):
        files = [*(root / folder).rglob("*.py")]
        rows[f"{folder}: lines"] = f"{sum(len(path.read_text(encoding='utf-8').splitlines()) for path in files):,}"
    results = [path for path in (root / "benchmarks/results").rglob("*") if path.suffix in (".json", ".md")]
    rows["benchmarks: kB of results"] = f"{sum(path.stat().st_size for path in results) / 1000:,.0f}"
    return rows


def repeated(classes: Counter[str]) -> list[str]:
    """The names that several classes have."""
    return sorted(name for name, count in classes.items() if count > 1)


def unpacked(revision: str, folder: Path) -> Path:
    """A revision's files in a folder."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


@click.command()
@click.option("--at", "revisions", multiple=True, help="A revision to compare with; may be repeated.")
@click.option("--names", is_flag=True, help="List the class names with several meanings.")
def main(revisions: tuple[str, ...], names: bool) -> None:
    """Counts rooms, floors, arrows, lines and names, before and after."""
    columns: dict[str, dict[str, str]] = {}
    for revision in revisions:
        with tempfile.TemporaryDirectory() as folder:
            columns[revision] = counted(unpacked(revision, Path(folder)))
    columns["working tree"] = counted(ROOT)
    titles = dict.fromkeys(title for rows in columns.values() for title in rows)
    lines = [(title, *(rows.get(title, "-") for rows in columns.values())) for title in titles]
    click.echo(pages.table(("", *columns), lines))
    if names:
        found = (package(ROOT / places[0]) for places in PACKAGES.values())
        click.echo("\n" + ", ".join(repeated(sum((each.classes for each in found), Counter[str]()))))


if __name__ == "__main__":
    main()
