"""Which version may be the canary of another (`lengthwise.canary`)."""

from __future__ import annotations

from lengthwise.runtime.manifest import Manifest


def why_not(default: Manifest, canary: Manifest) -> str | None:
    """Why a version cannot be the canary of another; None if it can.

    A call is read for the default version, so both must take the same sequences and give the same kind of answer.
    """
    if default.long == "window" or canary.long == "window":
        return "a model that splits long sequences into windows can neither have nor be a canary"
    different = [
        name
        for name in ("labels", "task", "threshold", "missing", "min_length", "max_length", "long")
        if getattr(default, name) != getattr(canary, name)
    ]
    if _step(default) != _step(canary):
        different.append("input")
    if (default.graph.attention is None) != (canary.graph.attention is None):
        different.append("attention")
    return f"they differ in {', '.join(different)}" if different else None


def _step(manifest: Manifest) -> tuple[object, ...]:
    return (manifest.input.kind, manifest.input.features, manifest.input.vocabulary)
