from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lengthwise.datasets.dataset import Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.architecture.spec import Spec, as_toml
from lengthwise_export.training import recipe, rocket
from lengthwise_export.training.options import TrainingOptions, TrainOptions
from lengthwise_export.training.record_checks import allow_open_missing, check
from lengthwise_export.training.train import Epoch, TrainingProgress, learning_rate
from tests.support.specs import parsed_spec, separable

LAYERS = {"epochs": 3}  # an option of gradient descent, which asks for layers


def in_turn(sequences: Iterable[np.ndarray]) -> list[Record]:
    """Records of two labels, in turn."""
    return [Record(str(index), steps, "ab"[index % 2], f"made:{index}") for index, steps in enumerate(sequences)]


def waves(count: int, *, scales: bool = False, length: int = 30) -> list[Record]:
    """Records whose label is their frequency; with `scales`, each is larger or smaller by orders of magnitude."""
    random, made = np.random.default_rng(0), []
    for index in range(count):
        angle = np.arange(int(random.integers(length // 2, length)))[:, None] * (0.4 + 0.7 * (index % 2))
        values = np.sin(angle + random.uniform(0, 6)) + 0.1 * random.standard_normal(angle.shape)
        made.append((values * 10.0 ** random.uniform(-4, 4) if scales else values).astype(np.float32))
    return in_turn(made)


OPEN = "features = 1"
NORMALISED = "features = 1\nnormalize = 'training'"  # choosing it takes five fits


def spec(model: str = "", step: str = NORMALISED, labels: str = "['a', 'b']", task: str = "single-label") -> Spec:
    return parsed_spec(f"[input]\n{step}\n[model]\n{model}\n[output]\nlabels = {labels}\ntask = '{task}'")


def plan(made: Spec, records: list[Record], given: dict[str, Any] | None = None, **options: Any) -> recipe.Plan:
    return recipe.plan(made, records, TrainOptions(**(given or {}) | options))


def test_sequences_of_very_different_scales_are_normalised_by_themselves() -> None:
    found = plan(spec(step=OPEN), waves(60, scales=True))
    assert found.spec.input.normalize in ("sequence", "sequence-scale")
    assert any("differ by a factor of" in reason and "log loss" in reason for reason in found.reasons)


@pytest.mark.parametrize("given", [{}, LAYERS])
def test_where_the_level_tells_the_classes_apart_its_sign_is_kept(given: dict[str, Any]) -> None:
    found = plan(spec(step="features = 3"), separable(60), given).spec
    assert found.input.normalize in ("training", "both", "sequence-scale", "feature-scale")


def test_a_choice_of_the_user_is_kept() -> None:
    made = spec("preset = 'conv'\nhidden = 7", step="features = 1\nnormalize = 'none'")
    given = {"epochs": 2, "learning_rate": 0.5}
    found = plan(made, waves(40, scales=True), given)
    assert found.spec.input.normalize == "none"
    assert found.spec.model.pooling == "mean-max"
    assert (found.options.epochs, found.options.learning_rate) == (2, 0.5)


@pytest.mark.parametrize(
    ("made", "length", "asked", "kind"),
    [
        (spec("hidden = 8"), 30, {}, {"kind": "layers", "hidden": 8}),
        (spec("preset = 'auto'"), 30, {}, {"kind": "rocket"}),
        (spec(), 30, LAYERS, {"kind": "layers", "rnn": "lstm"}),
        (spec(), 200, LAYERS, {"kind": "layers", "pooling": "mean-max"}),
    ],
)
def test_few_records_get_fixed_kernels_unless_layers_are_asked_for(
    made: Spec, length: int, asked: dict[str, Any], kind: dict[str, Any]
) -> None:
    model = plan(made, waves(40, length=length), asked).spec.model
    assert {name: getattr(model, name) for name in kind} == kind


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("model", ["", "kind = 'rocket'\nkernels = 840"])
def test_what_was_fitted_for_the_choice_is_not_fitted_again(model: str) -> None:
    records = waves(120, scales=True)
    found = plan(spec(model, step=OPEN), records, seed=5)
    assert found.fitted is not None
    again = rocket.fit(found.spec, records, found.options).model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in found.fitted.model.state_dict().items())
    assert plan(spec(model, step=OPEN), records, calibration=False).fitted is None


def test_missing_values_get_a_policy_only_where_everything_may_be_chosen() -> None:
    records = waves(40)
    records[0].steps[3, 0] = np.nan
    assert plan(spec("preset = 'auto'"), records).spec.input.missing in ("indicator", "mean")
    assert plan(spec("preset = 'auto'"), records, LAYERS).spec.input.missing == "indicator"
    check(records[0], allow_open_missing(spec("preset = 'auto'")))
    with pytest.raises(ConfigurationError):
        check(records[0], allow_open_missing(spec()))


def test_the_options_of_a_run_follow_the_records_unless_they_are_given() -> None:
    made = spec("hidden = 8")
    found = plan(made, waves(40))
    assert found.options.validation == 0
    assert any("too few to choose an epoch by" in reason for reason in found.reasons)
    asked = plan(made, waves(40), {"validation": 0.2})
    assert asked.options.validation == 0.2
    assert any("mostly chance" in warning for warning in asked.warnings)
    assert plan(made, waves(500)).options.validation == 0.15
    assert plan(made, waves(32)).options.epochs == 300  # so that there are enough steps
    assert plan(made, waves(32), {"epochs": 3}).options.epochs == 3
    skewed = [replace(record, label="a" if index % 20 else "b") for index, record in enumerate(waves(60))]
    assert plan(made, skewed).options.class_weights
    assert not plan(made, waves(60)).options.class_weights


def test_one_scale_for_all_features_is_used_where_their_relation_matters() -> None:
    random = np.random.default_rng(0)
    values = [random.standard_normal((12, 3)) * 0.3 + [1.0, 1.0 + index % 2, -1.0] for index in range(60)]
    scaled = ((each * 10.0 ** random.uniform(-3, 3)).astype(np.float32) for each in values)
    found = plan(spec(step="features = 3"), in_turn(scaled))
    assert found.spec.input.normalize == "sequence-scale"
    assert found.spec.model.kind == "rocket"


def test_the_choice_of_fixed_kernels_is_explained_with_their_accuracy() -> None:
    [why] = [reason for reason in plan(spec(), waves(48)).reasons if reason.startswith('kind = "rocket"')]
    assert "% of the records (leave-one-out)" in why
    assert '`preset = "rnn"` in [model] trains a neural network' in why


@pytest.mark.parametrize("model", ["kind = 'rocket'", "hidden = 8"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda records: records, "no record has the label c"),
        (lambda records: [replace(records[0], label="c"), *records[1:]], "only one record has the label c"),
        (lambda records: [replace(one, label="a") for one in records], "every record has the label a"),
        (lambda records: records[:3], "3 records are few"),
        (lambda records: [replace(one, id="same") for one in records], "have the id same"),
        (lambda records: [replace(one, steps=one.steps[:1]) for one in records], "every sequence has one step"),
    ],
)
def test_what_is_odd_about_the_records_is_said_whatever_is_trained(
    model: str, change: Callable[[list[Record]], list[Record]], said: str
) -> None:
    good = [replace(record, id=str(place)) for place, record in enumerate(waves(40))]
    found = plan(spec(model, labels="['a', 'b', 'c']"), change(good))
    assert any(said in warning for warning in found.warnings)
    assert plan(spec(model), good).warnings == ()


@pytest.mark.long
def test_windows_that_are_too_many_for_fixed_kernels_get_layers() -> None:
    records = in_turn(np.random.default_rng(0).normal(size=(30, 2000, 1)).astype(np.float32))
    step = "features = 1\nmax_length = 1\nlong = 'window'\nnormalize = 'training'"
    assert plan(spec(step=step), records).spec.model.kind == "layers"


def test_layers_need_two_records() -> None:
    for few in ([], waves(1)):
        with pytest.raises(ConfigurationError):
            plan(spec("hidden = 8"), few)


def test_the_other_tasks_and_tokens_are_planned_too() -> None:
    for task in ("multi-label", "per-step"):
        records = [
            replace(record, label=(record.label,) if task == "multi-label" else (record.label,) * len(record.steps))
            for record in waves(40, scales=True)
        ]
        found = plan(spec(step=OPEN, task=task), records)
        assert found.spec.model.kind == "layers"
        assert found.spec.input.normalize != "auto"
    assert plan(spec(step="vocabulary = 4"), in_turn([np.arange(5) % 4] * 30)).spec.model.rnn == "lstm"


@pytest.mark.parametrize("length", [30, 200])
def test_the_spec_that_is_written_reads_as_the_one_that_is_trained(length: int) -> None:
    found = plan(spec(step=OPEN), waves(40, length=length), LAYERS)
    text = as_toml(found.spec, [*found.reasons, 'a "quoted" note\nof two lines'])
    resolved = found.spec.resolved()
    assert parsed_spec(text).resolved() == resolved == parsed_spec(as_toml(resolved)).resolved()
    assert '"auto"' not in text
    odd = {"input": {"features": 1, "feature_names": ['x "y" \\ z\u007f']}, "output": {"labels": ["ä\n", "\t'b'"]}}
    assert parsed_spec(as_toml(Spec.from_table(odd))).resolved() == Spec.from_table(odd).resolved()


def test_the_learning_rate_rises_and_falls() -> None:
    options = TrainingOptions(epochs=10, learning_rate=1.0)
    rates = [learning_rate(options, number, share) for number in range(10) for share in (0.0, 0.5)]
    assert rates.index(max(rates)) in (1, 2, 3)
    assert rates[0] < 0.1
    assert rates[-1] < 0.05


@pytest.mark.parametrize(("last", "said"), [(0.5, True), (0.99, False)])
def test_a_loss_that_still_falls_at_the_end_is_noticed(last: float, said: bool) -> None:
    progress = TrainingProgress()
    for number in range(20):
        progress.add(Epoch(number, 1.0, last if number >= 18 else 1.0, 0.5))
    assert progress.still_improves(TrainingOptions(epochs=20)) is said
    assert not progress.still_improves(TrainingOptions(epochs=40))
