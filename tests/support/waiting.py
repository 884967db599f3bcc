"""Waiting for what has no event of its own."""

import asyncio
from collections.abc import Callable


async def until(true: Callable[[], object]) -> None:
    """Returns once that is so."""
    async with asyncio.timeout(180):
        while not true():
            await asyncio.sleep(0.001)
