"""The model repository: which models there are, which are good, and which one a request means.

A model directory is served only after its own proof: its manifest is read, its digests are compared, its recorded
verification is looked through, its graph is loaded, its golden sequences are run, and its costs are measured. A
version that fails is left out with the reason; the highest good version of a name is its default, and a repository with
one name needs no name in a request.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from service import answers, golden
from service.answers import Answer
from service.cost import CostTable, measure
from service.errors import (
    ConfigurationError,
    ModelError,
    ModelNotFound,
    NotReady,
    VerificationError,
)
from service.manifest import GOLDEN_FILE, VERIFICATION_FILE, Manifest
from service.padding import PaddedBatch, Steps, pad, rounded_width
from service.plan import BatchLimits
from service.session import Output, Session

log = logging.getLogger("lengthwise.repository")


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model that passed its proof and can be run.

    Attributes:
        manifest: What it wants and answers.
        session: Its graph.
        cost: What its batches cost here.
    """

    manifest: Manifest
    session: Session
    cost: CostTable

    def answer(self, batch: PaddedBatch, attention: bool) -> list[Answer | None]:
        """Runs a batch: one answer for each row, or None for a row whose logits are not finite."""
        wanted: tuple[Output, ...] = ("logits", "attention") if attention else ("logits",)
        return answers.score(self.session.run(batch, wanted), batch.lengths, self.manifest)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that is not served, and why."""

    path: str
    reason: str


@dataclass(slots=True)
class Repository:
    """The models of one folder.

    Attributes:
        models: By name, and by version.
        refused: What is in the folder and not served.
    """

    models: dict[str, dict[int, Model]] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)

    def __iter__(self) -> Iterator[Model]:
        """All good models, by name and ascending version."""
        for name in sorted(self.models):
            for version in sorted(self.models[name]):
                yield self.models[name][version]

    def find(self, name: str | None, version: str | None) -> Model:
        """The model that a request means.

        Args:
            name: Or None, where there is one name only.
            version: Its digits, or None for the highest.

        Raises:
            NotReady: There is no good model at all.
            ModelNotFound: There is none of that name or version, or several names and none was said.
        """
        if not self.models:
            raise NotReady("no model is ready", retry_after_seconds=5)
        if name is None:
            if len(self.models) > 1:
                raise ModelNotFound(f"say which 'model': {', '.join(sorted(self.models))}")
            name = next(iter(self.models))
        versions = self.models.get(name)
        if versions is None:
            raise ModelNotFound("no such model is served")
        if version is None:
            return versions[max(versions)]
        # A version of more digits than any file system has cannot be one; int() of it would be slow or refused.
        model = versions.get(int(version)) if len(version) < 20 else None
        if model is None:
            raise ModelNotFound(f"the model {name!r} has no such version")
        return model


def open_repository(folder: Path, limits: BatchLimits) -> Repository:
    """Loads and proves every version in a repository.

    Args:
        folder: Holds `NAME/VERSION/` directories.
        limits: What one batch may be; bounds what is measured.

    Raises:
        ConfigurationError: The folder cannot be read.
    """
    repository = Repository()
    for directory in _versions(folder):
        shown = f"{directory.parent.name}/{directory.name}"
        try:
            model = load(directory, limits)
        except ModelError as error:
            log.error("%s is not served: %s", shown, error)
            repository.refused.append(Refusal(shown, str(error)))
            continue
        repository.models.setdefault(model.manifest.name, {})[model.manifest.version] = model
        log.info("%s is ready on %s", model.manifest.key, model.session.provider)
    return repository


def load(directory: Path, limits: BatchLimits) -> Model:
    """One model directory, proved and measured.

    Raises:
        ModelError: It must not be served; says why.
    """
    manifest = Manifest.read(directory)
    if (manifest.name, str(manifest.version)) != (directory.parent.name, directory.name):
        raise ModelError(f"the manifest is of {manifest.key}, the folder says {directory.parent.name}/{directory.name}")
    manifest.check_digests(directory)
    _check_verification(directory, manifest)
    session = Session.load(directory, manifest)
    expected = golden.Golden.read(directory / GOLDEN_FILE, manifest)
    try:
        golden.check(session, expected, manifest)
        return Model(manifest, session, measure_cost(session, manifest, limits))
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ModelError(f"{manifest.key}: the graph cannot be run here: {error}") from error


def measure_cost(
    session: Session, manifest: Manifest, limits: BatchLimits, *, budget_seconds: float = 0.4
) -> CostTable:
    """The cost table of a session, measured with sequences of zeros: padding, run and scoring."""
    multiple = manifest.width_multiple

    def run(rows: int, width: int) -> None:
        tokens = manifest.input.kind == "tokens"
        length = min(width, manifest.max_length)
        shape = (length,) if tokens else (length, manifest.input.features or 1)
        steps: Steps = np.zeros(shape, dtype=np.int64) if tokens else np.zeros(shape, dtype=np.float32)
        batch = pad([steps] * rows, multiple=multiple)
        answers.score(session.run(batch), batch.lengths, manifest)

    return measure(
        run,
        max_rows=limits.rows,
        max_width=rounded_width(manifest.max_length, multiple),
        max_cost_steps=limits.cost_steps,
        multiple=multiple,
        budget_seconds=budget_seconds,
    )


def _versions(folder: Path) -> Sequence[Path]:
    """Every `NAME/VERSION` directory, in order; what is no positive integer is no version."""
    try:
        names = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        found = [
            version for name in names for version in name.iterdir() if version.is_dir() and _is_version(version.name)
        ]
    except OSError as error:
        raise ConfigurationError(f"the model repository {folder} cannot be read: {error.strerror}") from error
    return sorted(found, key=lambda path: (path.parent.name, int(path.name)))


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and not name.startswith("0") and len(name) < 10


def _check_verification(directory: Path, manifest: Manifest) -> None:
    """Looks through the recorded proof: it must be there, be the one that was published, and hold.

    Raises:
        VerificationError: It does not.
    """
    if VERIFICATION_FILE not in manifest.digests or GOLDEN_FILE not in manifest.digests:
        raise VerificationError(f"{manifest.key}: the manifest has no digest of {VERIFICATION_FILE} or {GOLDEN_FILE}")
    try:
        recorded: Any = json.loads((directory / VERIFICATION_FILE).read_bytes())
        failed = [str(case["name"]) for case in recorded["cases"] if case["holds"] is not True]
        count = len(recorded["cases"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerificationError(f"{manifest.key}: {VERIFICATION_FILE} cannot be read: {error!r}") from error
    if failed or not count:
        what = f"its cases failed: {', '.join(failed[:5])}" if failed else "it has no case"
        raise VerificationError(f"{manifest.key}: the recorded proof does not hold: {what}")
