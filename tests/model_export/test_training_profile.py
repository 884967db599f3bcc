"""The profile that an export keeps: of the sequences and answers as a service will see them."""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np

from lengthwise.datasets.dataset import Record
from lengthwise.decoding.calls import make_item
from lengthwise.padding import PaddedBatch
from lengthwise.runtime.data_profile import ProfileCounter
from lengthwise.runtime.manifest import Manifest, StepInput
from lengthwise.runtime.session import Outputs, Session
from lengthwise_export.exporting import accuracy
from lengthwise_export.exporting.verify import profile_of_served


class Seldom:
    """In the place of a session: it answers the first label, whatever the data."""

    def run(self, batch: PaddedBatch) -> Outputs:
        return Outputs(np.tile(np.array([5.0, 0.0], np.float32), (batch.rows, 1)), None)


def test_the_data_itself_has_not_drifted_when_it_is_served() -> None:
    manifest = Manifest(
        name="m", version=1, input=StepInput(features=1), labels=("often", "rare"), max_length=20, long="tail"
    )
    random = np.random.default_rng(0)
    steps = [random.normal(size=(length, 1)).astype(np.float32) for length in random.integers(1, 60, 400).tolist()]
    steps.append(np.full((3, 1), np.nan, dtype=np.float32))  # the model refuses it
    records = [
        Record(str(number), each, "rare" if number % 5 == 0 else "often", f"d:{number}")
        for number, each in enumerate(steps)
    ]
    classes_of = partial(accuracy.answered_classes, cast("Session", Seldom()), manifest)
    profile = profile_of_served(records, manifest, classes_of)
    assert profile is not None
    assert (profile.sequences, profile.classes, profile.missing) == (400, (1.0, 0.0), 0.0)
    served = [make_item(each, manifest, sent_steps=len(each)).steps for each in steps[:400]]
    counter = ProfileCounter(profile, manifest.classes)
    drift = counter.drift(counter.count(served, [0] * 400))
    assert max(drift.values()) < 1e-3


def test_of_data_that_the_model_does_not_accept_there_is_no_profile() -> None:
    manifest = Manifest(name="m", version=1, input=StepInput(features=1), labels=("a", "b"), max_length=2)
    records = [Record("1", np.ones((3, 1), dtype=np.float32), "a", "d:1")]
    assert profile_of_served(records, manifest, lambda _: []) is None
