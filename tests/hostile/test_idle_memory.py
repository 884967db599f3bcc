"""Memory that many idle connections cost, each of which sent the largest request that it may."""

import pytest

from benchmarks.connections import KIBIBYTE, KINDS, bytes_of_each

pytestmark = pytest.mark.long

MANY = 400
MOST_BYTES = {"http": 16 * KIBIBYTE, "grpc": 64 * KIBIBYTE, "admin": 64 * KIBIBYTE}
"""Of each, by door; gRPC's own buffers are among them, and of a few connections what is made once and kept."""
TLS_BYTES = 160 * KIBIBYTE
"""More over TLS: its buffers, which stay as large as the largest piece that was read."""


LARGE_TLS_BYTES = 768 * KIBIBYTE
"""The same after a large body: 256 KiB of the event loop, and what OpenSSL makes of that."""


@pytest.mark.parametrize("name", KINDS)
def test_an_idle_connection_costs_little_whatever_it_asked_last(name: str) -> None:
    kind = KINDS[name]
    count, each = bytes_of_each(kind, MANY)
    print(f"{name}: {count} connections, {each / KIBIBYTE:.1f} KiB each")
    buffers = (TLS_BYTES if "1 MB" not in name else LARGE_TLS_BYTES) if kind.tls else 0
    assert each < MOST_BYTES[kind.door] + buffers
