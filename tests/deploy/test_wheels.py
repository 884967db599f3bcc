"""What a package index takes: built, complete, and installed in environments that have nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import httpx2
import pytest

from lengthwise.bench.launch import free_port, running
from tests.deploy.tools import DEPLOY, ROOT, loaded, run
from tests.support.parts import PARTS, Part

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")
BODY = (ROOT / "examples" / "japanese-vowels.json").read_bytes()


def test_every_python_that_is_promised_is_named_and_tried() -> None:
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert tuple(named) == PYTHONS
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (tried,) = re.findall(r"python: \[(.+)\]", workflow)
    assert re.findall(r"3\.\d+", tried) == [*PYTHONS, "3.14"]  # the last one is not promised yet


def test_the_extra_that_serves_brings_the_files_of_the_page_of_calls() -> None:
    assert any(line.startswith("fastapi-offline") for line in PROJECT["optional-dependencies"]["serve"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("variables", "code"), [({}, 1), ({"LENGTHWISE_PURE": "1"}, 0)])
def test_a_build_in_which_a_module_does_not_compile_fails(variables: dict[str, str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "build_ext", "--force", "--build-lib", tmp_path, "--build-temp", tmp_path]
    said = run(command, env={"CC": "false", **variables}, good=(code,))
    assert ("LENGTHWISE_PURE=1" in said) is bool(code)
    assert not list(tmp_path.rglob("*.so"))


def test_a_wheel_without_a_module_is_not_published(tmp_path: Path) -> None:
    wheels = loaded(DEPLOY / "wheels.py")
    wheel = tmp_path / "lengthwise-0-py3-none-any.whl"
    for module in wheels.MODULES_IN_C:
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in set(wheels.MODULES_IN_C) - {module}:
                archive.writestr(name, "")
        with pytest.raises(SystemExit, match=Path(module).stem):
            wheels.check_compiled(wheel)


def test_every_source_in_c_is_compiled_into_a_module() -> None:
    sources = [path.relative_to(ROOT / "service") for path in (ROOT / "service").rglob("_*.c")]
    modules = [Path(name) for name in loaded(DEPLOY / "wheels.py").MODULES_IN_C]
    assert {source.parent for source in sources} == {module.parent for module in modules}
    setup = (ROOT / "setup.py").read_text()
    assert not [source for source in sources if f'"{source.stem}"' not in setup and str(source) not in setup]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source archive and both wheels."""
    folder = tmp_path_factory.mktemp("dist")
    source, compiled, pure = loaded(DEPLOY / "wheels.py").make(folder)
    return {"source": source, "compiled": compiled, "pure": pure}


def _contents(wheel: Path) -> dict[str, bytes]:
    """A wheel's files, without the record of its own making."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name) for name in archive.namelist() if not name.endswith(("/RECORD", "/WHEEL", "/"))
        }


@pytest.mark.deploy
def test_the_wheels_are_named_as_an_index_takes_them(made: dict[str, Path]) -> None:
    version = PROJECT["version"]
    assert made["source"].name == f"lengthwise-{version}.tar.gz"
    assert made["pure"].name == f"lengthwise-{version}-py3-none-any.whl"
    # 2.17: the glibc of the oldest distributions that are used; Amazon Linux 2 has 2.26, RHEL 8 has 2.28.
    platform = r"manylinux(2014|_2_17)_\S+" if sys.platform == "linux" else r"macosx\S+"
    assert re.fullmatch(rf"lengthwise-{version}-cp311-abi3-{platform}\.whl", made["compiled"].name)


@pytest.mark.deploy
def test_the_source_archive_gives_the_wheel_of_the_checkout(made: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    run(command, seconds=300)
    of_checkout, of_source, pure = (
        _contents(wheel) for wheel in (next(tmp_path.iterdir()), made["compiled"], made["pure"])
    )
    assert set(of_source) == set(of_checkout)
    libraries = {name for name in of_source if name.endswith(".so")}
    assert libraries == {"lengthwise/decoding/_fast_json.abi3.so", "lengthwise/runtime/kernels/_kernels.abi3.so"}
    assert {name for name in of_source if of_source[name] != of_checkout[name]} <= libraries
    assert set(pure) == set(of_source) - libraries


@pytest.mark.deploy
def test_the_address_of_the_repository_is_that_of_the_release(tmp_path: Path) -> None:
    # From a copy: a build writes its metadata beside the sources, where reports of this checkout would read the address
    source = tmp_path / "source"
    run(["git", "checkout-index", "--all", f"--prefix={source}/"], cwd=ROOT)
    for built in ROOT.glob("service/**/*.so"):
        shutil.copy(built, source / built.relative_to(ROOT))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "made", source]
    run(command, seconds=300, env={"LENGTHWISE_PURE": "1", "LENGTHWISE_PROJECT_URL": "https://code.example/team/it"})
    contents = _contents(next((tmp_path / "made").iterdir()))
    (metadata,) = [text.decode() for name, text in contents.items() if name.endswith("/METADATA")]
    assert "Project-URL: Source, https://code.example/team/it\n" in metadata
    assert [name for name in contents if name.endswith(".so")] == []  # though the checkout has them


def _interpreter(python: str) -> Path:
    """An interpreter of a version: in the path, or one of pyenv's."""
    of_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{python}"), *sorted(of_pyenv.glob(f"{python}.*/bin/python"))]
    for program in filter(None, found):
        # pyenv has programs in the path that only say which versions there are.
        if subprocess.run([program, "-m", "venv", "-h"], capture_output=True, check=False).returncode == 0:
            return Path(program)
    pytest.skip(f"Python {python} is not installed")


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("python", "kind"), [*((python, "compiled") for python in PYTHONS), (PYTHONS[-1], "pure"), ("3.11", "source")]
)
def test_it_serves_in_an_environment_that_has_nothing_else(
    made: dict[str, Path], python: str, kind: str, tmp_path: Path
) -> None:
    run([_interpreter(python), "-m", "venv", tmp_path / "venv"])
    programs = tmp_path / "venv" / "bin"
    wanted = f"lengthwise[serve,cpu] @ {made[kind].as_uri()}"
    run([programs / "python", "-m", "pip", "install", "--quiet", wanted], seconds=500, cwd=tmp_path)
    asked = (
        "from lengthwise.decoding import fast_json; from lengthwise.runtime import recurrent_kernels; "
        "print(fast_json.COMPILED, recurrent_kernels.COMPILED)"
    )
    assert run([programs / "python", "-P", "-c", asked], cwd=tmp_path).split() == [str(kind != "pure")] * 2
    # What messages tell the user to do adds to the installed package; no index has to know it.
    run([programs / "python", "-m", "pip", "install", "--quiet", "--no-index", "lengthwise[serve]"], cwd=tmp_path)
    port = free_port()
    with running([str(programs / "lengthwise"), "serve", "--port", str(port)], port):
        answer = httpx2.post(f"http://127.0.0.1:{port}/predict", content=BODY)
        assert [one["label"] for one in json.loads(answer.content)["predictions"]] == ["1", "3", "6"]
        assert httpx2.get(f"http://127.0.0.1:{port}/docs/swagger-ui.js").status_code == 200


@pytest.mark.deploy
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.does)
def test_a_part_runs_where_its_extras_are_installed(made: dict[str, Path], part: Part, tmp_path: Path) -> None:
    # uv links files of its cache: of torch, which three of the parts have, a copy is some gigabytes.
    uv, python = [sys.executable, "-m", "uv"], tmp_path / "venv" / "bin" / "python"
    run([*uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"])
    wanted = f"{made['compiled']}[{','.join(part.extras)}]".removesuffix("[]")
    run([*uv, "pip", "install", "--quiet", "--python", python, wanted, *part.beside], seconds=1800, cwd=tmp_path)
    installed = run([*uv, "pip", "list", "--quiet", "--python", python, "--format", "freeze"], only_output=True)
    names = {line.partition("==")[0].lower().replace("_", "-") for line in installed.splitlines()}
    assert names.isdisjoint({*part.lacks} - {*part.beside})
    assert run([python, "-P", "-c", part.program], cwd=tmp_path, seconds=300, only_output=True).split()[-1] == "good"
