"""Where a model repository comes from: a folder, or the copy of what is at an address, fetched again for each scan.

    one process:      scan ──> ModelSource.refresh ──> fetch
    several workers:  scan ──> ModelSource.refresh ──> the parent: SharedSource.refresh ──> one fetch for all that ask

The parent has fetched the models before a worker starts, so no first scan fetches. A fetch that fails ends the scan,
and what is served stays. An *address* names a store, such as a hub or a bucket (`stores`).
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from pathlib import Path
from typing import Any, Final

from lengthwise.addresses import is_address, parse
from lengthwise.errors import ConfigurationError, ModelError
from lengthwise.repository import folder
from lengthwise.repository.stopping import Stopping, in_daemon_thread, run_interruptibly
from lengthwise.settings import Settings, cache_folder
from lengthwise.wrong_values import first_of

PATIENCE_SECONDS: Final = 60.0  # for so long a reload waits for a fetch, which then goes on without it
HUNG_SECONDS: Final = 7500.0  # after which a reload begins another fetch; a fetch that works has ended then
TOGETHER_SECONDS: Final = 1.0  # for so long after its end a fetch counts for workers that ask later


def fetch(address: str, settings: Settings) -> Path:
    """Fetches the models at an address; returns the folder with the copy.

    Raises:
        ConfigurationError: They cannot be fetched.
        ModelError: What was fetched has not the digests that it should have.
    """  # noqa: DOC502 - what it calls raises them
    return run_interruptibly("fetch", lambda: _fetch(address, settings))  # a store may hang, and looks at no signals


def _fetch(address: str, settings: Settings, *, wait: bool = True) -> Path:
    """Fetches the models at an address in this thread, into the cache; returns the folder with the copy.

    Without `wait`, it does not wait for another fetch of this address to end.
    From then on this thread leaves signals to the main thread, which may hold them. So do the threads that the client
    of a store starts here, and keeps: the kernel gives a signal to any thread that does not hold it.
    """
    from lengthwise.stores import cache  # nothing of it is imported for models in a folder

    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGTERM, signal.SIGINT))

    return cache.fetch(address, settings.cache or cache_folder(), offline=settings.offline, wait=wait)


def fetched(settings: Settings) -> Settings:
    """The settings with a folder as the source of models: models at an address are fetched now, to a copy there."""
    return settings if isinstance(settings.models, Path) else settings.with_copy(fetch(settings.models, settings))


def model_directory(source: Path | str) -> Path:
    """Returns the model directory for a path or an address: the folder itself, or the highest version in it.

    Models at an address are fetched first.

    Raises:
        ConfigurationError: There is no model, or several at an address.
    """
    if isinstance(source, Path) or not is_address(source):
        return folder.model_directory(Path(source))
    repository = fetch(source, Settings.load())
    models = sorted(path.name for path in folder.paths_in(repository) if path.is_dir())
    if len(models) > 1:
        address = parse(source)
        raise ConfigurationError(
            f"{address} holds the models {first_of(models)}; name one, as in {address}/{models[0]}"
        )
    return folder.model_directory(repository.joinpath(*models))


class ModelSource:
    """The source of a service's models.

    `folder` is the folder of the last scan.

    Args:
        settings: Say which folder or address it is.
        ask_parent: Asks the parent of several workers for the folder; None in a single process, and in the parent.
    """

    def __init__(self, settings: Settings, ask_parent: Callable[[Stopping, str], Any] | None = None) -> None:
        self._settings = settings
        self._ask_parent = ask_parent
        self._fetch: Future[Path] | None = None  # the last one, which may still run
        self._began = 0.0  # when it began, by `time.monotonic`
        self.folder = settings.folder

    def refresh(self, stopping: Stopping, *, first: bool) -> Path:
        """Returns the folder for a scan; if the models are at an address, fetches them first, which may take long.

        Args:
            stopping: Stops waiting for the parent's answer.
            first: Whether it is for the first scan. It needs no fetch if the models were fetched before the service was
                made: by the parent of the workers, or into the folder `settings.models`.

        Raises:
            ConfigurationError: The models cannot be fetched, or were fetched with other digests.
        """
        if self._ask_parent is not None:  # one of several workers: the parent fetches
            answer = None if first else self._ask_parent(stopping, "models")
            if isinstance(answer, dict):
                raise ConfigurationError(str(answer["error"]).partition(": ")[2])
            self.folder = Path(answer or self.folder)
        elif (address := self._settings.address) is not None and not (
            first and isinstance(self._settings.models, Path)
        ):
            is_hung = self._fetch is not None and time.monotonic() - self._began > HUNG_SECONDS
            if self._fetch is None or self._fetch.done() or is_hung:
                self._began = time.monotonic()
                self._fetch = in_daemon_thread("fetch", lambda: _fetch(address, self._settings, wait=not is_hung))
            try:
                self.folder = self._fetch.result(None if first else PATIENCE_SECONDS)
            except TimeoutError:
                raise ConfigurationError(
                    f"{parse(address)} is still being fetched after {PATIENCE_SECONDS:.0f} s; a later "
                    "reload takes what comes of it"
                ) from None
            except ModelError as error:  # in a scan, a ModelError would refuse one version only
                raise ConfigurationError(str(error)) from error
        return self.folder


class SharedSource:
    """The source of several workers, in their parent: one fetch for all that ask at once."""

    def __init__(self, settings: Settings) -> None:
        self._source = ModelSource(settings)
        self._fetch: asyncio.Future[Path] | None = None  # for all workers: the last one, which may still run
        self._last_end = -inf  # when the last fetch ended, by `time.monotonic`

    @property
    def folder(self) -> Path:
        """The folder of the last fetch."""
        return self._source.folder

    @property
    def is_fetching(self) -> bool:
        """Whether workers wait for a fetch."""
        return self._fetch is not None and not self._fetch.done()

    async def refresh(self) -> str:
        """Waits for a fetch, and returns the folder for a worker's scan.

        It is the fetch that runs, or one that ended up to `TOGETHER_SECONDS` ago; otherwise a new one.
        """
        if not self.is_fetching and time.monotonic() - self._last_end > TOGETHER_SECONDS:
            thread = in_daemon_thread("fetch", lambda: self._source.refresh(Stopping(), first=False))
            self._fetch = asyncio.wrap_future(thread)
            self._fetch.add_done_callback(self._note_end)
        assert self._fetch is not None
        return str(await asyncio.shield(self._fetch))

    def _note_end(self, _: object) -> None:
        self._last_end = time.monotonic()
