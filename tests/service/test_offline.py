"""Chunks of sequences answered in company, against the same sequences alone."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from lengthwise.batching.buckets import Buckets
from lengthwise.batching.limits import BatchLimits
from lengthwise.decoding.calls import Item
from lengthwise.padding import PaddedBatch
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.answers import NOT_FINITE, Answer
from lengthwise.scoring import offline
from lengthwise.scoring.offline import FAILED, ScoredBatch, ScoringResult
from tests.support import numpy_models
from tests.support.batching import PATIENCE_SECONDS

LIMITS = BatchLimits(rows=8)


def items(*lengths: int, seed: int = 0) -> list[Item]:
    random = np.random.default_rng(seed)
    return [Item(random.random((length, 2), dtype=np.float32), length) for length in lengths]


def answered(
    model: LoadedModel, *chunks: Sequence[Item], threads: int = 2, attention: bool = False
) -> list[list[ScoringResult]]:
    numbered = list(enumerate(chunks))
    found = list(offline.answer_all(model, numbered, limits=LIMITS, threads=threads, attention=attention))
    assert [number for number, _ in found] == list(range(len(chunks)))
    return [results for _, results in found]


def alone(model: LoadedModel, item: Item) -> Answer:
    ((result,),) = answered(model, [item], threads=1, attention=True)
    assert isinstance(result, Answer)
    return result


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_stand_in_the_order_of_the_items_whatever_runs_together(threads: int):
    model = numpy_models.model(numpy_models.manifest())
    chunks = [items(*lengths, seed=seed) for seed, lengths in enumerate([(9, 1, 30, 2, 9), (1,), (), (5,) * 20])]
    for chunk, results in zip(chunks, answered(model, *chunks, threads=threads, attention=True), strict=True):
        for item, result in zip(chunk, results, strict=True):
            assert isinstance(result, Answer)
            expected = alone(model, item)
            np.testing.assert_array_equal(result.probabilities, expected.probabilities)
            np.testing.assert_array_equal(result.attention, expected.attention)


def test_like_lengths_run_together():
    ran: list[ScoredBatch] = []
    chunk = items(*[4, 40] * 8)
    list(
        offline.answer_all(
            numpy_models.model(numpy_models.manifest()), [(None, chunk)], limits=LIMITS, threads=1, on_batch=ran.append
        )
    )
    assert sum(batch.rows for batch in ran) == 16
    assert sum(batch.cost_steps for batch in ran) == sum(batch.valid_steps for batch in ran) == 8 * 44


def test_on_a_device_batches_have_its_shapes():
    shapes: list[tuple[int, int]] = []
    model = numpy_models.model(numpy_models.manifest(), lambda batch: shapes.append((batch.rows, batch.width)))
    chunk = items(5, 6, 7, 13, 20)
    expected = answered(model, chunk)
    shapes.clear()
    on_device = replace(model, buckets=Buckets((8, 32), (1, 4, 8), LIMITS))
    for result, plain in zip(answered(on_device, chunk)[0], expected[0], strict=True):
        assert isinstance(result, Answer)
        assert isinstance(plain, Answer)
        np.testing.assert_array_equal(result.probabilities, plain.probabilities)
    assert set(shapes) <= {(rows, width) for rows in (1, 4, 8) for width in (8, 32)}


def test_without_threads_everything_runs_in_the_callers():
    seen = set()
    model = numpy_models.model(numpy_models.manifest(), lambda _: seen.add(threading.current_thread()))
    answered(model, items(*range(1, 30)), threads=0)
    assert seen == {threading.current_thread()}


def test_no_more_than_one_chunk_is_read_ahead():
    model = numpy_models.model(numpy_models.manifest())
    read = 0

    def chunks() -> Iterator[tuple[None, list[Item]]]:
        nonlocal read
        for _ in range(5):
            read += 1
            yield None, items(2)

    found = offline.answer_all(model, chunks(), limits=LIMITS, threads=1)
    next(found)
    assert read == 1 + offline.AHEAD
    assert len(list(found)) == 4


def test_a_sequence_that_is_too_long_is_answered_in_windows_that_keep_their_order():
    manifest = numpy_models.manifest(long="window", max_length=4)
    whole, short = items(11, 3)
    ((first, second),) = answered(numpy_models.model(manifest), [whole, short], attention=True)
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert first.windows is not None
    assert [window["start"] for window in first.windows] == [0, 4, 7]
    means = [whole.steps[start : start + 4].mean() for start in (0, 4, 7)]
    powers = np.exp(np.outer(means, np.arange(3)))
    np.testing.assert_allclose(
        first.probabilities, (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0), rtol=1e-5
    )
    assert second.windows is None


def test_an_answer_that_is_not_finite_is_that_sequences_own():
    manifest = numpy_models.manifest(long="window", max_length=4)
    chunk = items(3, 9, 3)
    chunk[0].steps[0] = numpy_models.NOT_FINITE
    chunk[1].steps[4] = numpy_models.NOT_FINITE
    ((first, second, third),) = answered(numpy_models.model(manifest), chunk)
    assert first == second == NOT_FINITE
    assert isinstance(third, Answer)


@pytest.mark.parametrize("attention", [True, False])
def test_attention_that_is_not_finite_is_no_answer_to_who_wants_it(attention: bool):
    chunk = items(3, 3)
    chunk[0].steps[0] = numpy_models.BLIND
    ((first, second),) = answered(numpy_models.model(numpy_models.manifest()), chunk, attention=attention)
    assert (first == NOT_FINITE) == attention
    assert isinstance(second, Answer)


def test_a_sequence_for_which_the_model_fails_fails_alone():
    def before(batch: PaddedBatch) -> None:
        if (batch.steps == 7).any():
            raise RuntimeError("no 7")

    chunk = items(3, 3, 3)
    chunk[1].steps[2] = 7
    ((first, second, third),) = answered(numpy_models.model(numpy_models.manifest(), before), chunk)
    assert second == FAILED
    assert isinstance(first, Answer)
    assert isinstance(third, Answer)


def test_an_interruption_ends_the_threads_without_running_what_was_planned(monkeypatch: pytest.MonkeyPatch):
    told = threading.Event()

    class Runners(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            told.set()
            super().shutdown(wait=wait)

    batches = 0

    def before(_: PaddedBatch) -> None:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise KeyboardInterrupt
        if batches > 3:
            told.wait(PATIENCE_SECONDS)

    monkeypatch.setattr(offline, "ThreadPoolExecutor", Runners)
    with pytest.raises(KeyboardInterrupt):
        answered(numpy_models.model(numpy_models.manifest(), before), items(*range(1, 200, 2)), threads=1)
    assert batches <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("runner")]
