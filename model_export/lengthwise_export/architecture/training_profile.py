"""The profile of data that the manifest keeps, so that a service can tell how its sequences drift from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lengthwise.decoding.calls import make_item, why_rejected
from lengthwise.decoding.dataset import Record
from lengthwise.runtime.data_profile import MOST_SEQUENCES, DataProfile
from lengthwise.runtime.manifest import Manifest


def profile_of_served(
    records: Sequence[Record], manifest: Manifest, classes_of: Callable[[Sequence[Record]], Sequence[Sequence[int]]]
) -> DataProfile | None:
    """The profile of records as a service sees them: those that the model accepts, cut as it cuts them, and answered.

    The labels of the data are not used: a model that answers a rare label still more rarely would always drift.

    Args:
        records: The records.
        manifest: The model's manifest.
        classes_of: The classes that the model answers to each of some records.

    Returns:
        The profile; None if the model accepts none of the records.
    """
    accepted = [record for record in records if why_rejected(record.steps, manifest) is None]
    if not accepted:
        return None
    count = len(accepted)
    if count > MOST_SEQUENCES:
        places = np.random.default_rng(0).permutation(count)[:MOST_SEQUENCES].tolist()
        accepted = [accepted[place] for place in places]
    items = [make_item(record.steps, manifest, sent_steps=len(record.steps)) for record in accepted]
    profile = DataProfile.of([item.steps for item in items], classes_of(accepted), labels=manifest.classes)
    return profile.model_copy(update={"sequences": count})
