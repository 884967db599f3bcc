"""Model directories for tests of what reads them: the bundled model under other names, good or spoilt."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.batching.limits import BatchLimits
from lengthwise.repository import verifier
from lengthwise.runtime.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE, VERIFICATION_FILE, Manifest, digest
from lengthwise.settings import bundled_models
from lengthwise.verification import measurement
from lengthwise.verification.golden import Golden
from tests.support import prepared

BUNDLED = bundled_models() / "japanese-vowels" / "1"
LIMITS = BatchLimits(rows=4, padded_steps=256)


def measure_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has costs measured in no time, and promises with 20 sequences for 160: a load takes some ten milliseconds."""
    monkeypatch.setattr(measurement, "MANY_SEQUENCES", 20)
    measure_costs_quickly(monkeypatch)


def measure_costs_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has costs measured in no time, which takes a second of a load otherwise."""
    measure = verifier.measure_cost
    monkeypatch.setattr(
        verifier,
        "measure_cost",
        lambda *arguments, **options: measure(*arguments, **options | {"budget_seconds": 0.01}),
    )


def place(
    folder: Path, name: str = "vowels", version: int = 1, *, proved: bool = True, timed: bool = False, **fields: Any
) -> Path:
    """A good model directory: the bundled one under another name, published by rename; replaces what stood there.

    Where it is `proved`, its promise is beside it, as after a first load; a load without one takes half a second more.
    Where it is `timed`, so are its costs, which a process of its own would measure for as long.
    """
    directory, aside = folder / name / str(version), folder / f".{name}-{version}"
    left_out = [name for name in prepared.KEPT if not (timed if name in prepared.TIMED else proved)]
    shutil.copytree(BUNDLED, aside, ignore=shutil.ignore_patterns(*left_out))
    sign(aside, name=name, version=version, **fields)
    directory.parent.mkdir(exist_ok=True, parents=True)
    if directory.exists():
        shutil.rmtree(directory)
    aside.rename(directory)
    return directory


def sign(directory: Path, **fields: Any) -> None:
    """Changes the manifest, and makes its digests those of the files there."""
    manifest = json.loads((directory / MANIFEST_FILE).read_text()) | fields
    manifest["digests"] = {
        name: digest(directory / name)
        for name in (GRAPH_FILE, GOLDEN_FILE, VERIFICATION_FILE)
        if (directory / name).is_file()
    }
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest))


def tamper_with_golden(directory: Path) -> None:
    """Makes the golden sequences expect other logits than the graph gives, under digests that hold."""
    manifest = Manifest.read(directory)
    golden = Golden.read(directory / GOLDEN_FILE, manifest)
    Golden(golden.sequences, tuple(logits + np.float32(0.1) for logits in golden.logits)).write(directory / GOLDEN_FILE)
    sign(directory)
