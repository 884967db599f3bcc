"""The limits of one request, over HTTP, gRPC and from the console: one value, made once from the settings.

| what | limit | beyond it, over HTTP |
|---|---|---|
| a body, or a message of gRPC, inflated too | `body_bytes` | 413 |
| the same, of a call that is not inference | `control_body_bytes` | 413 |
| its sequences | `sequences` | 413 |
| bodies and answers in memory, of all calls (`connections.inflight`) | `inflight_bytes` | 503 |
| request line, headers and trailers | `header_bytes` | 431 |
| headers and trailers together, or metadata of gRPC | `fields` | 431 |
| the time in which a header block arrives, or the first call of gRPC | `header_seconds` | 408 |

gRPC has codes of its own: `RESOURCE_EXHAUSTED` for a message that is too large and for too many fields, `CODES` of
`grpc.infer` for the others. A connection whose first call is late is ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from lengthwise.settings import Settings


@dataclass(frozen=True)
class RequestLimits:
    """The limits of the module's table."""

    body_bytes: int
    control_body_bytes: int
    sequences: int
    inflight_bytes: int
    header_seconds: float
    header_bytes: int = 32_768
    fields: int = 128  # each costs some hundred bytes of memory, however short it is

    @classmethod
    def of(cls, settings: Settings) -> RequestLimits:
        """The limits that the options set."""
        return cls(
            body_bytes=settings.max_body_bytes,
            control_body_bytes=min(65_536, settings.max_body_bytes),  # it is read on the event loop
            sequences=settings.max_sequences,
            inflight_bytes=settings.max_inflight_bytes,
            header_seconds=settings.header_timeout_seconds,
        )
