"""Writes what `lengthwise check` says of each model of the galleries, and compares two such files.

    python -m tests.gallery.verdicts > before.jsonl      in the one commit, and > after.jsonl in the other
    python -m tests.gallery.verdicts before.jsonl after.jsonl

A line for each model: the verdict, the operators with their lines where leaks begin, the fixes, and the reason. What
differs between two files is printed; the exit code is 1 if a verdict, an operator or a line does.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from lengthwise.commands.cli import main
from tests.gallery.blind_index import BLIND, UNMENDABLE
from tests.gallery.index import (
    ONNX_LEAKING,
    ONNX_REFUSED,
    ONNX_SOUND,
    TORCH_LEAKING,
    TORCH_REFUSED,
    TORCH_SOUND,
    Exhibit,
)
from tests.gallery.keras_index import KERAS_BLIND, KERAS_LEAKING, KERAS_REFUSED, KERAS_SOUND
from tests.gallery.keras_trials import saved

TORCH = TORCH_LEAKING + TORCH_SOUND + TORCH_REFUSED
ONNX = ONNX_LEAKING + ONNX_SOUND + ONNX_REFUSED
KERAS = KERAS_LEAKING + KERAS_SOUND + KERAS_REFUSED + KERAS_BLIND
EVERY: tuple[Exhibit, ...] = TORCH + ONNX + KERAS + BLIND + UNMENDABLE


def judged(exhibit: Exhibit, folder: Path) -> dict[str, Any]:
    """What the command says of a model."""
    if exhibit in KERAS:
        target = exhibit.target if getattr(exhibit, "custom", False) else str(saved(exhibit, folder))  # type: ignore[arg-type]
    else:
        target = exhibit.target if exhibit.is_torch else str(exhibit.save(folder))
    words = ["check", target, *exhibit.options, "--max-length", "64", "--json"]
    result = CliRunner().invoke(main, words)
    said: dict[str, Any] = {"model": str(exhibit), "right": exhibit.verdict, "code": result.exit_code}
    if result.stdout.startswith("{"):
        report = json.loads(result.stdout)
        leaks = [[leak["operator"], leak["line"]] for leak in report["leaks"]]
        said |= {"verdict": report["verdict"], "leaks": leaks, "reason": report["reason"]}
        return said | {"fixes": [leak["fix"] for leak in report["leaks"]], "notes": report["notes"]}
    return said | {"verdict": "refused", "leaks": [], "reason": result.stderr.replace(str(folder), "")}


def written(path: str) -> dict[str, dict[str, Any]]:
    """The lines of a file, by model."""
    lines = map(json.loads, Path(path).read_text().splitlines())
    return {line["model"]: line for line in lines}


def differences(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """What differs, each with the field that does."""
    for model in before.keys() | after.keys():
        one, other = before.get(model, {}), after.get(model, {})
        for field in ("verdict", "code", "leaks", "reason", "fixes"):
            if one.get(field) != other.get(field):
                yield (
                    field,
                    f"{model} (right: {(one or other)['right']}) {field}: {one.get(field)} -> {other.get(field)}",
                )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        apart = sorted(differences(*map(written, sys.argv[1:])))
        print(*(line for _, line in apart), sep="\n")
        sys.exit(any(field in ("verdict", "code", "leaks") for field, _ in apart))
    for exhibit in EVERY:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(judged(exhibit, Path(folder))), flush=True)
