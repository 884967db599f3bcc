"""Finds the listed targets that depend on changed files, for `lengthwise check --changed`, as pre-commit calls it.

A target depends on its own files, on its checkpoint, and on the modules of the repository that its code imports,
directly or not. What code reads or imports while it runs is not known here. If the pyproject.toml that lists the
targets changes, all of them do.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lengthwise_export.interface.project import FILE, ListedTarget, Project


def depending_targets(project: Project, files: Iterable[str], folder: Path) -> tuple[ListedTarget, ...]:
    """The targets of a project that depend on changed files; `files` are their paths, relative to `folder`."""
    changed = {(folder / file).resolve() for file in files}
    if (project.folder / FILE).resolve() in changed:
        return project.targets
    return tuple(listed for listed in project.targets if _depends_on(listed, changed, project.folder.resolve()))


def _depends_on(listed: ListedTarget, changed: set[Path], folder: Path) -> bool:
    """Whether a target, or its checkpoint, is one of the changed files or a folder of one, or imports one.

    `changed` are absolute paths, `folder` is that of the repository. A target whose imports cannot be read depends on
    every changed Python file.
    """
    paths = {(folder / path).resolve() for path in (listed.target, listed.options.checkpoint) if path is not None}
    if any(file in paths or not paths.isdisjoint(file.parents) for file in changed):
        return True
    module_or_file = listed.target.rpartition(":")[0]
    if not module_or_file:
        return False
    roots = [folder, folder / "src", *(Path(entry) for entry in sys.path if "site-packages" not in entry)]
    file = folder / module_or_file
    own_files = [file] if file.suffix == ".py" else [*_module_files(module_or_file, roots)]
    try:
        imported_files = _with_imports(own_files, [file.parent, *roots], folder)
    except (OSError, SyntaxError, ValueError):
        imported_files = set()
    # Code that cannot be read may import anything, and the check says what is wrong with it.
    return (
        not changed.isdisjoint(imported_files)
        if imported_files
        else any(changed_file.suffix == ".py" for changed_file in changed)
    )


def _with_imports(files: Sequence[Path], roots: Sequence[Path], folder: Path) -> set[Path]:
    """Those of some files that are in a folder, and all files in it that they import, directly or not.

    `roots` are the folders in which packages are looked for.
    """
    imported_files: set[Path] = set()
    unread_files = [*files]
    while unread_files:
        file = unread_files.pop().resolve()
        if file not in imported_files and file.is_relative_to(folder):
            imported_files.add(file)
            unread_files += files_imported_by(file, roots)
    return imported_files


def files_imported_by(file: Path, roots: Sequence[Path]) -> Iterator[Path]:
    """Yields the files that a file imports itself. A name that it imports may be a module of a package.

    Args:
        file: a Python file.
        roots: the folders in which packages are looked for.
    """
    for node in _statements_that_run(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from _module_files(name.name, roots)
        elif isinstance(node, ast.ImportFrom):
            below = [file.parents[node.level - 1]] if node.level else roots
            for name in node.names:
                yield from _module_files(".".join(filter(None, (node.module, name.name))), below)


def _statements_that_run(tree: ast.Module) -> Iterator[ast.AST]:
    """Yields the statements of a module, those in others too, without what only a type checker reads."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in (getattr(node.test, name, "") for name in ("id", "attr")):
            nodes += node.orelse
        elif not isinstance(node, ast.expr):
            yield node
            nodes += ast.iter_child_nodes(node)


def _module_files(name: str, roots: Sequence[Path]) -> Iterator[Path]:
    """Yields the files that an import of a module runs, as far as they exist: its own, and those of its packages."""
    for root in roots:
        path = root
        for part in name.split("."):
            path /= part
            yield from filter(Path.is_file, (path.with_suffix(".py"), path / "__init__.py"))
