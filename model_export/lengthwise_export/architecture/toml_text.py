"""Writes a spec as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise_export.architecture.spec import Spec


def as_toml(spec: Spec, notes: Sequence[str] = ()) -> str:
    """The keys of a spec that differ from the defaults of this version or were given, as a file that `Spec.read` reads.

    Args:
        spec: The spec.
        notes: Lines of a comment at the top.
    """
    lines = [f"# {line}" for note in notes for line in (note.splitlines() or [""])]
    tables = spec.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    for name in ("input", "model", "output"):
        if not tables.get(name):
            continue
        lines += [""] if lines else []
        lines.append(f"[{name}]")
        lines += [f"{key} = {_value(value)}" for key, value in tables[name].items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], Mapping):
            return "[\n" + "".join(f"  {_value(one)},\n" for one in value) + "]"
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
