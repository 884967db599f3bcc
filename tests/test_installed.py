"""A wheel in an environment of its own, beside packages of the user's called as folders of this repository are."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import httpx2
import pytest

import lengthwise
from lengthwise.bench.launch import free_port, running
from tests.support.parts import MODULE

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long  # a wheel, and an environment of its own
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BUILT_FROM = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
SOURCES = {
    "lengthwise": ROOT / "service" / "lengthwise",
    "lengthwise_export": ROOT / "model_export" / "lengthwise_export",
}

MODEL = MODULE + "\n\ndef make():\n    return Mean()\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel without modules in C, built from a copy: a build writes beside its sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("service", "model_export"):
        left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=left_out)
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, source)
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    environment = {**os.environ, "LENGTHWISE_PURE": "1"}
    subprocess.run([*pip, "--wheel-dir", folder, source], env=environment, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel, and with what it depends on, but not with this checkout."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    (site,) = environment.glob("lib/python*/site-packages")
    # What is beside the packages there stays out: links and finders to this checkout stand in .pth files of their own.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return environment / "bin"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user works, with packages that fail where anything but the user imports them."""
    for name in ("model_export", "bench", "protocols"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('the user has not imported {name}')\n")
    for name in ("service", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "models.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    for variable in ("PYTHONPATH", "PYTHONSAFEPATH"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_installs_two_packages_and_nothing_else(wheel: Path) -> None:
    names = [PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()]
    assert {name.parts[0] for name in names} == {*SOURCES, f"lengthwise-{VERSION}.dist-info"}
    described = {name.name for name in names if name.parts[0].endswith(".dist-info")}
    assert described == {"METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt", "top_level.txt"}


@pytest.mark.parametrize("package", SOURCES)
def test_a_wheel_has_every_file_of_a_package(wheel: Path, package: str) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if PurePosixPath(name).parts[0] == package}
    source = SOURCES[package]
    files = (path.relative_to(source.parent) for path in source.rglob("*") if path.is_file())
    expected = {path.as_posix() for path in files if path.suffix not in (".so", ".pyc")}
    assert held == expected
    assert {PurePosixPath(name).suffix for name in held} <= {
        *(".py", ".pyi", ".typed", ".c", ".h", ".proto", ".toml"),
        *(".json", ".jsonl", ".onnx", ".npz", ".binpb", ".md"),
        *(".css", ".html", ".js", ".svg"),
    }
    public = "lengthwise_export/testing/"  # what users' tests import
    assert not [name for name in held if "test" in name.rpartition("/")[2] and not name.startswith(public)]


def test_the_environment_has_the_wheel_and_not_the_checkout(programs: Path, folder: Path) -> None:
    asked = (
        "import lengthwise, lengthwise_export, sys; print(lengthwise.__file__, lengthwise_export.__file__, sys.path)"
    )
    told = run(programs / "python", "-c", asked)
    files = told.split()[:2]
    assert all(file.startswith(str(programs.parent)) for file in files)
    assert f"{ROOT / 'service'}'" not in told


def test_every_way_to_ask_says_the_same_version(programs: Path, folder: Path) -> None:
    said = f"lengthwise, version {VERSION}\n"
    assert run(programs / "lengthwise", "--version") == said
    assert run(programs / "python", "-m", "lengthwise", "--version") == said
    asked = "import lengthwise, lengthwise_export as e; print(lengthwise.__version__, e.__version__)"
    assert run(programs / "python", "-c", asked) == f"{VERSION} {VERSION}\n"
    assert lengthwise.__version__ == VERSION


@pytest.mark.parametrize("command", ["serve", "check"])
def test_help_is_given_beside_the_users_packages(programs: Path, folder: Path, command: str) -> None:
    assert run(programs / "python", "-m", "lengthwise", command, "--help").startswith("Usage: lengthwise ")


def test_arrays_are_answered_beside_the_users_packages(programs: Path, folder: Path) -> None:
    asked = (
        "import lengthwise, service.models, tests.models; "
        "print(lengthwise.load(threads=1).predict([[[0.0] * 12] * 5])[0].length)"
    )
    assert run(programs / "python", "-c", asked) == "5\n"


def test_pytest_has_the_marks_of_an_installed_wheel(programs: Path, folder: Path) -> None:
    test = "\n\n@pytest.mark.padding_safe(max_length=20)\ndef test_padding():\n    return make()\n"
    (folder / "test_mine.py").write_text("import pytest\n" + MODEL + test)
    words = ("-q", "--strict-markers", "-p", "no:asyncio", "--rootdir=.", "test_mine.py")
    assert "1 passed" in run(programs / "python", "-m", "pytest", *words)


@pytest.mark.parametrize("package", ["service", "tests"])
def test_a_users_module_is_checked_exported_and_served(programs: Path, folder: Path, package: str) -> None:
    target = f"{package}.models:make"
    report = json.loads(run(programs / "lengthwise", "check", target, "--max-length", 40, "--json"))
    assert report["verdict"] == "sound"
    by_module = run(programs / "python", "-m", "lengthwise", "check", target, "--max-length", 40, "--json")
    assert json.loads(by_module) == report
    run(programs / "lengthwise", "export", target, "--out", "models/mean", "--labels", "no,yes", "--max-length", 40)
    port = free_port()
    # A process of its own verifies the model: it too starts beside the user's packages.
    with running([str(programs / "lengthwise"), "serve", "models", "--port", str(port)], port):
        answer = httpx2.post(
            f"http://127.0.0.1:{port}/predict", json={"sequences": [[[1, 2, 3]], [[4, 5, 6], [7, 8, 9]]]}
        )
    assert [prediction["length"] for prediction in answer.json()["predictions"]] == [1, 2]


def test_the_bundled_model_is_served_beside_the_users_packages(programs: Path, folder: Path) -> None:
    body = (ROOT / "examples" / "japanese-vowels.json").read_bytes()
    port = free_port()
    with running([str(programs / "python"), "-m", "lengthwise", "serve", "--port", str(port)], port):
        answer = httpx2.post(f"http://127.0.0.1:{port}/predict", content=body)
    assert [prediction["label"] for prediction in answer.json()["predictions"]] == ["1", "3", "6"]
