"""Looks through a model repository and says what is served of it from now on.

A scan starts from what the last one found. What has not changed is not touched: a good version goes on with its
session, a refused one is not judged again. What is new, or looks otherwise than when it was judged, is loaded and
proved beside what runs; if it is good it takes its place, and if not, what ran goes on. So a directory that is still
being copied is refused until it is whole, and a bad version never costs a good one its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ConfigurationError, ModelError, NotJudged
from lengthwise.repository import judging, loading
from lengthwise.repository.contents import Look, Refusal, Repository
from lengthwise.repository.judging import Judge
from lengthwise.repository.loading import graph_bytes, look
from lengthwise.repository.model import Model
from lengthwise.runtime.manifest import GRAPH_FILE, MANIFEST_FILE, MOST_BYTES, Manifest, is_name
from lengthwise.runtime.provider import CPU, Device
from lengthwise.stopping import Stopped, Stopping
from lengthwise.versions import Key, Policy, is_version

log = logging.getLogger("lengthwise.scan")

MEASURING_SECONDS: Final = 1.0
"""Time to spend on measuring the costs of a model."""
MEASURING_BESIDE_SECONDS: Final = 0.3
"""The same where others are serving, whose processor time it takes; what is not measured is learned."""
NAMED_AND_ABSENT: Final = "--versions names it, and the repository does not have it"


def scan(
    folder: Path,
    limits: BatchLimits,
    *,
    policy: Policy,
    max_model_bytes: int | None = None,
    before: Repository | None = None,
    again: str | None = None,
    devices: Sequence[Device] = (CPU,),
    judge: Judge = judging.judge,
    most_bytes: int = MOST_BYTES,
    stopping: Stopping | None = None,
) -> Repository:
    """What is served of a folder now.

    Whatever is wrong with one directory, and whatever it raises, is the refusal of that version alone.

    Args:
        folder: Holds `NAME/VERSION/` directories.
        limits: What one batch may be; bounds what is measured.
        policy: Which versions are wanted.
        max_model_bytes: Most bytes of graphs served at once, or None for no bound. A version that runs keeps its place;
            while another takes it, both are in memory.
        before: What the last scan found.
        again: A name whose refused versions are judged again though they look as they did.
        devices: Where models run.
        judge: Judges what is new.
        most_bytes: Of the files of one version.
        stopping: Whether to end early: looked at before each version, and while one is judged.

    Raises:
        ConfigurationError: The folder cannot be read.
        Stopped: It was stopped.
    """
    before, stopping = before or Repository(), stopping or Stopping()
    found, passed = _versions(folder)
    for name, why in sorted(passed.items()):
        if name not in before.passed:
            log.error("the folder %s of the model repository is passed over: %s", ascii(name), why)
    # Of a name whose folder cannot be read at the moment, what runs goes on.
    found |= {key: folder / key.name / str(key.version) for key in _keys(before) if key.name in passed}
    wanted = policy.candidates(key for key in found if key.name not in before.unloaded)
    running = {model.key: model for model in before if model.key in set(wanted)}
    known = {refusal.path: refusal.reason for refusal in before.refused}
    taken: dict[Key, Model] = {}
    refused = {str(key): NAMED_AND_ABSENT for key in policy.absent(found) if key.name not in before.unloaded}
    looks: dict[Key, Look] = {}
    budget_seconds = MEASURING_BESIDE_SECONDS if before.models else MEASURING_SECONDS

    def load(key: Key) -> Model:
        return loading.load(
            found[key],
            limits,
            budget_seconds=budget_seconds,
            devices=devices,
            judge=judge,
            most_bytes=most_bytes,
            stopping=stopping,
        )

    for place, key in enumerate(wanted):
        stopping.check()
        if policy.one and any(other.name == key.name for other in taken):
            continue
        staying = [running[k] for k in wanted[place + 1 :] if k in running and not (policy.one and k.name == key.name)]
        seen, runs, reason = look(found[key]), running.get(key), known.get(str(key))
        if before.looks.get(key) == seen and not (reason is not None and key.name == again):
            model, looks[key] = runs, seen
        elif (reason := _no_room(graph_bytes(seen), [*taken.values(), *staying], max_model_bytes)) is not None:
            model = runs  # looked at again next time: there may be room then
        else:
            model, reason, final = _judged(key, found[key], runs, load, most_bytes)
            if final:
                looks[key] = seen
        if model is not None:
            taken[key] = model
        if reason is not None:
            refused[str(key)] = reason
    _tell(taken, running, refused, known)
    nothing = None if found else _why_nothing(folder)
    if nothing is not None and nothing != before.reason:
        log.error("nothing is served of %s: %s", folder, nothing)
    refusals = [Refusal(path, reason) for path, reason in sorted(refused.items())]
    found_now = Repository.of(taken.values(), refusals, before.unloaded, looks, nothing)
    return replace(found_now, passed=frozenset(passed))


def check_readable(folder: Path) -> None:
    """Looks whether a folder can be looked through.

    Raises:
        ConfigurationError: It cannot.
    """
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise ConfigurationError(f"the model repository {folder} cannot be read: {error.strerror}") from error


def versions(folder: Path) -> dict[Key, Path]:
    """Every `NAME/VERSION` directory; what is no positive integer is no version.

    Raises:
        ConfigurationError: The folder cannot be read.
    """
    return _versions(folder)[0]


def _versions(folder: Path) -> tuple[dict[Key, Path], dict[str, str]]:
    """Every version, and each name that cannot be looked into or cannot be a model's, with the reason."""
    try:
        names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigurationError(f"the model repository {folder} cannot be read: {error.strerror}") from error
    found: dict[Key, Path] = {}
    passed: dict[str, str] = {}
    for name in names:
        try:
            if not _is_folder(name):
                continue
            inside = {int(path.name): path for path in _listed(name) if is_version(path.name) and _is_folder(path)}
        except OSError as error:
            passed[name.name] = f"it cannot be read: {error.strerror}"
            continue
        if inside and not is_name(name.name):
            passed[name.name] = "no model can have that name"
        else:
            found |= {Key(name.name, version): path for version, path in inside.items()}
    return found, passed


def _keys(before: Repository) -> Iterable[Key]:
    """What was served or refused."""
    return {*(model.key for model in before), *(refusal.key for refusal in before.refused)}


def _why_nothing(folder: Path) -> str:
    """Why a folder without any version has none, and which one was meant. Clients see it: it shows no path."""
    inside = _listed(folder)
    if any(path.name in (MANIFEST_FILE, GRAPH_FILE) for path in inside):
        hint = "it looks like one version of a model: serve the folder two levels above it"
    elif any(is_version(path.name) and _is_folder(path) for path in inside):
        hint = "it looks like one model with its versions: serve the folder above it"
    else:
        hint = "VERSION is a whole number from 1, as in vowels/1; 'lengthwise export' makes such a folder"
    return f"the model repository holds no NAME/VERSION folder; {hint}"


def _is_folder(path: Path) -> bool:
    """Whether it is a folder, or a link to one; what cannot be looked at is taken for one, and says why itself."""
    try:
        return path.is_dir()
    except OSError:
        return True


def _listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it has just gone away."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _no_room(needed: int, others: Iterable[Model], most: int | None) -> str | None:
    """Why a graph does not fit beside the others, or None where it does."""
    held = sum(model.graph_bytes for model in others)
    if most is None or held + needed <= most:
        return None
    return f"its graph has {needed} bytes, and {held} of the {most} that --max-model-bytes allows are taken"


def _judged(
    key: Key, directory: Path, runs: Model | None, load: Callable[[Key], Model], most_bytes: int
) -> tuple[Model | None, str | None, bool]:
    """The model of a directory, or the one that runs and why the directory's own must not be served.

    The last value is whether that stays so until the directory changes.
    """
    try:
        if runs is not None:
            manifest = Manifest.read(directory)
            if manifest == runs.manifest:  # the same files again, if their digests hold
                manifest.checked(directory, most_bytes=most_bytes)
                return runs, None, True
        return load(key), None, True
    except NotJudged as error:
        return runs, str(error), False
    except ModelError as error:
        return runs, str(error), True
    except Stopped:
        raise
    except MemoryError:
        return runs, f"{key}: there is not enough memory to read it", False
    except Exception as error:  # whatever a directory makes of what reads it, it must not cost another its place
        log.exception("%s made what reads it fail", key)
        return runs, f"{key}: it makes what reads it fail: {type(error).__name__}: {str(error)[:500]}", True


def _tell(
    taken: Mapping[Key, Model], running: Mapping[Key, Model], refused: Mapping[str, str], known: Mapping[str, str]
) -> None:
    """Says in the log what is new."""
    for key, model in sorted(taken.items()):
        if model is not running.get(key):
            log.info("%s is ready on %s", key, model.session.provider)
    served = {str(key) for key in taken}
    for path, reason in sorted(refused.items()):
        if reason != known.get(path):
            ending = "; the one that stood there before goes on" if path in served else ""
            log.error("%s is not served: %s%s", path, reason, ending)
