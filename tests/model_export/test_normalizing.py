from types import SimpleNamespace

import numpy as np
import pytest

from lengthwise.decoding.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import normalizing, rocket

ROCKET = Spec.from_toml(
    "[input]\nfeatures = 1\nnormalize = 'both'\n[model]\nkind = 'rocket'\n[output]\nlabels = ['a', 'b']"
)


def records(count: int, length: int = 20) -> list[Record]:
    random = np.random.default_rng(0)
    return [
        Record(str(index), random.standard_normal((length, 1)).astype(np.float32), "ab"[index % 2], "made")
        for index in range(count)
    ]


def losing(monkeypatch: pytest.MonkeyPatch, losses: dict[str, float], accuracy: float = 0.8) -> list[tuple[str, int]]:
    """Has whole models lose so much; the list gets the normalisation and the number of records of each."""
    fitted: list[tuple[str, int]] = []

    def fit(spec: Spec, given: list[Record], _options: object) -> SimpleNamespace:
        fitted.append((spec.input.normalize, len(given)))
        return SimpleNamespace(left_out=SimpleNamespace(loss=losses[spec.input.normalize], accuracy=accuracy))

    monkeypatch.setattr(rocket, "fit", fit)
    return fitted


def test_the_normalisation_with_which_a_whole_model_loses_clearly_less_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losing(monkeypatch, {"both": 0.3, "training": 0.2, "sequence": 0.25})
    reasons: list[str] = []
    found = normalizing.with_all_kernels(ROCKET, ("training", "sequence"), records(12), reasons)
    assert found.input.normalize == "training"
    (reason,) = reasons
    assert reason.startswith('normalize = "training": with all kernels')
    assert "both 0.300, sequence 0.250, training 0.200" in reason


def test_a_small_difference_does_not_change_what_the_probe_prefers(monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, {"both": 0.3, "training": 0.28})
    reasons: list[str] = []
    assert normalizing.with_all_kernels(ROCKET, ("training",), records(12), reasons) is ROCKET
    assert not reasons


def test_nothing_is_compared_where_nearly_all_are_right_or_nothing_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = losing(monkeypatch, {"both": 0.3, "training": 0.1}, accuracy=0.98)
    assert normalizing.with_all_kernels(ROCKET, ("training",), records(12), []) is ROCKET
    assert fitted == [("both", 12)]
    assert normalizing.with_all_kernels(ROCKET, (), records(12), []) is ROCKET
    assert len(fitted) == 1


def test_of_many_steps_a_part_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = losing(monkeypatch, {"both": 0.3, "training": 0.1})
    monkeypatch.setattr(normalizing, "COMPARED_STEPS", 100)
    normalizing.with_all_kernels(ROCKET, ("training",), records(12), [])
    assert fitted == [("both", 5), ("training", 5)]
    fitted.clear()
    normalizing.with_all_kernels(ROCKET, ("training",), records(3, length=1000), [])
    assert fitted == [("both", 1), ("training", 1)]


@pytest.mark.parametrize("error", [ConfigurationError("too few"), np.linalg.LinAlgError("singular")])
def test_where_a_whole_model_cannot_be_fitted_the_choice_of_the_probe_stays(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fit(*_: object) -> None:
        raise error

    monkeypatch.setattr(rocket, "fit", fit)
    assert normalizing.with_all_kernels(ROCKET, ("training",), records(12), []) is ROCKET
