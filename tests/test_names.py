"""A class name stands for one thing, in both packages together, and public names have no private words."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "service" / "lengthwise", ROOT / "model_export" / "lengthwise_export")


def test_a_class_name_is_defined_once() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            names = r"^(?:class (?=\w+[(:])|(?=\w+(?:: \w+)? = ))(_?[A-Z]\w*[a-z]\w*)"
            for name in re.findall(names, path.read_text(), re.MULTILINE):
                found[name].append(str(path.relative_to(ROOT)))
    assert len(found["Manifest"]) == len(found["SequenceClassifier"]) == len(found["Steps"]) == 1
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


PRIVATE_WORDS = {
    "told",
    "said",
    "found",
    "given",
    "held",
    "made",
    "kept",
    "wanted",
    "place",
    "places",
    "judged",
    "quick",
}
"""Participles and fillers, each of which stood for many things, and words that lost against another one."""
WORDS_OF_OTHERS = {
    "ModelNotFound": "as 404 is called",
    "NotFound": "a pattern that is not found",
    "connection_made": "asyncio's",
    "Manifest.made": "a key of `manifest.json`",
}


def words_of(name: str) -> set[str]:
    return {word.lower() for part in name.split("_") for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", part)}


def public_names(node: ast.AST, owner: str = "") -> Iterator[tuple[str, str]]:
    """Public classes, their attributes, functions and their parameters: where each is, and its name."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.AnnAssign) and owner and isinstance(part.target, ast.Name):
            yield f"{owner}{part.target.id}", part.target.id
        if not isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or part.name.startswith("_"):
            continue
        yield part.name, part.name
        if isinstance(part, ast.ClassDef):
            yield from public_names(part, f"{part.name}.")
        else:
            every = [*part.args.posonlyargs, *part.args.args, *part.args.kwonlyargs, part.args.vararg, part.args.kwarg]
            yield from ((f"{owner}{part.name}({one.arg})", one.arg) for one in every if one is not None)


def test_no_private_word_is_in_a_public_name() -> None:
    """The glossary of ARCHITECTURE.md has the words of this project; the others are the field's."""
    names = [
        (f"{path.name}: {where}", where, name)
        for folder in PACKAGES
        for path in sorted(folder.rglob("*.py"))
        for where, name in public_names(ast.parse(path.read_text()))
        if not name.startswith("_")
    ]
    assert len(names) > 5000
    assert [at for at, where, name in names if words_of(name) & PRIVATE_WORDS and where not in WORDS_OF_OTHERS] == []
    assert {*WORDS_OF_OTHERS} <= {where for _, where, _ in names}


def test_the_words_of_a_name_are_told_apart() -> None:
    assert words_of("kept_AliveHTTPTold2") == {"kept", "alive", "http", "told2"}
    tree = ast.parse("class A:\n    held: int\n    def f(self, *given): ...\ndef _private(place): ...")
    assert [where for where, _ in public_names(tree)] == ["A", "A.held", "f", "A.f(self)", "A.f(given)"]
