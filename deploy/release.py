"""The version of a release, and what is published of it.

`python deploy/release.py version 0.3.0` writes the next version wherever the current one stands, and cuts its section
of the changelog. `python deploy/release.py check v0.3.0` ends with 1 where a tag is not of this version or has no
section.
`python deploy/release.py list v0.3.0` writes the checksums of `dist`, and says what is published where.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = ("*.toml", "*.md", "*.yml", "*.yaml", "*.cff")
OTHERS = ("CHANGELOG.md", "benchmarks/", "docs/upgrading.md", "runs/")
"""What may name another version than the current one."""
_NUMBER = r"(?:0|[1-9][0-9]*)"


def current() -> str:
    """The version of `pyproject.toml`: the one place that every other one follows."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def section(changelog: str, version: str) -> str | None:
    """The text between a version's heading and the next heading; None if there is no such heading or no text."""
    match = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## \[|\Z)", changelog, re.MULTILINE | re.DOTALL)
    return match[1].strip() or None if match else None


def mentions(version: str) -> Iterator[Path]:
    """The files that name this version of Lengthwise."""
    tracked = subprocess.run(["git", "ls-files", *PAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        if not name.startswith(OTHERS) and _mention(version).search((ROOT / name).read_text("utf-8")):
            yield ROOT / name


def _mention(version: str) -> re.Pattern[str]:
    # The value of a key, the tag of an image, the name of a wheel, the tag of a repository that a hook or an action is
    # taken from; not what Lengthwise needs, `library>=0.2.0`.
    before = r"""(?:^|[\s{,/"])(?:appV|v)ersion"?\s*[:=]\s*"?|[/ `]lengthwise[:-]|/lengthwise@v|rev: v"""
    return re.compile(rf"({before}){re.escape(version)}(?![\d.]*\d)", re.MULTILINE)


def write_version(version: str) -> None:
    """Replaces the current version by another one, and cuts the changelog.

    Raises:
        SystemExit: It is no version, not a later one, or nothing has changed since the last one.
    """
    before = current()
    if not re.fullmatch(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}", version) or _numbers(version) <= _numbers(before):
        sys.exit(f"error: the next version has three numbers and is above {before}, got {version}")
    changelog = CHANGELOG.read_text("utf-8")
    if section(changelog, "Unreleased") is None or "## [Unreleased]\n" not in changelog:
        sys.exit("error: CHANGELOG.md has nothing under [Unreleased]: there is nothing to release")
    for file in [*mentions(before)]:
        text = file.read_text("utf-8")
        file.write_text(_mention(before).sub(rf"\g<1>{version}", text), "utf-8")
        print(file.relative_to(ROOT))
    cut = f"## [Unreleased]\n\n## [{version}] - {datetime.datetime.now(datetime.UTC).date()}\n"
    CHANGELOG.write_text(changelog.replace("## [Unreleased]\n", cut, 1), "utf-8")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def check(tag: str) -> str:
    """The section of the changelog for a tag.

    Raises:
        SystemExit: The tag is of another version, or the changelog has no section for it.
    """
    version = tag.removeprefix("v")
    if version != current():
        sys.exit(f"error: the tag {tag} is not of the version {current()}: make version NEW={version}, and commit")
    notes = section(CHANGELOG.read_text("utf-8"), version)
    if notes is None:
        sys.exit(f"error: CHANGELOG.md has no section [{version}]; write it before tagging")
    return notes


def listed(folder: Path = DIST) -> list[Path]:
    """The files of a release, with their checksums in `SHA256SUMS` beside them.

    Raises:
        SystemExit: One is missing, or one is of another version.
    """
    version = re.compile(rf"lengthwise-{re.escape(current())}(?:-.*\.whl|\.tar\.gz|\.tgz)")
    others = sorted(file.name for file in folder.glob("lengthwise-*") if not version.fullmatch(file.name))
    if others:
        sys.exit(f"error: {folder} has files of another version, which would be published: remove {', '.join(others)}")
    wanted = {
        "the source": "lengthwise-*.tar.gz",
        "a wheel with the modules in C": "lengthwise-*-abi3-*.whl",
        "the wheel of every platform": "lengthwise-*-none-any.whl",
        "the chart": "lengthwise-*.tgz",
        "the site": "site.zip",
    }
    missing = [what for what, pattern in wanted.items() if not [*folder.glob(pattern)]]
    if missing:
        sys.exit(f"error: {folder} lacks {', '.join(missing)}")
    files = sorted(
        {*(file for pattern in wanted.values() for file in folder.glob(pattern)), *folder.glob("sbom*.json")}
    )
    sums = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (folder / "SHA256SUMS").write_text("".join(sums))
    return files


if __name__ == "__main__":
    command, argument = "".join(sys.argv[1:2]), " ".join(sys.argv[2:])  # a tag may have blanks, and is then a wrong one
    if command not in ("version", "check", "list"):
        sys.exit(f"error: the commands are version, check and list, got {command!r}")
    if command == "version":
        write_version(argument)
    elif command == "check":
        print(check(argument))
    else:
        (DIST / "notes.md").write_text(check(argument) + "\n", "utf-8")
        print(*(f"{file.stat().st_size:>12,}  {file.name}" for file in listed()), sep="\n")
