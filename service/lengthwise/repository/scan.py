"""Looks through a model repository and says what is served of it from now on.

A scan starts from what the last one found. What has not changed is not touched: a good version goes on with its
session, a refused one is not judged again. What is new, or looks otherwise than when it was judged, is loaded and
proved beside what runs; if it is good it takes its place, and if not, what ran goes on. So a directory that is still
being copied is refused until it is whole, and a bad version never costs a good one its place.

What is found good is published at once, while the rest is looked at. The versions are judged one after another; where
one takes long, those of other names are judged beside it. A lower version of its name waits: it may not be wanted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

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

R = TypeVar("R")

MEASURING_SECONDS: Final = 1.0
"""Time to spend on measuring the costs of a model."""
MEASURING_BESIDE_SECONDS: Final = 0.3
"""The same where others are serving, whose processor time it takes; what is not measured is learned."""
SLOW_SECONDS: Final = 3.0
"""How long the versions that follow wait for one that is judged; then they are judged beside it."""
MOST_AT_ONCE: Final = 4
"""How many versions are judged beside each other at most."""
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
    publish: Callable[[Repository], None] = lambda _: None,
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
        publish: Told what may be served already, while the rest is looked at: what is new and good, and what was served
            before. While nothing was, it is told after each version.

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
    so_far = _SoFar(before, policy, wanted)
    for absent in policy.absent(found):
        if absent.name not in before.unloaded:
            so_far.refuse(absent, NAMED_AND_ABSENT)
    budget_seconds = MEASURING_BESIDE_SECONDS if before.models else MEASURING_SECONDS
    judged: dict[Key, tuple[Look, Future[_Found]]] = {}

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

    def begin(key: Key) -> None:
        """Finds out about a version, or begins to judge it."""
        seen, runs, reason = look(found[key]), so_far.running.get(key), so_far.known.get(key)
        if before.looks.get(key) == seen and not (reason is not None and key.name == again):
            so_far.settle(key, runs, reason, seen)
            return
        held = sum(graph_bytes(other) for other, _ in judged.values()) + so_far.bytes_beside(key, judged)
        reason = _no_room(graph_bytes(seen), held, max_model_bytes)
        if reason is None:
            judged[key] = seen, _in_a_thread(lambda: _judged(key, found[key], runs, load, most_bytes))
            wait([judged[key][1]], SLOW_SECONDS)
        elif judged:  # there may be room when that is over
            wait([future for _, future in judged.values()], return_when=FIRST_COMPLETED)
        else:  # looked at again next time: there may be room then
            so_far.settle(key, runs, reason, None)

    if so_far.first:
        publish(so_far.repository())
    while so_far.left:
        stopping.check()
        told = so_far.progress
        key = so_far.next({key.name for key in judged})
        if key is not None and len(judged) < MOST_AT_ONCE:
            begin(key)
        elif judged:
            wait([future for _, future in judged.values()], return_when=FIRST_COMPLETED)
        for done in [done for done, (_, future) in judged.items() if future.done()]:
            seen, future = judged.pop(done)
            model, reason, final = future.result()
            so_far.settle(done, model, reason, seen if final else None)
        if so_far.progress != told:
            publish(so_far.repository())
    nothing = None if found else _why_nothing(folder)
    if nothing is not None and nothing != before.reason:
        log.error("nothing is served of %s: %s", folder, nothing)
    return replace(so_far.at_the_end(nothing), passed=frozenset(passed))


class _SoFar:
    """What was found in one look through the folder.

    Args:
        before: What the last look found.
        policy: Which versions are wanted.
        wanted: The versions to look at, in order.

    Attributes:
        first: Whether nothing is served yet.
        left: The versions that nothing is known of yet, in order.
        running: Those of them that are served.
        known: Why versions were refused the last time.
    """

    def __init__(self, before: Repository, policy: Policy, wanted: Sequence[Key]) -> None:
        self.first = not before.models
        self.left = list(wanted)
        self.running = {model.key: model for model in before if model.key in set(wanted)}
        self.known = {refusal.key: refusal.reason for refusal in before.refused}
        self._new = 0
        self._before = before
        self._policy = policy
        self._taken: dict[Key, Model] = {}
        self._refused: dict[Key, str] = {}
        self._looks: dict[Key, Look] = {}
        names = {key.name for key in wanted} if self.first else set(before.models)
        self._unnamed = names.pop() if len(names) == 1 else None

    @property
    def progress(self) -> int:
        """Another number whenever there is something to publish."""
        return len(self.left) if self.first else self._new

    def next(self, judged: Collection[str]) -> Key | None:
        """The version to look at next, or None: one of a name whose higher versions are all known.

        Args:
            judged: Names of which a version is judged at this moment.
        """
        if self._policy.one:
            done = {key.name for key in self._taken}
            self.left = [key for key in self.left if key.name not in done]
        return next((key for key in self.left if key.name not in judged), None)

    def bytes_beside(self, key: Key, judged: Collection[Key]) -> int:
        """Bytes of the graphs that are served beside a version: of those taken, and of those to be looked at yet.

        Args:
            key: The version.
            judged: Versions that are judged at this moment, whose bytes are counted elsewhere.
        """
        staying = [
            self.running[other]
            for other in self.left
            if other in self.running
            and other != key
            and other not in judged
            and not (self._policy.one and other.name == key.name)
        ]
        return sum(model.graph_bytes for model in (*self._taken.values(), *staying))

    def settle(self, key: Key, model: Model | None, reason: str | None, seen: Look | None) -> None:
        """Notes what came of a version.

        Args:
            key: The version.
            model: What is served under it, if anything.
            reason: Why what stands in its directory is not.
            seen: How its directory looks, if that need not be judged again.
        """
        self.left.remove(key)
        if seen is not None:
            self._looks[key] = seen
        if model is not None:
            self._taken[key] = model
            if model is not self.running.get(key):
                self._new += 1
                log.info("%s is ready on %s", key, model.session.provider)
        if reason is not None:
            self.refuse(key, reason)

    def refuse(self, key: Key, reason: str) -> None:
        """Notes why a version is not served, and says so where that is new."""
        self._refused[key] = reason
        if reason != self.known.get(key):
            ending = "; the one that stood there before goes on" if key in self._taken else ""
            log.error("%s is not served: %s%s", key, reason, ending)

    def repository(self) -> Repository:
        """What may be served while the look goes on: what was taken, beside what was served before."""
        done = {key.name for key in self._taken} if self._policy.one else set()
        kept = {model.key: model for model in self._before if model.key.name not in done}
        left = set(self.left)
        refused = {key: reason for key, reason in self.known.items() if key in left} | self._refused
        looks = {key: seen for key, seen in self._before.looks.items() if key in left} | self._looks
        found = self._made({**kept, **self._taken}, refused, looks, None)
        return replace(found, unnamed=self._unnamed, unjudged=tuple(self.left), starting=self.first)

    def at_the_end(self, reason: str | None) -> Repository:
        """What is served from now on; the reason is why there is nothing at all."""
        return self._made(self._taken, self._refused, self._looks, reason)

    def _made(
        self, models: Mapping[Key, Model], refused: Mapping[Key, str], looks: Mapping[Key, Look], reason: str | None
    ) -> Repository:
        refusals = [Refusal(str(key), why) for key, why in sorted(refused.items())]
        return Repository.of(models.values(), refusals, self._before.unloaded, looks, reason)


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


def _no_room(needed: int, held: int, most: int | None) -> str | None:
    """Why a graph does not fit beside the others, or None where it does."""
    if most is None or held + needed <= most:
        return None
    return f"its graph has {needed} bytes, and {held} of the {most} that --max-model-bytes allows are taken"


_Found = tuple[Model | None, str | None, bool]
"""A model, why it is not the one of its directory, and whether that stays so until the directory changes."""


def _in_a_thread(function: Callable[[], R]) -> Future[R]:
    """What a function returns or raises that runs in a thread which the end of the process does not wait for."""
    done: Future[R] = Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="judging", daemon=True).start()
    return done


def _judged(key: Key, directory: Path, runs: Model | None, load: Callable[[Key], Model], most_bytes: int) -> _Found:
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
