"""A model that is open for offline use, and how it is opened: for `load`, `lengthwise score` and `Scorer`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from lengthwise.addresses import is_address
from lengthwise.batching.limits import BatchLimits
from lengthwise.decoding.calls import Item
from lengthwise.errors import ConfigurationError
from lengthwise.files import available_cores, bundled_models
from lengthwise.runtime.manifest import MANIFEST_FILE, Manifest

if TYPE_CHECKING:  # they bring onnxruntime along, which a program that only names a model does without
    from lengthwise.repository.loading import LoadedModel
    from lengthwise.scoring.offline import ScoringResult

CHUNK_SEQUENCES: Final = 1024  # sequences that are planned together, so that all of them need not be in memory

ProviderName = Literal["auto", "cuda", "cpu"]

MOST_OPEN: Final = 4  # models that a process keeps open; the least recently used is dropped


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)  # Beam shares it by weak references
class OpenModel:
    """A loaded model, with the limits of its batches (the limits of the manifest included) and its threads."""

    loaded: LoadedModel
    limits: BatchLimits
    threads: int

    def answers(
        self, items: Sequence[Item], *, attention: bool = False, threads: int | None = None
    ) -> list[ScoringResult]:
        """Runs items that the model accepts; returns for each, in their order, its answer, or a text: its error.

        The items are sorted by length first, so that chunks of them need little padding. `threads`: how many batches
        run at once, by default as many as the model has threads; with 0 or 1, in the caller's thread.
        """
        from lengthwise.scoring import offline

        threads = self.threads if threads is None else threads
        by_length = sorted(range(len(items)), key=lambda index: len(items[index].steps))
        chunks = (by_length[start : start + CHUNK_SEQUENCES] for start in range(0, len(by_length), CHUNK_SEQUENCES))
        answered = offline.answer_all(
            self.loaded,
            ((indices, [items[index] for index in indices]) for indices in chunks),
            limits=self.limits,
            threads=0 if threads == 1 else threads,
            attention=attention,
        )
        result_of = {
            index: result for indices, results in answered for index, result in zip(indices, results, strict=True)
        }
        return [result_of[index] for index in range(len(items))]


def check_attention(manifest: Manifest, attention: bool, *, option: str = "attention=True") -> None:
    """Makes sure that a model has attention weights, if they are to be returned; `option` asks for them.

    Raises:
        ConfigurationError: The model has no attention.
    """
    if attention and manifest.graph.attention is None:
        raise ConfigurationError(
            f"the model {manifest.key} has no attention: leave {option} out, or see docs/targets.md"
        )


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how it is opened: the arguments of `lengthwise.load`."""

    path: str | None = None  # of a model or a version, or an address; None for the bundled model
    provider: ProviderName = "auto"
    threads: int | None = None
    max_batch_rows: int = 64
    max_batch_cost_steps: int = 16_384
    recurrent_kernels: bool | None = None

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            ConfigurationError: `provider` is unknown, or a number is not a whole number of 1 or more.
        """
        if self.provider not in get_args(ProviderName):
            raise ConfigurationError(
                f"provider must be one of {', '.join(get_args(ProviderName))}, got {self.provider!r}"
            )
        for name, value in (
            ("threads", 1 if self.threads is None else self.threads),
            ("max_batch_rows", self.max_batch_rows),
            ("max_batch_cost_steps", self.max_batch_cost_steps),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} must be an integer >= 1, got {value!r}")

    @property
    def directory(self) -> Path:
        """The model directory at the path: a version, or the highest version of a model; an address is fetched first.

        Raises:
            ConfigurationError: There is no model at the path.
        """  # noqa: DOC502 - what it calls raises it
        from lengthwise.repository.source import model_directory

        return model_directory(bundled_models() / "japanese-vowels" if self.path is None else self.path)

    def open(self) -> OpenModel:
        """Loads the model, after the same verification as in the service.

        Raises:
            ConfigurationError: There is no model at the path, or onnxruntime or the provider is not installed.
            ModelError: The model fails its verification on this machine.
        """  # noqa: DOC502 - what it calls raises them
        from lengthwise.repository import loading
        from lengthwise.runtime.provider import choose

        directory = self.directory
        limits = BatchLimits(self.max_batch_rows, self.max_batch_cost_steps)
        choice = choose(self.provider, runners=self.threads, recurrent_kernels=self.recurrent_kernels)
        loaded = loading.load(directory, limits, devices=choice.devices)
        threads = self.threads or choice.runners(available_cores())
        return OpenModel(loaded, limits.at_most(loaded.manifest.max_batch_rows), threads)


_lock = threading.Lock()
_caches: list[Callable[[ModelOptions, object], OpenModel]] = []
"""`_caches[-1]` is the cache of this process: the open model by its options, and by what identifies its manifest file.
Inherited caches are only kept alive: a fork can neither use nor close their sessions."""


def _set_up_process() -> None:
    """Gives this process a new cache of open models, and a new lock; called at import, and in each child after a fork.

    The lock that a child inherits may be held for ever: by a thread that only the parent has.
    """
    global _lock
    _lock = threading.Lock()
    _caches.append(lru_cache(MOST_OPEN)(lambda options, _manifest_state: options.open()))


_set_up_process()
os.register_at_fork(after_in_child=_set_up_process)


def opened(options: ModelOptions) -> OpenModel:
    """The open model of the options, from the cache of this process.

    The model is opened at the first call, and again after its directory was replaced: another manifest file shows it.
    """
    manifest_state = None  # identifies the manifest file; None if it cannot be read, which loading reports
    if not is_address(options.path):  # to ask a store for each batch would take longer than the batch
        with suppress(OSError):
            status = (options.directory / MANIFEST_FILE).stat()
            manifest_state = status.st_ino, status.st_size, status.st_mtime_ns
    with _lock:
        return _caches[-1](options, manifest_state)
