"""The profile of training data: its bins, and that a drift exceeds its limits and chance does not."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lengthwise.padding import Steps
from lengthwise.runtime.data_profile import WINDOW_SEQUENCES, Bins, DataProfile, ProfileCounter

CLASSES = 4


def sequences(
    random: np.random.Generator, count: int, *, longer: float = 1.0, missing: float = 0.0, shift: float = 0.0
) -> list[Steps]:
    """Random walks of three features, whose neighbouring steps are alike, as those of sensors are."""
    made: list[Steps] = []
    for length in np.maximum(1, random.lognormal(np.log(30), 0.5, count) * longer).astype(int).tolist():
        steps = (random.normal(size=(length, 3)) + random.normal(size=3)).astype(np.float32)
        steps[:, 1] += shift * np.sqrt(2)  # in deviations: one of the sequence, one of the step
        steps[random.random(steps.shape) < missing] = np.nan
        made.append(steps)
    return made


@pytest.fixture(scope="module")
def profile() -> DataProfile:
    random = np.random.default_rng(1)
    seen, classes = sequences(random, 400, missing=0.05), random.choice(CLASSES, 400).tolist()
    return DataProfile.of(seen, [[one] for one in classes], labels=CLASSES)


def drifted(profile: DataProfile, seen: list[Steps], answers: list[int]) -> set[str]:
    counter = ProfileCounter(profile, CLASSES)
    drift = counter.drift(counter.count(seen, answers))
    return {what for what, psi in drift.items() if psi > profile.limits.of(what)}


def test_twenty_windows_without_a_drift_stay_below_every_limit(profile: DataProfile) -> None:
    assert DataProfile.model_validate_json(profile.model_dump_json()) == profile
    random = np.random.default_rng(2)
    for _ in range(20):
        seen = sequences(random, WINDOW_SEQUENCES, missing=0.05)
        assert drifted(profile, seen, random.choice(CLASSES, WINDOW_SEQUENCES).tolist()) == set()


@pytest.mark.parametrize(
    ("change", "shares", "what"),
    [
        ({"longer": 1.5, "missing": 0.05}, None, "length"),
        ({"missing": 0.25}, None, "missing"),
        ({"missing": 0.05, "shift": 1.0}, None, "feature 1"),
        ({"missing": 0.05}, [0.55, 0.15, 0.15, 0.15], "class"),
    ],
)
def test_a_drift_exceeds_its_limit_and_no_other(
    profile: DataProfile, change: dict[str, float], shares: list[float] | None, what: str
) -> None:
    random = np.random.default_rng(3)
    seen = sequences(random, WINDOW_SEQUENCES, **change)
    assert drifted(profile, seen, random.choice(CLASSES, WINDOW_SEQUENCES, p=shares).tolist()) == {what}


def steady(random: np.random.Generator, length: int) -> Steps:
    """Tenths: as float32 some are above the same number in float64, and some below."""
    return (random.integers(0, 10, (length, 1)) / 10).astype(np.float32)


def higher_if_long(random: np.random.Generator, length: int) -> Steps:
    return (random.normal(size=(length, 1)) + (2 if length > 100 else 0)).astype(np.float32)


@pytest.mark.parametrize("draw", [steady, higher_if_long])
def test_the_training_data_itself_has_not_drifted(draw: Callable[[np.random.Generator, int], Steps]) -> None:
    random = np.random.default_rng(5)
    trained = [draw(random, 10 if number % 2 else 200) for number in range(WINDOW_SEQUENCES)]
    profile = DataProfile.of(trained, None, labels=CLASSES)
    counter = ProfileCounter(profile, CLASSES)
    assert max(counter.drift(counter.count(trained, [])).values()) < 1e-3


def test_bins_of_few_distinct_values_have_few_edges() -> None:
    assert Bins.of(np.array([2.0] * 10)) == Bins(edges=(2.0,), shares=(1.0, 0.0))
    assert Bins.of(np.array([])) == Bins(edges=(), shares=(0.0,))
    with pytest.raises(ValidationError):
        Bins(edges=(1.0,), shares=(1.0,))
    with pytest.raises(ValidationError):
        Bins(edges=(2.0, 1.0), shares=(0.3, 0.3, 0.4))


def test_token_ids_are_one_feature() -> None:
    random = np.random.default_rng(0)
    made = [random.integers(0, 50, size=length) for length in range(1, 40)]
    profile = DataProfile.of(made, None, labels=CLASSES)
    assert len(profile.features) == 1
    assert profile.classes is None
    assert "feature 0" in drifted(profile, [np.full(9, 49)] * 300, [0] * 300)


def test_a_feature_that_was_never_present_is_compared_with_nothing() -> None:
    absent = [np.full((5, 2), np.nan, dtype=np.float32) for _ in range(20)]
    profile = DataProfile.of(absent, None, labels=CLASSES)
    assert profile.missing == 1.0
    assert drifted(profile, [np.ones((5, 2), dtype=np.float32)] * 300, []) == {"missing"}


@given(st.lists(st.integers(1, 90), min_size=1, max_size=20), st.floats(0, 1))
def test_counts_of_parts_add_up(lengths: list[int], missing: float) -> None:
    random = np.random.default_rng(len(lengths))
    made: list[Steps] = [random.normal(size=(length, 2)).astype(np.float32) for length in lengths]
    for steps in made:
        steps[random.random(steps.shape) < missing] = np.nan
    profile = DataProfile.of(made, [[0]] * len(made), labels=2)
    counter = ProfileCounter(profile, 2)
    whole, parts = counter.count(made, [1] * len(made)), counter.count(made[:1], [1])
    for steps in made[1:]:
        parts = parts + counter.count([steps], [1])
    for name in ("sequences", "present", "missing"):
        assert getattr(whole, name) == getattr(parts, name)
    for name in ("lengths", "features", "classes"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    assert whole.features.sum() == whole.present
    assert np.array_equal((whole - parts).features, np.zeros_like(whole.features))
