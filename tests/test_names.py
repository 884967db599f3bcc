"""A class name stands for one thing, in both packages together."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "service" / "lengthwise", ROOT / "model_export" / "lengthwise_export")

STILL_TWICE: frozenset[str] = frozenset(
    {
        "Answer",  # lengthwise/runtime/answers, lengthwise/verification/proof
        "Connection",  # lengthwise/bench/connection, lengthwise/connections/draining
        "Draining",  # lengthwise/connections/draining, lengthwise/errors
        "Encode",  # lengthwise/protocols/endpoint, lengthwise/protocols/grpc_codec
        "Entry",  # lengthwise/protocols/inventory, lengthwise/scoring/records
        "Form",  # lengthwise/bench/trial, lengthwise/decoding/validation, lengthwise/protocols/tensors
        "Load",  # lengthwise/bench/trial, lengthwise/runtime/device_memory, lengthwise/runtime/installation
        "Node",  # lengthwise/runtime/onnx_graph, lengthwise/runtime/placement
        "Options",  # lengthwise/bench/tune, lengthwise/decoding/options
        "Output",  # lengthwise/protocols/request_parameters, lengthwise/runtime/session
        "Run",  # lengthwise/batching/cost, lengthwise/batching/queues, lengthwise/scoring/command
        "Schema",  # lengthwise/protocols/body_documents, lengthwise/protocols/documents
        "ServedModel",  # lengthwise/bench/launch, lengthwise/serving
        "Taken",  # lengthwise/batching/execution, lengthwise/scoring/records
        "Target",  # lengthwise/bench/connection, lengthwise_export/targets/target
        "Task",  # lengthwise/repository/judge_process, lengthwise/runtime/manifest
        "Trial",  # lengthwise/bench/trial, lengthwise/verification/proof
        "_Kept",  # lengthwise/batching/cost, lengthwise/repository/judge_child
    }
)
"""Names that still stand for several things, all in the service, with their modules. Remove a name here when it is
renamed; the list must become empty."""


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
            if path.stem.endswith("_pb2"):
                continue
            for name in filter(is_type_name, defined(path)):
                found[name].append(str(path.relative_to(package.parent)))
    return dict(found)


NAMES = modules_by_name()


def test_the_names_of_both_packages_are_collected() -> None:
    assert len(NAMES["Manifest"]) == len(NAMES["SequenceClassifier"]) == len(NAMES["Steps"]) == 1


def test_a_class_name_is_defined_once() -> None:
    twice = {name: places for name, places in NAMES.items() if len(places) > 1 and name not in STILL_TWICE}
    assert twice == {}


@pytest.mark.parametrize("name", sorted(STILL_TWICE))
def test_a_name_that_was_renamed_leaves_the_list(name: str) -> None:
    assert len(NAMES.get(name, [])) > 1
