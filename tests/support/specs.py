"""Small specs and records for tests."""

from __future__ import annotations

import numpy as np

from lengthwise.decoding.dataset import Record
from lengthwise_export.architecture.spec import Spec


def spec(text: str = "", *, step: str = "features = 3", labels: str = '["a", "b"]', task: str = "single-label") -> Spec:
    """A spec of 3 features and 8 units; `text` is its table `[model]`."""
    model = text if "hidden" in text or "rocket" in text else f"hidden = 8\n{text}"
    return Spec.from_toml(f'[input]\n{step}\n[model]\n{model}\n[output]\nlabels = {labels}\ntask = "{task}"\n')


def separable(count: int, *, seed: int = 0, features: int = 3) -> list[Record]:
    """Records of two labels that the sign of the first feature's mean tells apart; lengths 2 to 9."""
    random = np.random.default_rng(seed)
    records = []
    for index in range(count):
        steps = random.standard_normal((int(random.integers(2, 10)), features)).astype(np.float32)
        steps[:, 0] += 2.0 if index % 2 else -2.0
        records.append(Record(str(index), steps, "ab"[index % 2], f"made:{index}"))
    return records
