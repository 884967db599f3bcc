"""HTTP/2 by hand: frames, and calls that a well-behaved client of gRPC would not make."""

import socket
import struct
from collections.abc import Iterator, Mapping

DATA, HEADERS, RESET, SETTINGS, PING = 0x0, 0x1, 0x3, 0x4, 0x6
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def preface(settings: bytes = b"") -> bytes:
    """What a client sends first."""
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, payload=settings)


def literals(fields: Mapping[str, str]) -> bytes:
    """Fields as literals that nobody indexes (RFC 7541, 6.2.3)."""
    return b"".join(
        b"\x10" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


def call(path: str, stream: int, **more: str) -> bytes:
    """The header block of a gRPC call, without its message."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
    fields |= {"content-type": "application/grpc", "te": "trailers"} | more
    return frame(HEADERS, END_HEADERS, stream, literals(fields))


def message(payload: bytes, *, flag: int = 0) -> bytes:
    """A message as gRPC frames it."""
    return struct.pack(">BI", flag, len(payload)) + payload


def data(stream: int, payload: bytes) -> bytes:
    """The frames of a body, which ends with them."""
    parts = [payload[at : at + 16_384] for at in range(0, len(payload), 16_384)] or [b""]
    return b"".join(frame(DATA, END_STREAM * (part is parts[-1]), stream, part) for part in parts)


class Connection:
    """A connection over HTTP/2, on which nobody waits for anything."""

    def __init__(self, wire: socket.socket, settings: bytes = b"") -> None:
        self.wire = wire
        self._stream = -1
        self._rest = b""
        wire.sendall(preface(settings))

    def begin(self, path: str, sent: bytes | None = None, **fields: str) -> int:
        """Begins a call, with a whole body or none; its stream."""
        self._stream += 2
        self.wire.sendall(call(path, self._stream, **fields) + (b"" if sent is None else data(self._stream, sent)))
        return self._stream

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """What has arrived, as kind, flags, stream and payload; the server's settings and pings are acknowledged."""
        received = self.wire.recv(65_536)
        if not received:
            raise ConnectionResetError("the connection has ended")
        self._rest += received
        while len(self._rest) >= 9 and len(self._rest) >= 9 + (size := int.from_bytes(self._rest[:3])):
            kind, flags, stream = struct.unpack(">BBI", self._rest[3:9])
            payload, self._rest = self._rest[9 : 9 + size], self._rest[9 + size :]
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.wire.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            yield kind, flags, stream, payload

    def ended(self, stream: int) -> None:
        """Returns when a stream has ended."""
        while not any(of == stream and (kind == RESET or flags & END_STREAM) for kind, flags, of, _ in self.frames()):
            pass
