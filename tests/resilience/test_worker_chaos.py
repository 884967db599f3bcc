"""Workers that are killed, that hang and that cannot start, at random and under load: every answer is the true one.

`make soak SOAK="--workers 2"` runs the same for half an hour, and looks at the memory as well.
"""

import math
from typing import cast

import pytest

from benchmarks.soak import Watch, shortcomings, soak
from tests.support.server_process import ServerProcess

SECONDS = 40.0


@pytest.mark.long
async def test_whatever_happens_to_workers_no_answer_is_wrong_and_no_counter_goes_back() -> None:
    figures = await soak(SECONDS, 0.02, grpc_cancels=False, workers=2)
    assert figures["restarts"] > 0
    assert figures["wrong"] == []
    assert [each for each in shortcomings(figures) if each != "memory grew"] == []  # it is too short for that


def test_memory_of_too_few_samples_is_not_known() -> None:
    watch = Watch(cast("ServerProcess", None), warm=10.0, seconds=[11.0, 36.0, 52.0], resident=[340.0, 354.0, 358.0])
    of_memory = watch.memory(SECONDS)
    assert math.isnan(of_memory["early_mib"])
    assert math.isnan(of_memory["late_mib"])
    assert all(map(math.isnan, of_memory["slope"]))


def test_the_slope_is_of_the_minutes_after_the_first_tenth() -> None:
    seconds = [float(second) for second in range(10, 100)]
    resident = [300.0 + second / 60 for second in seconds]
    watch = Watch(cast("ServerProcess", None), warm=10.0, seconds=seconds, resident=resident)
    of_memory = watch.memory(90.0)
    assert of_memory["slope"] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert of_memory["late_mib"] - of_memory["early_mib"] == pytest.approx(81 / 60)
