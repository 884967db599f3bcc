"""Waiting for what has no event of its own."""

import asyncio
import http.client
import time
from collections.abc import Callable


async def until(true: Callable[[], object]) -> None:
    """Returns once that is so."""
    async with asyncio.timeout(180):
        while not true():
            await asyncio.sleep(0.001)


def wait_until(true: Callable[[], object], what: str | Callable[[], object] = "", seconds: float = 180) -> None:
    """Returns once that is so, outside an event loop; where it does not come, that is said, or what it returns.

    It asks ever less often: what is asked mostly needs the processor for what is waited for.
    """
    deadline, pause = time.monotonic() + seconds, 0.005
    while not true():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(pause)
        pause = min(1.5 * pause, 0.05)


def answers(port: int, path: str) -> bool:
    """Whether a port answers 200 to a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
