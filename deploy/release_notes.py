"""Prints one version's section of the changelog: `python deploy/release_notes.py 1.2.3`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"


def section(changelog: str, version: str) -> str | None:
    """The text between a version's heading and the next heading; None if there is no such heading or no text."""
    found = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## \[|\Z)", changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() or None if found else None


if __name__ == "__main__":
    notes = section(CHANGELOG.read_text(), sys.argv[1].removeprefix("v"))
    if notes is None:
        sys.exit(f"error: CHANGELOG.md has no section [{sys.argv[1].removeprefix('v')}]; write it before tagging")
    print(notes)
