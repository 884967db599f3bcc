"""The listed targets that a change of some files may change, for `lengthwise check --changed`, as pre-commit calls it.

A target depends on its own files, on its checkpoint, and on the modules of the repository that its code imports,
directly or not. What code reads or imports while it runs is not known here. A change of the list is one of all targets.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lengthwise_export.interface.project import FILE, ListedTarget, Project


def depending_targets(project: Project, files: Iterable[str], folder: Path) -> tuple[ListedTarget, ...]:
    """The targets of a project that changed files may change; the names of the files are relative to a folder."""
    changed = {(folder / file).resolve() for file in files}
    if (project.folder / FILE).resolve() in changed:
        return project.targets
    return tuple(one for one in project.targets if _depends_on(one, changed, project.folder.resolve()))


def _depends_on(listed: ListedTarget, changed: set[Path], folder: Path) -> bool:
    """Whether a target is one of the changed files, or imports one, directly or not."""
    paths = {(folder / path).resolve() for path in (listed.target, listed.options.checkpoint) if path is not None}
    if any(file in paths or not paths.isdisjoint(file.parents) for file in changed):
        return True
    where = listed.target.rpartition(":")[0]
    if not where:
        return False
    roots = [folder, folder / "src", *(Path(entry) for entry in sys.path if "site-packages" not in entry)]
    file = folder / where
    first = [file] if file.suffix == ".py" else [*_files_of_module(where, roots)]
    try:
        known = _imported(first, [file.parent, *roots], folder)
    except (OSError, SyntaxError, ValueError):
        known = set()
    # What cannot be read may import anything, and the check says what is wrong with it.
    return not changed.isdisjoint(known) if known else any(one.suffix == ".py" for one in changed)


def _imported(files: Sequence[Path], roots: Sequence[Path], folder: Path) -> set[Path]:
    """Files of a repository, with all files of it that they import, directly or not."""
    seen: set[Path] = set()
    waiting = [*files]
    while waiting:
        file = waiting.pop().resolve()
        if file not in seen and file.is_relative_to(folder):
            seen.add(file)
            waiting += _imports(file, roots)
    return seen


def _imports(file: Path, roots: Sequence[Path]) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from _files_of_module(name.name, roots)
        elif isinstance(node, ast.ImportFrom):
            below = [file.parents[node.level - 1]] if node.level else roots
            for name in node.names:
                yield from _files_of_module(".".join(filter(None, (node.module, name.name))), below)


def _files_of_module(name: str, roots: Sequence[Path]) -> Iterator[Path]:
    """The files that an import of a module runs: of the module, and of the packages around it."""
    for root in roots:
        path = root
        for part in name.split("."):
            path /= part
            yield from filter(Path.is_file, (path.with_suffix(".py"), path / "__init__.py"))
