"""Lengths, sequences and arrivals: functions of a seed, with the shape that their names promise."""

from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.bench.workload import Input, arrival_moments, draw_lengths, json_body, make_sequences
from lengthwise.errors import ConfigurationError


def lengths(distribution: str, *, count: int = 4000, max_length: int = 1000, seed: int = 1) -> np.ndarray:
    return draw_lengths(distribution, count, max_length, np.random.default_rng(seed))


@pytest.mark.parametrize(("distribution", "drawn"), [("fixed:20", {20}), ("uniform:3,7", {3, 4, 5, 6, 7})])
def test_fixed_lengths_are_alike_and_uniform_ones_reach_both_ends(distribution: str, drawn: set[int]):
    assert set(lengths(distribution)) == drawn


def test_lognormal_lengths_have_their_median_and_spread():
    drawn = lengths("lognormal:50,0.7")
    assert np.median(drawn) == pytest.approx(50, rel=0.05)
    assert np.log(drawn).std() == pytest.approx(0.7, rel=0.05)


def test_lengths_from_a_file_are_those_that_stand_there(tmp_path: Path):
    file = tmp_path / "lengths.txt"
    file.write_text("5\n\n 7\n2\n")
    assert set(lengths(f"file:{file}")) == {5, 7, 2}


def test_lengths_past_the_models_longest_are_cut():
    assert lengths("lognormal:50,0.7", max_length=60).max() == 60


@pytest.mark.parametrize(
    "distribution",
    ["normal:1,2", "fixed:", "fixed:1,2", "uniform:9,3", "lognormal:-5,1", "lognormal:nan,1", "file:/nowhere/at/all"],
)
def test_a_distribution_that_cannot_be_read_says_what_is_wrong(distribution: str):
    with pytest.raises(ConfigurationError):
        lengths(distribution)


@pytest.mark.parametrize("content", ["", "many\n", '{"id": 3}\n', "0\n", "true\n"])
def test_a_file_without_lengths_is_refused(tmp_path: Path, content: str):
    file = tmp_path / "lengths"
    file.write_text(content)
    with pytest.raises(ConfigurationError):
        lengths(f"file:{file}")


def test_values_are_short_decimals_of_the_features_asked_for():
    (steps,) = make_sequences(np.array([5]), Input("values", 3), np.random.default_rng(0))
    assert steps.shape == (5, 3)
    assert steps.dtype == np.float32
    assert all(len(str(value)) <= 7 for value in orjson.loads(json_body([steps]))["sequences"][0][0])


def test_tokens_are_ids_of_the_vocabulary():
    (tokens,) = make_sequences(np.array([500]), Input("tokens", 7), np.random.default_rng(0))
    assert tokens.shape == (500,)
    assert set(tokens) == set(range(7))


def test_a_body_carries_the_values_bit_for_bit_and_missing_ones_as_null():
    steps = np.array([[0.1, np.nan], [1e-30, 3.0000002]], dtype=np.float32)
    body = orjson.loads(json_body([steps], model="m"))
    assert body["model"] == "m"
    (sent,) = body["sequences"]
    assert sent[0][1] is None
    assert np.array_equal(np.array(sent, dtype=np.float32), steps, equal_nan=True)


@given(rate=st.floats(1, 500), seconds=st.floats(0.1, 5), seed=st.integers(0, 2**32))
def test_arrivals_ascend_within_their_time_and_depend_on_the_seed_alone(rate, seconds, seed):
    moments = arrival_moments(rate, seconds, np.random.default_rng(seed))
    assert (np.diff(moments) >= 0).all()
    assert ((moments >= 0) & (moments <= seconds)).all()
    assert np.array_equal(moments, arrival_moments(rate, seconds, np.random.default_rng(seed)))


def test_poisson_arrivals_have_exponential_gaps_of_the_rate():
    gaps = np.diff(arrival_moments(100, 100, np.random.default_rng(3)))
    assert gaps.mean() == pytest.approx(0.01, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
