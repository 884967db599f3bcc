import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lengthwise.datasets.dataset import Record
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import choice, recipe, rocket
from lengthwise_export.training.choice import Plan
from lengthwise_export.training.options import TrainingOptions, TrainOptions
from tests.support.specs import parsed_spec

ROCKET = parsed_spec(
    "[input]\nfeatures = 1\nnormalize = 'both'\n[model]\nkind = 'rocket'\n[output]\nlabels = ['a', 'b']"
)


def records(count: int, length: int = 20) -> list[Record]:
    random = np.random.default_rng(0)
    return [
        Record(str(index), random.standard_normal((length, 1)).astype(np.float32), "ab"[index % 2], "made")
        for index in range(count)
    ]


def compared(others: tuple[str, ...], count: int, spec: Spec = ROCKET) -> Plan:
    return choice.choose_with_whole_models(Plan(spec, close=others), records(count), TrainingOptions())


def losing(
    monkeypatch: pytest.MonkeyPatch, losses: dict[str, float], *, accuracy: float = 0.8, spread: float = 0.0
) -> list[tuple[str, int]]:
    """Has whole models lose so much; the list gets the normalisation and the number of records of each.

    With a spread, the losses about the records differ by so much, at random.
    """
    fitted: list[tuple[str, int]] = []
    random = np.random.default_rng(1)

    def fit(spec: Spec, given: list[Record], _options: object) -> SimpleNamespace:
        name = spec.input.normalize
        fitted.append((name, len(given)))
        if name not in losses:
            raise np.linalg.LinAlgError("singular")
        of_each = losses[name] + spread * random.standard_normal(len(given))
        loss = float(of_each.mean())
        return SimpleNamespace(
            splits={"left_out": SimpleNamespace(loss=loss, losses=of_each, accuracy=accuracy, answers=len(given))}
        )

    monkeypatch.setattr(rocket, "fit", fit)
    return fitted


def test_a_grid_of_the_training_split_has_the_statistics_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, {})
    given = [replace(each, steps=each.steps * 10.0 ** (place % 4)) for place, each in enumerate(records(20))]
    for grid, chosen in (("sequence", "both"), ("training", "training")):
        open_spec = ROCKET.with_keys(input={"normalize": "auto"}, model={"grid": grid})
        assert recipe.plan(open_spec, given, TrainOptions()).spec.input.normalize == chosen


@pytest.mark.parametrize("least", ["training", "none"])
def test_the_normalisation_with_which_a_whole_model_loses_less_is_taken(
    least: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, {"both": 0.3, "training": 0.25, "sequence": 0.27} | {least: 0.15}, spread=0.1)
    found = compared(("training", "sequence", "feature-scale"), 120)  # the last one cannot be fitted
    assert found.spec.input.normalize == least
    (reason,) = found.reasons
    assert reason.startswith(f'normalize = "{least}": held-out log loss of whole models on 120 records')
    assert re.search(r"both 0\.[23]\d\d, .*sequence 0\.2\d\d, training 0\.[12]\d\d$", reason)


@pytest.mark.parametrize(
    ("losses", "spread"),
    [({"both": 0.3, "training": 0.28}, 1.0), ({"training": 0.1}, 0.0)],
    ids=["may be chance", "cannot be fitted"],
)
def test_what_the_probe_prefers_is_kept(
    losses: dict[str, float], spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, losses, spread=spread)
    found = compared(("training",), 120)
    assert (found.spec, found.reasons) == (ROCKET, ())


def test_few_records_other_tasks_and_nearly_perfect_ones_are_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted = losing(monkeypatch, {"both": 0.3, "training": 0.1})
    assert compared(("training",), 99).spec is ROCKET
    assert compared((), 120).spec is ROCKET
    several = ROCKET.with_keys(output={"task": "multi-label"})
    assert compared(("training",), 120, several).spec is several
    assert not fitted
    fitted = losing(monkeypatch, {"both": 0.3, "training": 0.1}, accuracy=0.98)
    assert compared(("training",), 120).spec is ROCKET
    assert fitted == [("both", 120)]


@pytest.mark.parametrize(
    ("limits", "step", "most"),
    [
        ({"COMPARED_STEPS": 3000}, {}, 150),
        ({"COMPARED_STEPS": 3000, "MOST_COMPARED": 110}, {}, 110),
        ({"COMPARED_STEPS": 3000}, {"max_length": 10, "long": "head"}, 200),  # steps that are cut off do not count
    ],
)
def test_of_many_records_or_steps_a_part_is_compared(
    limits: dict[str, int], step: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = losing(monkeypatch, {"both": 0.3, "training": 0.1})
    for name, limit in limits.items():
        monkeypatch.setattr(choice, name, limit)
    found = compared(("training",), 200, ROCKET.with_keys(input=step))
    assert found.spec.input.normalize == "training"
    assert fitted == [("both", most), ("training", most), ("none", most)]
    assert (found.fitted is None) == (most < 200)


@pytest.mark.parametrize("model", ["", "kind = 'rocket'"])
def test_what_is_close_in_the_probe_is_compared_before_a_rocket_model_is_planned(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    def compare(found: Plan, *_: object, **_more: object) -> Plan:
        asked.append((found.spec.model.kind, found.close))
        return replace(found, spec=found.spec.with_keys(input={"normalize": "none"}))

    monkeypatch.setattr(choice, "choose_with_whole_models", compare)
    made = parsed_spec(f"[input]\nfeatures = 1\n[model]\n{model}\n[output]\nlabels = ['a', 'b']")
    found = recipe.plan(made, records(24), TrainOptions())
    ((kind, others),) = asked
    assert kind == "rocket"
    assert set(others) <= {"both", "training", "sequence", "sequence-scale"}
    assert others
    assert found.spec.input.normalize == "none"
