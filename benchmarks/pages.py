"""A result is a page: when, where and at which commit it was measured stands in its first line, then a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

RESULTS = machine.RESULTS


def require_clean(path: Path) -> None:
    """Ends the process where a page among the results would be of uncommitted sources: nobody could measure it so."""
    here = Path(__file__).parent
    if path.resolve().is_relative_to(here / RESULTS.name) and str(machine.described(here)).endswith("-dirty"):
        raise SystemExit(f"{path} must be of a commit: commit the changes first, or give a path elsewhere")


def stamp(facts: Mapping[str, Any]) -> str:
    """The first line of every page, of the facts of `machine.facts`."""
    commit = str(facts["commit"] or "unknown")
    clean = commit.removesuffix("-dirty")
    changes = "" if clean == commit else " with uncommitted changes"
    cores = f"{facts['cores']} core{'' if facts['cores'] == 1 else 's'}"
    return f"Measured at commit {clean}{changes} on {facts['date']}, on {facts['processor']}, {cores}."


def versions(facts: Mapping[str, Any]) -> str:
    """What else a figure depends on: Python, onnxruntime, and the load of the machine before."""
    return (
        f"Python {facts['python']}, onnxruntime {facts['packages']['onnxruntime']}; load average before: "
        f"{facts['load_average'][0]}."
    )


def page(facts: Mapping[str, Any], title: str, *parts: str) -> str:
    """A page of parts, one paragraph or table each."""
    return "\n\n".join((stamp(facts), f"# {title}", versions(facts), *parts)) + "\n"


def write(path: Path, text: str) -> None:
    """Writes a page, and its folder where there is none; refuses as `require_clean`."""
    require_clean(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines))


def first_table(path: Path) -> str:
    """The first table of a page, as it stands there."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith("| ")), None)
    if start is None:
        raise ValueError(f"{path} has no table")
    end = next((number for number in range(start, len(lines)) if not lines[number].startswith("|")), len(lines))
    return "\n".join(lines[start:end])
