"""Workers that are killed, that hang and that cannot start, at random and under load: every answer is the true one.

`make soak SOAK="--workers 2"` runs the same for half an hour, and looks at the memory as well.
"""

import pytest

from benchmarks.soak import shortcomings, soak

SECONDS = 40.0


@pytest.mark.long
async def test_whatever_happens_to_workers_no_answer_is_wrong_and_no_counter_goes_back() -> None:
    figures = await soak(SECONDS, 0.02, grpc_cancels=False, workers=2)
    assert figures["restarts"] > 0
    assert figures["wrong"] == []
    assert [each for each in shortcomings(figures) if each != "memory grew"] == []  # it is too short for that
