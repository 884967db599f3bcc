"""What many tests of the service are given."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import model_directories
from tests.support.http_lines import KEY, Line, Net, net
from tests.support.numpy_models import Service, manifest, model, serving


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """The small model, served."""
    async with serving(model(manifest())) as made:
        yield made


@pytest.fixture
async def caller(service: Service) -> AsyncIterator[Any]:
    """A client of that service over gRPC."""
    from tests.support.grpc_calls import calling

    async with calling(service) as made:
        yield made


@pytest.fixture
async def made(service: Service) -> AsyncIterator[Net]:
    """That service behind a socket."""
    async with net(service) as found:
        yield found


@pytest.fixture
async def line(made: Net) -> Line:
    """A connection to it."""
    return await made.line()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A file with the key `KEY`."""
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n")
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A model repository with two versions of one model, and an alias."""
    repository = tmp_path / "repository"
    for version in (1, 2):
        model_directories.place(repository, version=version)
    (repository / "vowels" / "aliases.json").write_text('{"champion": 1}\n')
    return repository
