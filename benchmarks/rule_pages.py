"""Writes the pages of the rules of `check` and their tables. `python -m benchmarks.rule_pages`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.masking import written_into
from lengthwise_export.checking import page
from lengthwise_export.checking.rule import rules

FOLDER = Path(__file__).parents[1] / "docs" / "rules"


def pages() -> Iterator[tuple[Path, str]]:
    """Each page with its text."""
    index = FOLDER / "README.md"
    yield index, written_into(index.read_text(encoding="utf-8"), "rules", page.as_table().strip())
    for code, rule in rules().items():
        yield FOLDER / f"{code}.md", page.as_markdown(rule)


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
