"""A class name stands for one thing, in both packages together."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OF_THE_WIRE = {"http/schemas.py", "http/bodies.py"}
"""Their classes name the parts of `/openapi.json`, for clients."""
PACKAGES = (ROOT / "service" / "lengthwise", ROOT / "model_export" / "lengthwise_export")


def is_type_name(name: str) -> bool:
    """Whether a name is written as that of a class: `TypeName`, or `_TypeName`."""
    bare = name.lstrip("_")
    return bare[:1].isupper() and not bare.isupper() and "_" not in bare and any(map(str.islower, bare))


def defined(path: Path) -> Iterator[str]:
    """The classes and capitalised aliases (`Steps = NDArray[...]`) of a module; what it imports is not its own."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def modules_by_name() -> dict[str, list[str]]:
    """Every class name, with the modules that define one of that name."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            if path.stem.endswith("_pb2") or path.relative_to(package).as_posix() in OF_THE_WIRE:
                continue
            for name in filter(is_type_name, defined(path)):
                found[name].append(str(path.relative_to(package.parent)))
    return dict(found)


NAMES = modules_by_name()


def test_the_names_of_both_packages_are_collected() -> None:
    assert len(NAMES["Manifest"]) == len(NAMES["SequenceClassifier"]) == len(NAMES["Steps"]) == 1


def test_a_class_name_is_defined_once() -> None:
    twice = {name: places for name, places in NAMES.items() if len(places) > 1}
    assert twice == {}
