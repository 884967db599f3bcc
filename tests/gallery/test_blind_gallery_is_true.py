"""What the catalogue says of models without lengths holds: seen by running them, without any checker."""

import inspect

import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from tests.gallery.blind_index import BLIND, UNMENDABLE
from tests.gallery.company import compare, ragged
from tests.gallery.index import Exhibit
from tests.gallery.trials import TOLERANCE, Array, alone, finite_differences, junk, padded, run_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0"),
]

RAISED = (RuntimeError, IndexError, ValueError, Fail, InvalidArgument, RuntimeException)
BY_NAME = {str(exhibit): exhibit for exhibit in UNMENDABLE}


def named(torch_names: str, onnx_names: str = "") -> list[str]:
    """The names of models, torch modules and graphs."""
    return [
        f"{kind}_unmendable/{name}"
        for kind, names in (("torch", torch_names), ("onnx", onnx_names))
        for name in names.split()
    ]


OTHER_ROWS = named(
    "attention_between_rows batch_first_forgotten batch_statistics branch_on_values mean_over_rows ranked_among_rows "
    "softmax_over_rows",
    "batch_statistics mean_over_rows",
)
RANDOM = named("dropout_always_on noise_added", "noise")
ONE_WIDTH = named("fixed_width_head mixer_of_fixed_width", "frozen_flatten")
WHOLE_WIDTH_AT_ONCE = named("fourier_mixing steps_chosen_by_value", "compressed resampled spectrum")
CHUNKS, LOOP, BRANCH = named("chunks_of_eight python_loop branch_on_width")


def unpadded(exhibit: Exhibit, rows: int, width: int, seed: int = 5) -> tuple[Array, Array]:
    """Sequences that are all as long as the batch is wide."""
    rng = np.random.default_rng(seed)
    if exhibit.vocabulary is not None:
        return rng.integers(0, exhibit.vocabulary, size=(rows, width)), np.full(rows, width)
    return rng.normal(size=(rows, width, exhibit.features)).astype(np.float32), np.full(rows, width)


@pytest.mark.parametrize("exhibit", BLIND, ids=str)
def test_padding_reaches_the_answer_of_a_model_without_lengths(exhibit: Exhibit) -> None:
    differences = finite_differences(exhibit, run_of(exhibit))
    assert 10 * TOLERANCE < max(differences.values()) < np.inf, differences


@pytest.mark.parametrize("exhibit", BLIND, ids=str)
def test_alone_it_answers_the_same_twice_and_among_rows_and_something_else_to_other_steps(exhibit: Exhibit) -> None:
    model = run_of(exhibit)
    steps, other = unpadded(exhibit, 1, 20), unpadded(exhibit, 1, 20, seed=6)
    assert np.array_equal(model(*steps), model(*steps))
    assert np.abs(model(*steps) - model(*other)).max() > 10 * TOLERANCE
    rows, lengths = unpadded(exhibit, 5, 23)
    one_by_one = np.concatenate([model(row[None], lengths[:1]) for row in rows])
    assert np.abs(model(rows, lengths) - one_by_one).max() <= TOLERANCE


@pytest.mark.parametrize("exhibit", BLIND, ids=str)
def test_the_shortest_sequence_that_it_takes_is_the_one_that_the_catalogue_says(exhibit: Exhibit) -> None:
    assert answers_finitely(exhibit, exhibit.shortest)
    assert exhibit.shortest == 1 or not answers_finitely(exhibit, exhibit.shortest - 1)


@pytest.mark.parametrize("exhibit", [exhibit for exhibit in BLIND if exhibit.longest], ids=str)
def test_the_widest_batch_that_it_takes_is_the_one_that_the_catalogue_says(exhibit: Exhibit) -> None:
    assert answers_finitely(exhibit, exhibit.longest)
    assert not answers_finitely(exhibit, exhibit.longest + 1)


def answers_finitely(exhibit: Exhibit, width: int) -> bool:
    try:
        answer = run_of(exhibit)(*unpadded(exhibit, 1, width))
    except RAISED:
        return False
    return bool(np.isfinite(answer).all())


@pytest.mark.parametrize("exhibit", BLIND, ids=str)
def test_a_model_that_ignores_its_lengths_does_not_pass_for_mended(exhibit: Exhibit) -> None:
    assert compare(exhibit, run_of(exhibit), count=60).difference > 10 * TOLERANCE


def test_a_model_that_cuts_each_row_to_its_length_passes_for_mended() -> None:
    exhibit = next(exhibit for exhibit in BLIND if exhibit.name == "bilstm_tagger")
    original = run_of(exhibit)

    def cut(batch: Array, lengths: Array) -> Array:
        answers = [original(row[None, :length], lengths) for row, length in zip(batch, lengths, strict=True)]
        widest = batch.shape[1]
        return np.concatenate([np.pad(each, [(0, 0), (0, widest - each.shape[1]), (0, 0)]) for each in answers])

    compared = compare(exhibit, cut, count=60)
    assert (compared.difference, compared.other_bits, compared.sequences) == (0.0, 0, 60)


def test_the_sequences_tried_are_of_many_lengths() -> None:
    exhibit = next(exhibit for exhibit in BLIND if exhibit.name == "x_vector")
    lengths = {len(steps) for steps in ragged(exhibit, 200)}
    assert min(lengths) == exhibit.shortest
    assert max(lengths) == 64
    assert len(lengths) > 40


@pytest.mark.parametrize("exhibit", BLIND + UNMENDABLE, ids=str)
def test_a_model_takes_its_steps_alone(exhibit: Exhibit) -> None:
    model = exhibit.make()
    if exhibit.is_torch:
        assert len(inspect.signature(model.forward).parameters) == 1
    else:
        assert [node.name for node in model.graph.input] == [exhibit.values]


def test_every_model_that_cannot_be_mended_is_shown_to_be_so() -> None:
    assert sorted(BY_NAME) == sorted([*OTHER_ROWS, *RANDOM, *ONE_WIDTH, *WHOLE_WIDTH_AT_ONCE, CHUNKS, LOOP, BRANCH])


@pytest.mark.parametrize("name", OTHER_ROWS)
def test_other_rows_change_an_answer_without_any_padding(name: str) -> None:
    exhibit = BY_NAME[name]
    model = run_of(exhibit)
    steps, lengths = unpadded(exhibit, 4, 9)
    louder = 5 * steps
    louder[2] = steps[2]
    assert np.abs(model(steps, lengths)[2] - model(louder, lengths)[2]).max() > 10 * TOLERANCE


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_sequence_gets_another_answer(name: str) -> None:
    exhibit = BY_NAME[name]
    model, batch = run_of(exhibit), unpadded(exhibit, 1, 9)
    assert np.abs(model(*batch) - model(*batch)).max() > 10 * TOLERANCE


@pytest.mark.parametrize("name", ONE_WIDTH)
def test_it_runs_at_one_width_alone(name: str) -> None:
    exhibit = BY_NAME[name]
    assert answers_finitely(exhibit, exhibit.longest)
    assert not any(answers_finitely(exhibit, exhibit.longest + change) for change in (-4, -2, 2, 4))


def test_a_model_of_whole_chunks_runs_at_their_widths_alone() -> None:
    assert [width for width in range(1, 33) if answers_finitely(BY_NAME[CHUNKS], width)] == [8, 16, 24, 32]


@pytest.mark.parametrize("name", WHOLE_WIDTH_AT_ONCE)
def test_what_an_operator_of_the_whole_width_answers_changes_with_padding(name: str) -> None:
    exhibit = BY_NAME[name]
    model = run_of(exhibit)
    steps, lengths = unpadded(exhibit, 4, 11)
    expected = np.stack(alone(model, list(steps)))
    assert np.abs(model(steps, lengths) - expected).max() <= TOLERANCE
    wider = padded(list(steps), 17, junk(exhibit))
    assert np.abs(model(*wider) - expected).max() > 10 * TOLERANCE


def operators(exhibit: Exhibit, width: int) -> list[str]:
    """The operators of the graph that torch makes of a module at a width."""
    steps = torch.zeros(2, width, exhibit.features)
    return [str(node.target) for node in torch.export.export(exhibit.make().eval(), (steps,)).graph.nodes]


def test_a_loop_or_a_branch_in_python_makes_another_graph_for_another_width() -> None:
    assert len(operators(BY_NAME[LOOP], 8)) > len(operators(BY_NAME[LOOP], 4)) + 4
    assert {*operators(BY_NAME[BRANCH], 8)} != {*operators(BY_NAME[BRANCH], 120)}
