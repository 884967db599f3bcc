"""Section `memory`: what the device holds after 10,000 batches of random shapes: it must stop growing.

The batches are made as the service makes them, so that what bounds the shapes on a device is at work.
"""

from __future__ import annotations

import numpy as np

from benchmarks.gpu.device import memory_reader
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.sections import NotHere
from benchmarks.gpu.stage import Stage
from lengthwise.batching.plan import BatchLimits
from lengthwise.padding import Steps
from lengthwise.telemetry.metrics import ModelMetrics


def measure(stage: Stage, figures: Figures) -> None:
    """Notes `mib` after each thousand shapes (a tenth of them, where they are fewer), and the growth."""
    read = memory_reader(stage.provider)
    if read is None:
        raise NotHere("neither pynvml nor nvidia-smi says what memory is in use")
    limits = BatchLimits()
    wanted = stage.pick(10_000, 50)
    figures.note(before_load_mib=read(), wanted=wanted)
    queue = stage.desk("fp32", limits, figures).model_queue(ModelMetrics())
    figures.note(after_load_mib=read())
    random = np.random.default_rng(stage.seed)
    longest = stage.pick(stage.manifest("fp32").max_length, 64)
    mib: dict[int, float] = {}
    for number in range(1, wanted + 1):
        queue.run(queue.padded(group(random, limits, stage.features, longest)), number % 2 == 0)
        if number % (wanted // 10) == 0 or stage.left < 5:
            mib[number] = read()
            figures.note(shapes=number, mib=mib, growth_after_first_tenth=growth([*mib.values()]))
            stage.say(f"memory, {number} shapes: {mib[number]:,.0f} MiB")
        if stage.left < 5:
            figures.note(cut_short=f"no time left after {number} of {wanted} shapes")
            return


def group(random: np.random.Generator, limits: BatchLimits, features: int, max_length: int) -> list[Steps]:
    """Sequences for a batch of any rows and width within the limits; short ones are as likely as long ones."""
    longest = round(float(np.exp(random.uniform(0, np.log(max_length)))))
    rows = int(random.integers(1, max(1, min(limits.rows, limits.padded_steps // longest)), endpoint=True))
    lengths = random.integers(1, longest, size=rows, endpoint=True).tolist()
    return [random.standard_normal((length, features), dtype=np.float32) for length in (*lengths[1:], longest)]


def growth(mib: list[float]) -> float:
    """From the first reading to the last, as a share."""
    return mib[-1] / mib[0] - 1
