"""Where a service's models come from, while a store does not come to an end."""

import signal
import threading
import time
from pathlib import Path

import pytest

from lengthwise.errors import ConfigurationError
from lengthwise.repository import source
from lengthwise.repository.source import ModelSource, SharedSource
from lengthwise.repository.stopping import Stopping
from lengthwise.settings import Settings

pytest.importorskip("obstore")
from lengthwise.stores import cache


class Store:
    """A store that gives `folder` once it may; `asked` says for each fetch that it began."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.may_answer = threading.Event()
        self.asked = list[str]()
        self.waits = list[object]()  # whether each fetch waits for another one

    def fetch(self, address: str, *_: object, wait: bool = True, **__: object) -> Path:
        """Stands in for the fetch of the cache."""
        self.waits.append(wait)
        self.asked.append(address)
        assert self.may_answer.wait(60)
        return self.folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store(tmp_path / "copy")
    monkeypatch.setattr(cache, "fetch", made.fetch)
    monkeypatch.setattr(source, "PATIENCE_SECONDS", 0.1)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(models="https://example.com/m.tar?secret", cache=tmp_path).with_copy(tmp_path)


def test_a_reload_does_not_wait_for_a_store_without_end(store: Store, settings: Settings) -> None:
    models = ModelSource(settings)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"^https://example.com/m.tar is still being fetched after"):
            models.refresh(Stopping(), first=False)
    assert len(store.asked) == 1
    store.may_answer.set()
    assert models.refresh(Stopping(), first=False) == store.folder


def test_a_reload_asks_the_store_again_when_a_fetch_hangs(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ModelSource(settings)
    monkeypatch.setattr(source, "HUNG_SECONDS", 0.0)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="is still being fetched after"):
            models.refresh(Stopping(), first=False)
    assert store.waits == [True, False]  # the second one does not wait for the lock of the first
    store.may_answer.set()
    monkeypatch.setattr(source, "HUNG_SECONDS", 60.0)
    assert models.refresh(Stopping(), first=False) == store.folder


def test_the_start_of_an_application_waits_for_its_models(store: Store, tmp_path: Path) -> None:
    models = ModelSource(Settings(models="https://example.com/m.tar", cache=tmp_path))
    timer = threading.Timer(0.3, store.may_answer.set)
    timer.start()
    assert models.refresh(Stopping(), first=True) == store.folder
    timer.join()


async def test_workers_do_not_wait_for_a_store_without_end(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "TOGETHER_SECONDS", 0.0)
    models = SharedSource(settings)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="is still being fetched after"):
            await models.refresh()
    assert models.folder == settings.folder
    assert len(store.asked) == 1
    store.may_answer.set()
    assert await models.refresh() == str(models.folder) == str(store.folder)
    assert not models.is_fetching


@pytest.mark.parametrize("woken", [True, False], ids=["main-thread", "other-thread"])
def test_a_signal_ends_the_wait_for_a_store_whichever_thread_it_reaches(
    store: Store, settings: Settings, woken: bool
) -> None:
    # A signal that another thread receives does not wake the main thread, nor does one that comes just before it sleeps
    waiter = threading.main_thread() if woken else None

    def signal_when_asked() -> None:
        while not store.asked:
            time.sleep(0.01)  # between two looks
        time.sleep(0.1)  # until the main thread sleeps: an earlier signal would be handled at once
        signal.pthread_kill((waiter or threading.current_thread()).ident, signal.SIGTERM)

    old_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Thread(target=signal_when_asked).start()
        with pytest.raises(KeyboardInterrupt):
            source.fetch("https://example.com/m.tar", settings)
    finally:
        signal.signal(signal.SIGTERM, old_handler)
        store.may_answer.set()
