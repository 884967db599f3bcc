"""How many connections there may be over HTTP and over gRPC."""

import resource

import pytest

from lengthwise.connections.limits import LEAST_FILES, connection_limits
from lengthwise.errors import ConfigurationError


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The soft and the hard limit of open files, as the last element; those that were set are added."""
    limits = [(1024, 1024)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, given: limits.append(given))
    return limits


@pytest.mark.parametrize(
    ("most", "limit", "grpc", "places"),
    [
        *((4096, 100_000, False, (4096, 0)), (4096, 100_000, True, (2048, 2048)), (21, 100_000, True, (11, 10))),
        *((1, 100_000, True, (1, 1)), (4096, 256, True, (64, 64)), (4096, 256, False, (160, 0))),
        *((4096, LEAST_FILES, True, (1, 1)), (4096, resource.RLIM_INFINITY, True, (2048, 2048))),
    ],
)
def test_connections_and_files_are_halved_where_grpc_is_on(
    files: list[tuple[int, int]], most: int, limit: int, grpc: bool, places: tuple[int, int]
) -> None:
    files.append((limit, limit))
    made = connection_limits(most, grpc=grpc)
    assert (made.http, made.grpc) == places
    assert made.files == (None if limit == resource.RLIM_INFINITY else limit)


@pytest.mark.parametrize(("allowed", "grpc"), [(True, 2048), (False, 64)])
def test_the_soft_limit_of_files_is_raised_to_the_hard_one_where_it_can_be(
    files: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, allowed: bool, grpc: int
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    if not allowed:
        monkeypatch.setattr(resource, "setrlimit", refuse)
    files.append((256, 100_000))
    assert connection_limits(4096, grpc=True).grpc == grpc
    assert files[-1] == ((100_000, 100_000) if allowed else (256, 100_000))


def test_too_few_files_are_a_wrong_option(files: list[tuple[int, int]]) -> None:
    files.append((LEAST_FILES - 1, LEAST_FILES - 1))
    with pytest.raises(ConfigurationError):
        connection_limits(4096, grpc=False)
