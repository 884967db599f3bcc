"""An interpreter that has only what an installation with some extras brings.

What pyproject.toml asks for is followed through the requirements of the packages that are installed here. Every other
package is as if it were not installed.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

WITHOUT = """
import importlib.metadata, json, sys
class Hiding:
    modules, packages = map(frozenset, json.loads(sys.argv.pop(1)))
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.modules else self.finder.find_spec(name, path, target)
    def find_distributions(self, context):
        found = self.finder.find_distributions(context) if hasattr(self.finder, "find_distributions") else ()
        return (one for one in found if one.name not in self.packages)
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
"""Hides packages from an interpreter, as if they were not installed."""


@cache
def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def required(extras: Iterable[str]) -> Iterator[Requirement]:
    """What the package asks for with some extras, those of its own extras followed."""
    of_extras = (line for extra in extras for line in project()["optional-dependencies"][extra])
    for wanted in map(Requirement, (*project()["dependencies"], *of_extras)):
        if wanted.name == "lengthwise":
            yield from required(wanted.extras)
        else:
            yield wanted


def brought(extras: Iterable[str], *further: str) -> set[str]:
    """The distributions that an installation has, and further ones with all that they need."""
    found: set[str] = set()
    waiting = [*required(extras), *map(Requirement, further)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        found.add(key[0])
        try:
            lines = distribution(wanted.name).requires or []
        except PackageNotFoundError:  # such as the GPU's onnxruntime
            continue
        for line in map(Requirement, lines):
            if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")):
                waiting.append(line)
    return found


@cache
def _owners() -> Mapping[str, list[str]]:
    return packages_distributions()


def hidden(extras: Iterable[str], *further: str) -> tuple[list[str], list[str]]:
    """The modules that can be imported here and such an installation lacks, and the distributions that have them."""
    there = brought(extras, *further) | {"lengthwise"}
    lacking = {
        module: owners for module, owners in _owners().items() if there.isdisjoint(map(canonicalize_name, owners))
    }
    return [*lacking], sorted({owner for owners in lacking.values() for owner in owners})


def with_only(
    extras: Iterable[str], program: str, *words: str, beside: Iterable[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs a program, with further words, where only these extras are installed, and packages beside them."""
    command = [sys.executable, "-c", WITHOUT + program, json.dumps(hidden(extras, *beside)), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
