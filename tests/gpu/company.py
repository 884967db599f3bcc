"""What is asked of a model on a GPU at every precision: sequences, and each alone against the same in company."""

import numpy as np

from lengthwise.padding import Steps, pad
from lengthwise.repository.loading import LoadedModel


def sequences(count: int, seed: int = 0, longest: int = 300) -> list[Steps]:
    """Sequences of the bundled model's features, of all lengths up to the longest."""
    random = np.random.default_rng(seed)
    return [random.normal(size=(n, 12)).astype(np.float32) for n in random.integers(1, longest + 1, count)]


def hold_to_its_promise(served: LoadedModel) -> None:
    """Fails where a neighbour moves an answer by more than the model's promise, made where it runs, allows."""
    assert served.promise is not None
    assert served.promise.provider == served.session.provider
    members = sequences(24, seed=1)
    together = served.session.run(pad(members)).logits
    for steps, in_company in zip(members, together, strict=True):
        alone = served.session.run(pad([steps])).logits[0]
        assert np.abs(alone - in_company).max() <= served.promise.tolerance
