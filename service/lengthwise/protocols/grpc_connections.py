"""The connections of the gRPC server, within the bounds that those of HTTP have.

gRPC accepts its connections itself, and limits the time of a handshake, of silence and of a life. What it does not know
is done here: a connection on which no call has begun has `header_timeout_seconds`, and while nearly all places are
taken, those that have been idle longest make room. A connection counts as idle while none of its calls is open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lengthwise.connections.accepted import AcceptedConnections
from lengthwise.connections.kept_alive import LEAST_IDLE_SECONDS
from lengthwise.protocols.grpc_transport import RpcCall

_LOOKS: Final = 4
"""How many times the connections are looked at in `header_timeout_seconds`."""
_MOST_LOOK_SECONDS: Final = 2.5
_STALE_SECONDS: Final = 0.05
"""How old a look may be, when a connection is asked for that it did not find."""
_CALL_BYTES: Final = 512
"""What a call takes besides its message: metadata, frames."""
_FRAME_SHARE: Final = 256
"""The frames of a message take less than this share of it, those of TLS too."""
_CROWDED: Final = 0.75
"""Above this share of the places, idle connections make room."""


@dataclass(slots=True)
class _Connection:
    """One connection.

    Attributes:
        since: Since when it is idle; without a call so far, since it was seen first.
        calls: Its open calls.
        called: Whether any call has begun on it.
        delivered: Bytes of its calls, about, and of their messages that were handed over.
    """

    since: float
    calls: int = 0
    called: bool = False
    delivered: int = 0

    def deliver(self, message_bytes: int) -> None:
        """A message was handed over: its bytes, and those of its frames."""
        self.delivered += message_bytes + message_bytes // _FRAME_SHARE


class GrpcConnections:
    """The connections of the gRPC port, by client.

    Args:
        most: How many there may be.
        header_timeout_seconds: How long one may be open before its first call begins.
        clock: Seconds.
    """

    def __init__(self, most: int, header_timeout_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._header_timeout = header_timeout_seconds
        self._clock = clock
        self._accepted: AcceptedConnections | None = None
        self._known: dict[str, _Connection] = {}
        self._looked = clock()

    @property
    def count(self) -> int:
        """How many are open now."""
        return 0 if self._accepted is None else len(self._accepted.look())

    @property
    def calls(self) -> int:
        """How many calls are open."""
        return sum(connection.calls for connection in self._known.values())

    def begun(self, rpc: RpcCall) -> None:
        """A call has begun."""
        connection = self._known.setdefault(rpc.client, _Connection(self._clock()))
        connection.called = True
        connection.calls += 1
        connection.delivered += _CALL_BYTES
        rpc.on_message = connection.deliver

        def ended() -> None:
            connection.calls -= 1
            connection.since = self._clock()

        rpc.on_end(ended)

    def received_bytes(self, client: str) -> int | None:
        """How many bytes have arrived from a client; None if that is not known."""
        if self._accepted is None:
            return None
        received = self._accepted.received_bytes(client)
        now = self._clock()
        if received is None and now - self._looked > _STALE_SECONDS:
            self._looked = now
            self._accepted.look()
            received = self._accepted.received_bytes(client)
        return received

    def delivered_bytes(self, client: str) -> int:
        """How many of a client's bytes belong to messages that were handed over, and to their calls, about."""
        connection = self._known.get(client)
        return 0 if connection is None else connection.delivered

    def calls_of(self, client: str) -> int:
        """How many calls of a client are open."""
        connection = self._known.get(client)
        return 0 if connection is None else connection.calls

    async def keep(self, port: int) -> None:
        """Ends those that stay too long, for as long as this runs.

        Args:
            port: The port that gRPC listens on.
        """
        self._accepted = accepted = AcceptedConnections(port)
        period = min(_MOST_LOOK_SECONDS, self._header_timeout / _LOOKS)
        while True:
            await asyncio.sleep(period)
            for client in self._too_long(await asyncio.to_thread(accepted.look)):
                accepted.end(client)

    def _too_long(self, present: list[str]) -> list[str]:
        """Those of the present connections that must end now."""
        self._looked = now = self._clock()
        known = self._known
        for client in known.keys() - set(present):
            if not known[client].calls:
                del known[client]
        for client in present:
            known.setdefault(client, _Connection(now))
        idle = sorted((known[client].since, client) for client in present if not known[client].calls)
        late = [client for since, client in idle if not known[client].called and now - since > self._header_timeout]
        too_many = len(present) - len(late) - int(self._most * _CROWDED)
        if too_many > 0:
            left = set(late)
            spare = [client for since, client in idle if client not in left and now - since > LEAST_IDLE_SECONDS]
            late += spare[:too_many]
        return late
