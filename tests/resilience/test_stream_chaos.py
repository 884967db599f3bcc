"""Streams through a balancer whose replicas are killed: each answer is that to the whole, and nothing is kept."""

import asyncio
from pathlib import Path

import pytest

from tests.resilience.stream_chaos import CHUNKS, storm

KEYS = 1000


@pytest.mark.long
def test_replayed_chunks_answer_for_the_whole_while_replicas_are_killed(tmp_path: Path) -> None:
    ends, memory = asyncio.run(storm(KEYS, tmp_path))
    print(dict(ends), memory)
    assert not [end for end in ends if "wrong" in end]
    assert ends["a chunk"] == KEYS * CHUNKS
    assert min(ends["a chunk again"], ends["another offset"], ends["another model's state"], ends["one killed"]) > 0
    assert max(late - early for early, late in zip(memory[:2], memory[2:], strict=True)) < 4  # MiB
