"""What is open now: connections, streams and live views. Each is counted where it is, and read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lengthwise.telemetry.families import Family


class Openings:
    """The gauges of what is open."""

    def __init__(self) -> None:
        # those open, and the most, by door: `http`, `admin`, `grpc`
        self.connections: dict[str, tuple[Callable[[], int], int]] = {}
        self.streams: Callable[[], Mapping[str, int]] = dict  # calls and streams over gRPC, by kind
        self.viewers: list[Callable[[], int]] = []  # live views; there may be several pages of the console

    def families(self) -> list[Family]:
        """The gauges as they are now."""
        doors = [((door,), float(count())) for door, (count, _) in self.connections.items()]
        most = [((door,), float(limit)) for door, (_, limit) in self.connections.items()]
        streams = [((kind,), float(count)) for kind, count in self.streams().items()]
        viewers = sum(count() for count in self.viewers)
        return [
            Family("gauge", "open_connections", "Connections that are open now.", ("door",), doors),
            Family("gauge", "max_connections", "Most connections that may be open.", ("door",), most),
            Family("gauge", "grpc_streams", "Calls and streams over gRPC that are open now.", ("kind",), streams),
            Family("gauge", "live_viewers", "Live views of the console that are open now.", (), [((), viewers)]),
        ]
