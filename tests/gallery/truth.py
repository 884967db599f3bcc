"""Runs the tests of the galleries' truth, and records what they held for: `make truth`.

They prove the exhibits, not the product. So `make test` runs them only where the exhibits, or what runs the models, are
no longer those of the record.
"""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).parent
RECORD: Final = HERE / "truth.json"
TESTS: Final = tuple(sorted(HERE.glob("test_*_true.py")))
RUN_BY: Final = ("torch", "keras", "onnx", "onnxruntime")


def state() -> dict[str, str]:
    """What the truth depends on: the digest of the exhibits with their tests, and the versions of what runs them."""
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*.py")):
        if path in TESTS or not path.name.startswith(("test_", "truth.")):
            digest.update(path.relative_to(HERE).as_posix().encode() + b"\n" + path.read_bytes())
    versions = {name: version(name).partition("+")[0] for name in RUN_BY}
    return {"exhibits": digest.hexdigest(), **versions}


def is_recorded() -> bool:
    """Whether the tests were seen green on just this."""
    return RECORD.is_file() and json.loads(RECORD.read_text()) == state()


if __name__ == "__main__":
    code = pytest.main([*sys.argv[1:], "-m", "gallery or not gallery", *map(str, TESTS)])
    if code == 0:
        RECORD.write_text(json.dumps(state(), indent=2) + "\n")
    sys.exit(code)
