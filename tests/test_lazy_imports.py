"""What a command imports before it does anything: torch and matplotlib take seconds, and most commands need neither."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gallery import onnx_sound

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]

PROBE = """
import json, sys
from lengthwise.commands.cli import main
codes = []
for words in json.loads(sys.argv[1]):
    try:
        main(words, prog_name="lengthwise")
    except SystemExit as end:
        codes.append(end.code)
print("\\n" + json.dumps([codes, sorted(sys.modules)]))
"""

NEVER = (
    *("torch", "matplotlib", "sympy", "onnx_ir", "onnxscript", "onnxruntime.quantization", "pandas", "scipy"),
    *("keras", "h5py"),
)
"""What help and the check of a graph leave alone."""

WITHOUT_A_GRAPH = ("onnx", "onnxruntime", "fastapi", "uvicorn", "grpc", "rich.syntax")
"""What help leaves alone besides."""

OF_A_SERVICE = (
    *("lengthwise.console", "lengthwise.monitoring", "lengthwise_export"),
    *("torch", "onnx", "matplotlib", "httpx2", "pyarrow", "opentelemetry.sdk"),
)
"""What a service loads the first two of, and only where they are on."""

MOST = 700
"""Modules that help may import: well under a second of processor time."""


def imported_by(*calls: tuple[str, ...], ends: int = 0) -> set[str]:
    """The modules that one process has imported after some calls of the command."""
    told = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(calls)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    codes, modules = json.loads(told.stdout.splitlines()[-1])
    assert codes == [ends] * len(calls), told.stdout + told.stderr
    return set(modules)


def imported(*words: str, ends: int = 0) -> set[str]:
    return imported_by(words, ends=ends)


def test_help_of_every_command_imports_little() -> None:
    commands = ("serve", "bench", "score", "train", "export", "check")
    modules = imported_by(("--help",), *((name, "--help") for name in commands))
    assert modules.isdisjoint(NEVER + WITHOUT_A_GRAPH)
    assert len(modules) < MOST


def test_importing_the_package_imports_next_to_nothing() -> None:
    program = "import sys; before = set(sys.modules); import lengthwise; print(sorted({*sys.modules} - before))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy = ("numpy", "onnxruntime", "click", "pydantic", "importlib.metadata", "lengthwise.api")
    assert "lengthwise.errors" in told.stdout
    assert [name for name in heavy if f"'{name}'" in told.stdout] == []


@pytest.mark.long
def test_a_check_of_a_graph_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(onnx_sound.bool_mask_mean().SerializeToString())
    modules = imported("check", str(tmp_path / "g.onnx"), "--html", str(tmp_path / "page.html"))
    assert modules.isdisjoint(NEVER)
    assert "onnx" in modules


@pytest.mark.long
def test_a_check_of_a_model_directory_needs_no_torch() -> None:
    modules = imported("check", "service/lengthwise/models/japanese-vowels/1", "--max-length", "40")
    assert modules.isdisjoint(NEVER)


def test_a_column_that_is_not_there_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("id,t,x,label\na,0,0.5,calm\na,1,0.7,calm\nb,0,0.1,storm\n")
    words = ("train", str(tmp_path / "d.csv"), "--column", "label=state", "--out", str(tmp_path / "run"))
    assert imported(*words, ends=2).isdisjoint(NEVER)


def test_options_that_have_no_meaning_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("id,t,x,label\na,0,0.5,calm\na,1,0.7,calm\nb,0,0.1,storm\n")
    words = ("train", "rocket", str(tmp_path / "d.csv"), "--out", str(tmp_path / "run"))
    assert imported_by((*words, "--epochs", "3"), (*words, "--resume"), ends=2).isdisjoint(NEVER)


def test_a_file_that_cannot_be_written_is_told_before_a_check(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ("check", "examples/masking.py:lengths_given")
    places = (("--html", "file/page.html"), ("--sarif", "file/log.sarif"), ("--badge", "."))
    calls = [(*words, option, str(tmp_path / place)) for option, place in places]
    assert imported_by(*calls, ends=2).isdisjoint(NEVER)


@pytest.mark.long
def test_data_or_a_module_that_is_not_there_is_told_before_onnx_is_imported(tmp_path: Path) -> None:
    words = ("export", "--out", str(tmp_path / "model"))
    assert imported(*words, "examples/masking.py:lengths_given", "--data", "none.jsonl", ends=2).isdisjoint(NEVER)
    assert imported(*words, "none.py:make", ends=2).isdisjoint({"onnx", "onnx_ir", "onnxscript", "torch.onnx"})


@pytest.mark.long
def test_training_fixed_kernels_imports_no_scikit_learn(tmp_path: Path) -> None:
    rows = [f"{name},{step},{name * step},{'ab'[name % 2]}" for name in range(12) for step in range(6)]
    (tmp_path / "d.csv").write_text("\n".join(["id,t,x,label", *rows]) + "\n")
    modules = imported("train", "rocket", str(tmp_path / "d.csv"), "--out", str(tmp_path / "run"))
    assert modules.isdisjoint({"sklearn", "pandas", "matplotlib", "scipy.stats", "onnx"})


@pytest.mark.long
def test_a_check_of_a_keras_model_imports_no_plots(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    modules = imported("check", "examples/keras_masking.py:classifier", "--max-length", "40")
    assert modules.isdisjoint({"matplotlib", "sklearn", "scipy.stats"})


@pytest.mark.long
def test_a_check_of_a_module_needs_no_exporter() -> None:
    modules = imported("check", "examples/masking.py:lengths_given", "--max-length", "40")
    assert "torch" in modules
    without = {"matplotlib", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors", "torch.onnx"}
    assert modules.isdisjoint(without)


def test_the_parent_of_several_workers_imports_no_server() -> None:
    with socket.socket() as taken:  # so it ends when it has imported all that it needs
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        modules = imported("serve", "--workers", "2", "--port", str(taken.getsockname()[1]), ends=2)
    assert "lengthwise.processes.supervisor" in modules
    assert modules.isdisjoint(("fastapi", "uvicorn", "uvloop", "lengthwise.serving", "lengthwise.application", *NEVER))


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "loaded"),
    [
        ("console=False", []),
        ("", ["lengthwise.console"]),
        ("verify_share=1", ["lengthwise.console", "lengthwise.monitoring"]),
    ],
    ids=["without them", "as it comes", "answers are checked"],
)
def test_a_service_loads_the_console_and_monitoring_where_they_are_on(options: str, loaded: list[str]) -> None:
    program = (
        f"import sys, lengthwise, lengthwise.processes.server; lengthwise.make_app(lengthwise.Settings({options})); "
        f"print([name for name in {OF_A_SERVICE} if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert told.stdout.strip() == str(loaded)
