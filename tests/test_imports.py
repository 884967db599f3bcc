"""Which package may import which: the table of packages, tested by reading the source."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICE = ROOT / "service" / "lengthwise"
EXPORTER = ROOT / "model_export" / "lengthwise_export"

BELOW = {
    "lengthwise": {
        "": set(),
        "telemetry": set(),
        "connections": set(),
        "batching": {"telemetry"},
        "runtime": set(),
        "verification": {"runtime"},
        "repository": {"verification", "runtime", "batching", "telemetry"},
        "decoding": {"runtime"},
        "monitoring": {"repository", "verification", "decoding", "runtime", "batching", "telemetry"},
        "serving": {"monitoring", "repository", "verification", "decoding", "runtime", "batching", "telemetry"},
        "protocols": {"serving", "repository", "decoding", "runtime", "batching", "telemetry", "connections"},
        "console": {
            "protocols",
            "serving",
            "repository",
            "decoding",
            "runtime",
            "batching",
            "telemetry",
            "connections",
        },
        "http": {"console", "protocols", "serving", "repository", "decoding", "runtime", "batching", "telemetry"}
        | {"connections"},
        "bench": {"repository", "decoding", "runtime", "batching"},
        "scoring": {"repository", "decoding", "runtime", "batching"},
        "engines": {"scoring"},
        "api": {"scoring", "repository", "decoding", "runtime", "batching"},
        "client": {"api", "decoding", "runtime"},
        "cli": {"bench", "scoring", "http", "monitoring", "repository"},
    },
    "lengthwise_export": {
        "": set(),
        "architecture": set(),
        "onnx_graphs": set(),
        "tracing": {"onnx_graphs"},
        "checking": {"tracing", "onnx_graphs"},
        "steady_bits": {"checking", "tracing", "onnx_graphs"},
        "mending": {"checking", "tracing", "onnx_graphs"},
        "keras_models": {"checking", "tracing", "onnx_graphs"},
        "targets": {"keras_models", "checking", "tracing", "onnx_graphs", "architecture"},
        "training": {"architecture"},
        "adopting": {"tracing", "onnx_graphs", "architecture"},
        "export": {
            "steady_bits",
            "mending",
            "targets",
            "keras_models",
            "checking",
            "tracing",
            "onnx_graphs",
            "architecture",
        },
        "learning": {"export", "training", "architecture"},
        "cli": {
            "learning",
            "export",
            "steady_bits",
            "mending",
            "training",
            "targets",
            "keras_models",
            "checking",
            "tracing",
            "onnx_graphs",
            "architecture",
        },
    },
}
"""The packages, the lowest first, and the packages that each may import. All may import the modules without a package
(""). A module that is named here has a row of its own, above packages."""

MEMBERS = {
    "lengthwise": {"serving": {"serving"}, "api": {"api"}, "cli": {"cli", "__main__"}},
    "lengthwise_export": {
        "export": {"accuracy", "api", "candidate", "flow", "mend_target", "mended_accuracy", "mended_candidate"}
        | {"missing_values", "pipeline", "publish", "testing", "torch_state"},
        "learning": {"estimator", "training_api"},
        "cli": {"cli", "training_commands"},
    },
}
"""Modules beside the packages that are above some of them, by the name of their row."""

ONLY_IN = {
    "onnxruntime": {"runtime.installation", "runtime.session"},
    "fastapi": {"http.app", "http.health"},
    "grpc": {f"protocols.grpc_{name}" for name in ("calls", "health", "infer", "server")},
    "uvicorn": {"http.server", "http.connection"},
    "prometheus_client": {"telemetry.metrics", "telemetry.triton_metrics", "bench.exposition"},
    "opentelemetry": {"telemetry.tracing"},
    "pydantic_settings": {"settings"},
    "ray": {"engines.ray"},
    "pyspark": {"engines.spark"},
    "apache_beam": {"engines.beam"},
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
    files = (path for path in folder.rglob("*.py") if not path.stem.endswith("_pb2"))
    return {".".join(path.relative_to(folder).with_suffix("").parts): path for path in sorted(files)}


def row(package: str, module: str) -> str:
    """The row of `BELOW` that a module belongs to."""
    folder, _, rest = module.partition(".")
    if rest:
        return folder
    return next((name for name, members in MEMBERS[package].items() if folder in members), "")


@pytest.mark.parametrize("package", BELOW)
def test_a_module_imports_from_its_own_package_and_from_those_below(package: str) -> None:
    known = modules(SERVICE if package == "lengthwise" else EXPORTER)
    above = {}
    for name, path in known.items():
        own = row(package, name)
        inside = [imported.removeprefix(f"{package}.") for imported in imports(path, annotations=False)]
        rows = {row(package, imported) for imported in inside if imported in known}
        above[name] = rows - BELOW[package][own] - {own, ""}
    assert not {name: rows for name, rows in above.items() if rows and not name.endswith("__init__")}


@pytest.mark.parametrize("package", BELOW)
def test_every_package_has_its_row(package: str) -> None:
    folder = SERVICE if package == "lengthwise" else EXPORTER
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert packages <= {*BELOW[package]}


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


def test_one_module_reads_the_environment() -> None:
    reading = {name for name, path in modules(SERVICE).items() if {"os.environ", "getenv"} & {*_words(path)}}
    assert reading <= {"settings", "bench.launch"}  # launch hands it on to a process, and reads nothing in it


def _words(path: Path) -> Iterator[str]:
    """The ways to the environment that a file takes."""
    text = path.read_text()
    yield from (word for word in ("os.environ", "getenv") if word in text)


def test_the_exporter_knows_only_what_reads_and_runs_a_model() -> None:
    known = {name for path in modules(EXPORTER).values() for name in imports(path) if name.startswith("lengthwise.")}
    rooms = {row("lengthwise", name.removeprefix("lengthwise.")) for name in known}
    assert not rooms & {"http", "protocols", "serving", "connections", "telemetry"}
    assert not known & {
        "lengthwise.batching.batcher",
        "lengthwise.decoding.json_body",
        "lengthwise.decoding.validation",
    }


def test_serving_loads_nothing_that_only_the_exporter_needs() -> None:
    program = (
        "import sys, lengthwise.cli, lengthwise.http.server; "
        "print([name for name in ('torch', 'onnx', 'lengthwise_export', 'matplotlib', 'httpx', 'pyarrow', "
        "'opentelemetry.sdk') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
