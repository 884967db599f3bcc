import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.datasets.dataset import Label, Record
from lengthwise.errors import ConfigurationError
from lengthwise_export.training.batches import NO_TARGET, Example, batches, make_examples, stratified_split, stratum
from lengthwise_export.training.record_checks import check
from lengthwise_export.training.scores import class_weights
from tests.support.specs import spec


def record(length: int = 3, label: Label = "a", *, features: int = 3) -> Record:
    steps = np.arange(length * features, dtype=np.float32).reshape(length, features)
    return Record("x", steps, label, "data.jsonl:7")


def tokens(*ids: int) -> Record:
    return Record("x", np.array(ids, dtype=np.int64), "a", "data.jsonl:7")


def test_targets_follow_the_task() -> None:
    (single,) = make_examples([record(label="b")], spec())
    (several,) = make_examples([record(label=("b",))], spec(task="multi-label"))
    (each,) = make_examples([record(label=("b", "a", "b"))], spec(task="per-step"))
    assert single.target.item() == 1
    assert several.target.tolist() == [0.0, 1.0]
    assert each.target.tolist() == [1, 0, 1]


def test_a_step_without_a_label_has_no_target() -> None:
    open_steps = [record(label=("b", None, "a")), record(label=(None, None, None)), record(label=(None, "b", None))]
    first, last = made = make_examples(open_steps, spec(task="per-step"))
    assert [one.target.tolist() for one in made] == [[1, NO_TARGET, 0], [NO_TARGET, 1, NO_TARGET]]
    assert (stratum(first, "per-step"), stratum(last, "per-step")) == (0, 1)
    weights = class_weights(made, 2, "per-step")  # of 3 answers: one of the first class, two of the second
    assert weights.tolist() == pytest.approx([1.5, 0.75])


GAP = record()
GAP.steps[1, 1] = np.nan


@pytest.mark.parametrize(
    ("bad", "fields", "said"),
    [
        (record(label=None), {}, "no label"),
        (record(label="c"), {}, "'c' is none of output.labels; these 2 are 'a', 'b'$"),
        (record(label=("a",)), {}, "wants one label"),
        (record(label="a"), {"task": "multi-label"}, "wants a list of labels"),
        (record(label=("a", "b")), {"task": "per-step"}, "2 labels for 3 steps"),
        (record(features=2), {}, "2 features a step, the spec says 3"),
        (GAP, {}, ""),
        (tokens(1, 5), {"step": "vocabulary = 5"}, ""),
        (record(5), {"step": "features = 3\nmax_length = 2"}, r"input\.max_length"),
    ],
)
def test_a_record_that_does_not_fit_is_named_by_its_line(bad: Record, fields: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"data.jsonl:7: .*{said}"):
        check(bad, spec(**fields))


def test_a_record_that_fits_is_taken() -> None:
    check(GAP, spec(step='features = 3\nmissing = "mean"'))
    check(tokens(1, 4), spec(step="vocabulary = 5"))


@pytest.mark.parametrize(
    ("policy", "first_values"), [("head", [[0, 3]]), ("tail", [[9, 12]]), ("window", [[0, 3], [6, 9], [9, 12]])]
)
def test_a_sequence_past_the_max_length_is_cut_by_its_policy(policy: str, first_values: list[list[float]]) -> None:
    made = make_examples([record(5)], spec(step=f'features = 3\nmax_length = 2\nlong = "{policy}"'))
    assert [example.steps[:, 0].tolist() for example in made] == first_values


def test_labels_of_steps_are_cut_with_their_steps() -> None:
    labels = ("a", "b", "a", "a", "b")
    made = make_examples([record(5, labels)], spec(step='features = 3\nmax_length = 2\nlong = "tail"', task="per-step"))
    assert made[0].target.tolist() == [0, 1]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(0.05, 0.5), st.integers(0, 5))
def test_a_split_keeps_each_kind_on_both_sides(targets: list[int], share: float, seed: int) -> None:
    first, second = stratified_split(targets, share, seed=seed)
    assert sorted(first + second) == list(range(len(targets)))
    for kind in set(targets):
        count = targets.count(kind)
        aside = sum(targets[index] == kind for index in second)
        assert aside == (0 if count == 1 else min(max(round(share * count), 1), count - 1))


def test_a_split_of_nothing_keeps_everything() -> None:
    assert stratified_split([0, 0, 1, 1], 0, seed=0) == ([0, 1, 2, 3], [])


def test_what_is_spread_evenly_follows_the_task() -> None:
    steps = torch.zeros(3, 1)
    assert stratum(Example(steps, torch.tensor(2)), "single-label") == 2
    assert stratum(Example(steps, torch.tensor([1.0, 0.0])), "multi-label") == (1.0, 0.0)
    assert stratum(Example(steps, torch.tensor([1, 1, 0])), "per-step") == 1


def lengthy(lengths: list[int]) -> list[Example]:
    return [Example(torch.full((length, 1), float(length)), torch.tensor(0)) for length in lengths]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 3))
def test_every_example_comes_once_an_epoch(lengths: list[int], rows: int, seed: int) -> None:
    drawn = [length for batch in batches(lengthy(lengths), rows, seed=(seed,)) for length in batch.lengths.tolist()]
    assert sorted(drawn) == sorted(lengths)


def test_batches_of_like_length_hold_less_padding_than_batches_as_they_come() -> None:
    random = np.random.default_rng(0)
    members = lengthy(random.integers(1, 200, size=256).tolist())

    def padding(groups: list[list[Example]]) -> int:
        return sum(
            max(len(one.steps) for one in group) * len(group) - sum(len(one.steps) for one in group) for group in groups
        )

    as_they_come = padding([members[start : start + 8] for start in range(0, 256, 8)])
    grouped = sum(
        batch.steps.shape[0] * batch.steps.shape[1] - int(batch.lengths.sum())
        for batch in batches(members, 8, seed=(0,))
    )
    assert grouped < as_they_come / 4


def test_the_seed_decides_the_order_of_batches() -> None:
    members = lengthy(list(range(1, 60)))

    def order(seed: int) -> list[list[int]]:
        return [batch.lengths.tolist() for batch in batches(members, 4, seed=(seed, 0))]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_padded_steps_have_no_target() -> None:
    members = [Example(torch.zeros(2, 1), torch.tensor([1, 0])), Example(torch.zeros(1, 1), torch.tensor([1]))]
    (batch,) = batches(members, 2, seed=(0,))
    assert sorted(batch.targets.tolist()) == [[1, NO_TARGET], [1, 0]]
