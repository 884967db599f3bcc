"""Runs every model of the gallery, alone and padded, and holds its verdict against what comes out. No checker is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.gallery.index import TORCH_LEAKING, TORCH_SOUND, Exhibit

TOLERANCE = 1e-5
LENGTHS = (7, 1, 11, 4, 9, 2)

Array = NDArray[Any]
Model = Callable[[Array, Array], Array]
"""Padded steps, rows first, and their lengths, to logits, rows first."""


@pytest.fixture(autouse=True)
def plain_path() -> Iterator[None]:
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(fast)
    torch.set_num_threads(threads)


def sequences(exhibit: Exhibit) -> list[Array]:
    rng = np.random.default_rng(3)
    lengths = [max(length, exhibit.shortest) for length in LENGTHS]
    if exhibit.vocabulary is not None:
        return [rng.integers(1, exhibit.vocabulary, size=length) for length in lengths]
    steps = [rng.normal(size=(length, exhibit.features)).astype(np.float32) for length in lengths]
    steps[0][3] = 0.0  # a step of zeros is data
    return steps


def padded(rows: list[Array], width: int, padding: Callable[[tuple[int, ...]], Array]) -> tuple[Array, Array]:
    batch = padding((len(rows), width, *rows[0].shape[1:])).astype(rows[0].dtype)
    for target, steps in zip(batch, rows, strict=True):
        target[: len(steps)] = steps
    return batch, np.array([len(steps) for steps in rows])


def junk(exhibit: Exhibit) -> Callable[[tuple[int, ...]], Array]:
    rng = np.random.default_rng(5)
    if exhibit.vocabulary is not None:
        return lambda shape: rng.integers(0, exhibit.vocabulary, size=shape)
    return lambda shape: rng.normal(scale=3.0, size=shape)


def torch_model(exhibit: Exhibit) -> Model:
    module = exhibit.make().eval()

    def run(batch: Array, lengths: Array) -> Array:
        steps = torch.from_numpy(batch.swapaxes(0, 1).copy() if exhibit.time_first else batch)
        second = torch.from_numpy(lengths)
        if exhibit.second == "mask":
            second = torch.arange(batch.shape[1]) < second[:, None]
        with torch.no_grad():
            answer = module(steps, second)
        return (answer if exhibit.output is None else answer[exhibit.output]).numpy()

    return run


def difference(exhibit: Exhibit, expected: list[Array], logits: Array) -> float:
    """The largest difference to what each row answers alone, at valid positions; infinite where one is not finite."""
    worst = 0.0
    for alone, row in zip(expected, logits, strict=True):
        here = row[: len(alone)] if exhibit.per_step else row
        gap = np.abs(here - alone).max()
        worst = max(worst, float(gap) if np.isfinite(gap) else np.inf)
    return worst


def alone(model: Model, rows: list[Array]) -> list[Array]:
    return [model(*padded([steps], len(steps), np.zeros))[0] for steps in rows]


def finite_differences(exhibit: Exhibit, model: Model) -> dict[str, float]:
    rows = sequences(exhibit)
    expected = alone(model, rows)
    longest = max(len(steps) for steps in rows)
    filled = junk(exhibit)
    trials = {
        "company": padded(rows, longest, np.zeros),
        "one wider": padded(rows, longest + 1, np.zeros),
        "much wider": padded(rows, longest + 18, np.zeros),
        "junk": padded(rows, longest + 2, filled),
    }
    found = {name: difference(exhibit, expected, model(*batch)) for name, batch in trials.items()}
    pair = rows[:1] + [steps[::-1].copy() for steps in rows[2:3]]
    found["other neighbour"] = difference(exhibit, expected[:1], model(*padded(pair, longest + 3, filled))[:1])
    found["alone, wider"] = max(
        difference(exhibit, [answer], model(*padded([steps], len(steps) + 4, filled)))
        for steps, answer in zip(rows, expected, strict=True)
    )
    return found


def poison_difference(exhibit: Exhibit, model: Model) -> float:
    rows = sequences(exhibit)
    expected = alone(model, rows)
    return max(
        difference(exhibit, expected, model(*padded(rows, 13, lambda shape, fill=fill: np.full(shape, fill))))
        for fill in (np.nan, np.inf, -np.inf, 1e30, -1e30)
    )


@pytest.mark.parametrize("exhibit", TORCH_LEAKING, ids=str)
def test_a_leaking_torch_model_leaks(exhibit: Exhibit) -> None:
    differences = finite_differences(exhibit, torch_model(exhibit))
    assert max(differences.values()) > 10 * TOLERANCE, differences


@pytest.mark.parametrize("exhibit", TORCH_SOUND, ids=str)
def test_a_sound_torch_model_answers_alike_alone_and_padded(exhibit: Exhibit) -> None:
    differences = finite_differences(exhibit, torch_model(exhibit))
    assert max(differences.values()) <= TOLERANCE, differences


@pytest.mark.parametrize("exhibit", [exhibit for exhibit in TORCH_SOUND if exhibit.features], ids=str)
def test_a_warning_and_nothing_else_comes_from_what_is_not_finite(exhibit: Exhibit) -> None:
    worst = poison_difference(exhibit, torch_model(exhibit))
    assert (worst > TOLERANCE) == (exhibit.verdict == "warning"), worst


@pytest.mark.parametrize("exhibit", TORCH_LEAKING, ids=str)
def test_a_leaking_torch_source_marks_one_line(exhibit: Exhibit) -> None:
    assert exhibit.line is not None


@pytest.mark.parametrize("room", ["torch_leaking", "torch_sound"])
def test_the_catalogue_lists_every_torch_source(room: str) -> None:
    listed = {exhibit.file for exhibit in TORCH_LEAKING + TORCH_SOUND if exhibit.room == room}
    assert listed == set(next(iter(listed)).parent.glob("*.py"))
