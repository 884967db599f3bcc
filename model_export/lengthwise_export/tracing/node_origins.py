"""Tells where a node of a graph comes from: the line of the user's code, and the path of the module.

torch's exporter writes both into the metadata of each node. The nodes of an ONNX file from elsewhere may have none, or
lines of code on another machine, so only graphs that this package has built are asked for their lines.
"""

from __future__ import annotations

import ast
from typing import Final

import onnx

from lengthwise_export.tracing.source_lines import CodeLocation, location_in

_STACK: Final = "pkg.torch.onnx.stack_trace"
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_NAMESPACE: Final = "namespace"
_EXPORTER: Final = "torch/"
"""How torch's exporter begins the path of its own code, for nodes that only compute sizes."""
_WRAPPED: Final = "model"
"""The attribute of the traced wrapper that holds the user's module; see `capture`."""


def location_of_node(node: onnx.NodeProto) -> CodeLocation | None:
    """The line of the user's code that a node computes; None if its metadata does not tell."""
    location = location_in(_metadata(node, _STACK))
    return None if location is None or location.file.startswith(_EXPORTER) else location


def operator_name(node: onnx.NodeProto) -> str:
    """`module.path: kind` of a traced node, or `kind` outside of an inner module; for other nodes their own names."""
    path = _module_path(node)
    if path is None:
        return node.name or f"{node.op_type} giving {node.output[0]}"
    return f"{path}: {node.op_type}" if path else node.op_type


def is_translation_of(node: onnx.NodeProto, operator: str) -> bool:
    """Whether a traced node belongs to the translation of an operator of torch, such as `sort.stable`."""
    return operator in _metadata(node, _NAMESPACE)


def _module_path(node: onnx.NodeProto) -> str | None:
    """The path of the innermost module that the node belongs to; None if its metadata does not tell."""
    try:
        scopes = ast.literal_eval(_metadata(node, _SCOPES) or "None")
    except (SyntaxError, ValueError):
        return None
    if not isinstance(scopes, list):
        return None
    # The last scope is the node itself, those before it are modules.
    modules = [scope for scope in scopes[:-1] if isinstance(scope, str) and scope.partition(".")[0] == _WRAPPED]
    return modules[-1].partition(".")[2] if modules else None


def _metadata(node: onnx.NodeProto, key: str) -> str:
    return next((entry.value for entry in node.metadata_props if entry.key == key), "")
