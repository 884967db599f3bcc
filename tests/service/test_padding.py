"""The rectangle: every valid step where it was, zeros elsewhere."""

import sys
import threading
import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from lengthwise.padding import Sample, Steps, pad, rounded_width, step_mask

features = st.shared(st.integers(1, 3), key="features")
values = st.integers(1, 20).flatmap(
    lambda length: features.flatmap(lambda count: arrays.arrays(np.float32, (length, count)))
)
tokens = st.integers(1, 20).flatmap(lambda length: arrays.arrays(np.int64, (length,)))
mixes = st.lists(values, min_size=1, max_size=6) | st.lists(tokens, min_size=1, max_size=6)


@given(mixes, st.integers(1, 9))
def test_each_row_is_its_sequence_and_zeros_behind(sequences: list[Steps], multiple: int):
    batch = pad(sequences, multiple=multiple)
    for row, length, steps in zip(batch.steps, batch.lengths, sequences, strict=True):
        np.testing.assert_array_equal(row[:length], steps)
        assert not row[length:].any()
    assert batch.steps.dtype == sequences[0].dtype
    assert batch.lengths.dtype == np.int32


@given(mixes, st.integers(1, 9))
def test_the_width_is_the_longest_rounded_up_and_no_more(sequences: list[Steps], multiple: int):
    batch = pad(sequences, multiple=multiple)
    longest = max(map(len, sequences))
    assert batch.width % multiple == 0
    assert longest <= batch.width < longest + multiple
    assert batch.width == rounded_width(longest, multiple)


@given(mixes)
def test_cost_is_valid_steps_and_padding(sequences: list[Steps]):
    batch = pad(sequences)
    assert batch.rows == len(sequences)
    assert batch.padded_steps == batch.rows * batch.width
    assert batch.valid_steps == sum(map(len, sequences))
    assert batch.padded_steps - batch.valid_steps == int((~step_mask(batch.lengths, batch.width)).sum())


def test_a_width_can_be_given_as_long_as_the_longest_fits():
    long = np.ones((5, 2), np.float32)
    assert pad([long], width=7).width == 7
    assert pad([long], width=5).width == 5


def test_rows_can_be_filled_up_with_one_step_of_zeros_each_that_nobody_counts():
    batch = pad([np.ones((3, 2), np.float32), np.ones((5, 2), np.float32)], rows=4)
    assert batch.steps.shape == (4, 8, 2)
    assert not batch.steps[2:].any()
    assert batch.lengths.tolist() == [3, 5, 1, 1]
    assert (batch.rows, batch.fillers, batch.padded_steps, batch.valid_steps) == (4, 2, 32, 8)
    assert pad([np.ones((3, 2), np.float32)], rows=1).fillers == 0


@pytest.mark.parametrize(
    ("shapes", "size", "said"),
    [
        *(([(5, 2)], {"width": 4}, "5.*4"), ([(3, 2), (3, 2)], {"rows": 1}, "2.*1")),
        *(([], {}, "sequence"), ([(3, 1), (0, 1)], {}, "step")),
    ],
)
def test_what_cannot_be_padded_is_refused(shapes: list[tuple[int, int]], size: dict[str, int], said: str):
    with pytest.raises(ValueError, match=said):
        pad([np.ones(shape, np.float32) for shape in shapes], **size)


def test_a_step_of_zeros_is_valid():
    batch = pad([np.zeros((3, 2), np.float32)])
    assert batch.valid_steps == 3
    assert step_mask(batch.lengths, batch.width).tolist() == [[True, True, True, False]]


def test_sequences_may_lie_apart_in_memory_and_be_of_another_dtype_than_the_first():
    table = np.arange(24, dtype=np.float32).reshape(6, 4)
    batch = pad([table[:, ::2], table.T[:2].T, table[:3, :2].astype(np.float64)])
    np.testing.assert_array_equal(batch.steps[0, :6], table[:, ::2])
    np.testing.assert_array_equal(batch.steps[1, :6], table[:, :2])
    np.testing.assert_array_equal(batch.steps[2, :3], table[:3, :2])
    assert not batch.steps[2, 3:].any()


def test_a_sequence_of_other_features_is_refused():
    with pytest.raises(ValueError, match="broadcast"):
        pad([np.ones((4, 2), np.float32), np.ones((4, 3), np.float32)])


def test_large_sequences_and_steps_without_features_are_padded_too():
    large = np.random.default_rng(0).normal(size=(600, 512)).astype(np.float32)
    batch = pad([large, large[:5]])
    np.testing.assert_array_equal(batch.steps[0], large)
    np.testing.assert_array_equal(batch.steps[1, :5], large[:5])
    assert pad([np.zeros((3, 0), np.float32)]).steps.shape == (1, 4, 0)


class FollowedSequences(list[np.ndarray]):
    """Sequences that note how many of them the present reader has taken."""

    taken = 0

    def __iter__(self):
        for self.taken, steps in enumerate(super().__iter__(), 1):
            yield steps


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no interpreter lock")
def test_a_thread_that_waits_for_the_interpreter_lock_does_not_get_it_for_each_row():
    steps = np.ones((20_000, 12), np.float32)  # copying it takes as long as waking a thread, or longer
    sequences, over = FollowedSequences([steps] * 60), threading.Event()
    # At which rows the lock was given up. Not how often the thread ran: on a busy machine it runs many times before the
    # other thread is awake to take the lock back.
    given_up_at = set()

    def wait_for_the_lock() -> None:
        while not over.is_set():
            given_up_at.add(sequences.taken)
            time.sleep(0)  # gives the lock back

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)  # nobody is asked for the lock: it changes hands only where it is given up
    thread = threading.Thread(target=wait_for_the_lock)
    try:
        thread.start()
        pad(sequences)
    finally:
        over.set()
        sys.setswitchinterval(interval)
        thread.join()
    assert sequences.taken == 60
    assert len(given_up_at) < 4  # of 4 to 61, with the lock given up for each row


def test_a_row_without_a_state_begins_beside_rows_that_go_on() -> None:
    form = np.dtype([("end", "<f4", (2,)), ("count", "<i8", (1,))])
    blank = Sample(np.zeros((0, 1), np.float32), {"count": np.array([0]), "end": np.full(2, -1, np.float32)})
    goes_on = Sample(np.ones((3, 1), np.float32), state=np.array(([1.5, 2], [7]), form)[()])
    batch = pad([goes_on, Sample(np.ones((1, 1), np.float32)), np.ones((2, 1), np.float32)], rows=4, blank=blank)
    assert batch.beside["end"].tolist() == [[1.5, 2], [-1, -1], [-1, -1], [-1, -1]]
    assert batch.beside["count"].tolist() == [[7], [0], [0], [0]]
    assert not batch.begins
    assert all(array.flags.c_contiguous and array.flags.aligned for array in batch.beside.values())
