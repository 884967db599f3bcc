"""Which package may import which: the table of packages, tested by reading the source."""

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks import size

ROOT = Path(__file__).parents[1]
SERVICE = ROOT / "service" / "lengthwise"
EXPORTER = ROOT / "model_export" / "lengthwise_export"
FOLDERS = {"lengthwise": SERVICE, "lengthwise_export": EXPORTER}

PAGE = (ROOT / "ARCHITECTURE.md").read_text()


class Row(NamedTuple):
    """A package in the table of `ARCHITECTURE.md`: its side of the wall, and the packages that it may import."""

    side: str
    below: set[str]


def rows(title: str) -> list[list[str]]:
    """The cells of the table below a comment in the page."""
    _, _, rest = PAGE.partition(f"<!-- {title} -->\n")
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def table(package: str) -> dict[str, Row]:
    """The rows of a package's table, the lowest first; the root's is named ""."""
    return {
        "" if name == "(root)" else name.strip("`"): Row(side, {*re.findall(r"`(\w+)`", below)})
        for name, side, _, below in rows(f"packages of {package}")
    }


TABLES = {package: table(package) for package in ("lengthwise", "lengthwise_export")}
ANNEXES = {package: {name for name, row in rows.items() if row.side == "annex"} for package, rows in TABLES.items()}
HOOKS = {(module.strip("`"), annex.strip("`")) for module, annex, _ in rows("hooks")}
"""The modules of core that import an annex, and which."""

ONLY_IN = {
    "onnxruntime": {"runtime.installation", "runtime.opening"},
    "fastapi": {f"application.{name}" for name in ("app", "health", "operations")},
    "grpc": {f"grpc.{name}" for name in ("calls", "infer", "server", "transport")},
    "uvicorn": {"processes.server", "http.connection", "http.timed_connection"},
    "prometheus_client": {"telemetry.metrics", "telemetry.exposition", "bench.remote"},
    "opentelemetry": {"telemetry.tracing"},
    "pydantic_settings": {"settings"},
}
"""External packages that only these modules may import."""


@functools.cache
def imports(path: Path, *, annotations: bool = True) -> tuple[str, ...]:
    """Every module that a file imports, wherever in it; without those that only annotations need, if so asked."""
    return tuple(_imports(path, annotations))


def _imports(path: Path, annotations: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = set() if annotations else {id(inner) for node in checked for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


@functools.cache
def modules(folder: Path) -> dict[str, Path]:
    """The modules of a package by their dotted names in it."""
    files = folder.rglob("*.py")
    return {".".join(path.relative_to(folder).with_suffix("").parts): path for path in sorted(files)}


def room(package: str, module: str) -> str:
    """The row of the table that a module belongs to: its folder, or itself."""
    folder = module.partition(".")[0]
    return folder if folder in TABLES[package] else ""


def arrows(package: str) -> dict[str, set[str]]:
    """What each module imports from other rows than its own and the root's."""
    known = modules(FOLDERS[package])
    return {
        name: {
            room(package, part.removeprefix(f"{package}."))
            for part in imports(path, annotations=False)
            if part.removeprefix(f"{package}.") in known
        }
        - {room(package, name), ""}
        for name, path in known.items()
        if not name.endswith("__init__")
    }


@pytest.mark.parametrize("package", TABLES)
def test_a_module_imports_from_its_own_package_and_from_those_below(package: str) -> None:
    allowed = {
        name: TABLES[package][room(package, name)].below
        | {annex for module, annex in HOOKS if module == f"{package}.{name}"}
        for name in arrows(package)
    }
    assert not {name: above for name, rooms in arrows(package).items() if (above := rooms - allowed[name])}


@pytest.mark.parametrize("package", TABLES)
def test_a_page_says_what_each_annex_is_for(package: str) -> None:
    purpose = {name.strip("`"): text for name, _, text, _ in rows(f"packages of {package}")}
    pages = {name: re.findall(r"\]\((.+?)\)", purpose[name]) for name in ANNEXES[package]}
    assert {name for name, found in pages.items() if not any((ROOT / page).is_file() for page in found)} == set()


@pytest.mark.parametrize("package", TABLES)
def test_core_reaches_an_annex_only_where_the_page_says_so(package: str) -> None:
    annexes = ANNEXES[package]
    assert not {name for name, row in TABLES[package].items() if row.side == "core" and row.below & annexes}
    found = {
        (f"{package}.{name}", annex)
        for name, rooms in arrows(package).items()
        if room(package, name) not in annexes
        for annex in rooms & annexes
    }
    assert found == {hook for hook in HOOKS if hook[0].startswith(f"{package}.")}


def test_the_exporters_hooks_are_imports_inside_functions() -> None:
    """An annex that is not asked for is then not imported; a type may be named at the top."""
    for module, annex in HOOKS:
        if module.startswith("lengthwise_export."):
            tree = ast.parse(modules(EXPORTER)[module.removeprefix("lengthwise_export.")].read_text())
            at_import = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
            assert not [node.module for node in at_import if annex in (node.module or "").split(".")]


@pytest.mark.parametrize("package", TABLES)
def test_every_package_has_its_row_above_those_that_it_imports(package: str) -> None:
    assert {path.parent.name for path in FOLDERS[package].glob("*/__init__.py")} <= {*TABLES[package]}
    order = [*TABLES[package]]
    assert not {
        name: below for name, row in TABLES[package].items() if (below := row.below - {*order[: order.index(name)]})
    }


@pytest.mark.parametrize(("package", "most"), [("lengthwise", 11), ("lengthwise_export", 5)])
def test_few_modules_lie_beside_the_packages(package: str, most: int) -> None:
    assert len([*FOLDERS[package].glob("*.py")]) <= most


@pytest.mark.parametrize("folder", [SERVICE, EXPORTER], ids=["lengthwise", "lengthwise_export"])
def test_no_modules_import_each_other_in_a_circle(folder: Path) -> None:
    known = modules(folder)
    below = {
        name: {
            part
            for part in (imported.removeprefix(f"{folder.name}.") for imported in imports(path, annotations=False))
            if part in known and part != name
        }
        for name, path in known.items()
    }
    TopologicalSorter(below).prepare()


def test_the_service_never_imports_the_exporter_or_what_only_it_needs() -> None:
    exporter = {"lengthwise_export", "torch", "onnx", "onnxscript", "keras"}
    found = {name: {known.split(".")[0] for known in imports(path)} for name, path in modules(SERVICE).items()}
    assert not {name: known & exporter for name, known in found.items() if known & exporter}


@pytest.mark.parametrize("package", ONLY_IN)
def test_few_modules_know_a_package(package: str) -> None:
    knowing = {
        name for name, path in modules(SERVICE).items() if package in {known.split(".")[0] for known in imports(path)}
    }
    assert knowing == ONLY_IN[package]


def test_only_tracing_knows_the_library_in_which_torch_gives_its_graphs() -> None:
    knowing = {
        name for name, path in modules(EXPORTER).items() if "onnx_ir" in {n.split(".")[0] for n in imports(path)}
    }
    assert knowing == {"tracing.graph", "tracing.translations"}


def test_one_module_reads_the_environment() -> None:
    assert _with_the_environment(SERVICE) == {"settings", "bench.launch", "client.proxies"}  # launch hands it on
    assert _with_the_environment(EXPORTER) == {"keras_models.backend", "targets.torch_targets"}  # Keras's backend


def _with_the_environment(package: Path) -> set[str]:
    """The modules of a package that reach the environment."""
    return {name for name, path in modules(package).items() if {*_words(path)}}


def _words(path: Path) -> Iterator[str]:
    """The ways to the environment that a file takes."""
    text = path.read_text()
    yield from (word for word in ("os.environ", "getenv", "getproxies") if word in text)


def test_the_exporter_knows_only_what_reads_and_runs_a_model() -> None:
    doors = [path for name, path in modules(SERVICE).items() if name.startswith("exporter_api.")]
    files = [*modules(EXPORTER).values(), *doors]
    known = {name for path in files for name in imports(path) if name.startswith("lengthwise.")}
    rooms = {room("lengthwise", name.removeprefix("lengthwise.")) for name in known}
    assert not rooms & {"http", "application", "processes", "protocols", "serving", "connections", "telemetry"}
    assert not known & {
        "lengthwise.batching.batcher",
        "lengthwise.decoding.json_body",
        "lengthwise.decoding.validation",
    }


WAIST = [name.strip("`") for name, _ in rows("the waist")]
DOORS = [name for name in WAIST if name.startswith("lengthwise.exporter_api.")]


def test_the_exporter_reaches_the_service_by_the_modules_of_the_waist() -> None:
    assert {*size.waist()} == {*WAIST}
    assert len(WAIST) <= 10
    assert len(size.waist()) <= 90


def test_the_service_itself_does_not_import_what_it_hands_to_exporters() -> None:
    inside = {name: path for name, path in modules(SERVICE).items() if room("lengthwise", name) != "exporter_api"}
    assert not {name for name, path in inside.items() if any("exporter_api" in known for known in imports(path))}


def _names_from(module: str) -> set[str]:
    """The names that the exporter imports of a module."""
    return {
        name.removeprefix(f"{module}.")
        for path in modules(EXPORTER).values()
        for name in imports(path)
        if name.startswith(f"{module}.")
    }


@pytest.mark.parametrize("module", DOORS)
def test_a_module_of_the_waist_hands_out_what_is_used_and_no_more(module: str) -> None:
    door = importlib.import_module(module)
    assert {*door.__all__} == _names_from(module)
    assert len(door.__doc__) > 300  # it tells a stranger how to use it
    handed = {name: getattr(door, name) for name in door.__all__}
    described = {name for name, value in handed.items() if inspect.isfunction(value) or inspect.isclass(value)}
    assert not {name for name in described if not inspect.getdoc(handed[name])}


@pytest.mark.process
def test_only_verification_brings_onnxruntime_along() -> None:
    light = [name for name in WAIST if not name.endswith(".verification")]
    code = f"import sys, {', '.join(light)}; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
