"""Which room may import which: the directions in which the service is built, held by reading its source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    {
        "errors",
        "versions",
        "installation",
        "heads",
        "recurrent",
        "wrong_values",
        "framing",
        "unread",
        "files",
        "onnx_graph",
        "stopping",
        "closing",
        "draining",
        "ending",
    },
    {"inflight"},
    {
        "padding",
        "pool",
        "settings",
        "manifest",
        "cost",
        "metrics",
        "problems",
        "body",
        "keys",
        "access",
        "provider",
        "placement",
        "data_dependence",
        "listener",
    },
    {"tls", "device_memory", "cycle", "json_text", "receiving"},
    {"binding", "protocol"},
    {"shortcut", "plan", "session", "sequences", "calls", "logs", "triton_metrics"},
    {"buckets"},
    {"answers", "golden", "kept_costs", "options", "lanes", "proof"},
    {"strict", "execution", "tracing", "kept_promises"},
    {"promises", "plain", "runners", "requested"},
    {"judging"},
    {"wire", "repository", "accounts", "batcher", "judge_process", "judge_child"},
    {"scan", "shelf"},
    {"serving"},
    {"endpoint", "tensors"},
    {"octets", "kserve", "inventory", "model_config", "body_documents", "pages"},
    {"messages", "statistics", "documents"},
    {"kserve_documents", "predict", "direct", "v1", "v2", "grpc_server", "gate", "health"},
    {"app"},
    {"server"},
]
"""The rooms that serve, from the ground up. A room imports from floors below its own: never from its own, never from
above, and nothing from the rooms beside them, which measure."""

ONLY_IN = {
    "onnxruntime": {"installation", "session"},
    "fastapi": {"app", "health"},
    "grpc": {"grpc_server"},
    "uvicorn": {"server", "protocol", "cycle"},
    "simdjson": {"wire"},
    "prometheus_client": {"metrics", "triton_metrics", "exposition"},
    "opentelemetry": {"tracing"},
    "pydantic_settings": {"settings"},
}
"""Packages that one room knows, or two, and the others do not."""


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def rooms_of(path: Path) -> set[str]:
    """The rooms of the service that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("service.")} & {
        *(file.stem for file in (ROOT / "service").glob("*.py")),
        "bench",
        "scoring",
    }


SERVICE = sorted((ROOT / "service").rglob("*.py"))


@pytest.mark.parametrize("path", SERVICE, ids=[path.stem for path in SERVICE])
def test_the_service_never_imports_the_exporter_or_what_only_it_needs(path: Path) -> None:
    known = {name.split(".")[0] for name in imports(path)}
    assert not known & {"model_export", "torch", "onnx", "onnxscript", "keras", "lengthwise"}


@pytest.mark.parametrize(("floor", "room"), [(i, room) for i, rooms in enumerate(FLOORS) for room in sorted(rooms)])
def test_a_room_imports_from_below_only(floor: int, room: str) -> None:
    below = set().union(*FLOORS[:floor])
    assert rooms_of(ROOT / "service" / f"{room}.py") <= below


@pytest.mark.parametrize("package", ONLY_IN)
def test_few_rooms_know_a_package(package: str) -> None:
    knowing = {path.stem for path in SERVICE if package in {name.split(".")[0] for name in imports(path)}}
    assert knowing == ONLY_IN[package]


def test_one_room_reads_the_environment() -> None:
    reading = {path.stem for path in SERVICE if "os.environ" in path.read_text() or "getenv" in path.read_text()}
    assert reading <= {"settings", "launch"}  # launch hands it on to a process, and reads nothing in it


def test_the_batcher_knows_neither_the_runtime_nor_http() -> None:
    known = set(imports(ROOT / "service" / "batcher.py"))
    assert not {name.split(".")[0] for name in known} & {"onnxruntime", "fastapi", "starlette", "uvicorn"}
    assert not rooms_of(ROOT / "service" / "batcher.py") & {"session", "wire", "app", "predict"}


def test_the_exporter_knows_only_what_reads_and_runs_a_model() -> None:
    known = set().union(*(rooms_of(path) for path in (ROOT / "model_export").glob("*.py")))
    assert not known & {"app", "predict", "server", "serving", "batcher", "wire", "strict", "metrics"}


def test_serving_loads_nothing_that_only_the_exporter_needs() -> None:
    program = (
        "import sys, service.__main__, service.server; "
        "print([name for name in ('torch', 'onnx', 'model_export', 'matplotlib', 'httpx', 'opentelemetry.sdk') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
