import numpy as np
import pytest
import torch

from benchmarks import kept_aside, recurrent_reference
from benchmarks.kept_aside import LabelledSet
from tests.support.specs import separable


@pytest.mark.parametrize("name", ["each feature scaled", "20 % missing", "tokens", "skewed classes", "order of events"])
def test_a_set_fits_the_spec_that_a_newcomer_writes(name: str) -> None:
    data = kept_aside.read(name)
    spec = data.spec({})
    assert {str(record.label) for record in data.test} <= set(spec.output.labels)
    assert (spec.input.kind == "tokens") == data.is_tokens == (name == "tokens")
    assert data.misses_values == (name == "20 % missing")
    assert (spec.model.preset == "auto") == data.misses_values


def test_a_set_is_the_same_each_time_it_is_read() -> None:
    first, second = (kept_aside.read("order of events") for _ in range(2))
    for one, other in zip(first.training, second.training, strict=True):
        assert np.array_equal(one.steps, other.steps)
        assert one.label == other.label


def test_the_recurrent_reference_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(recurrent_reference, "STEPS", 40)
    data = LabelledSet("separable", separable(60), separable(40, seed=1))
    found, way = recurrent_reference.best_of_both(data, seed=0)
    assert found > 0.9
    assert way in ("levels", "shapes")
