"""Many requests at once: each gets the answer to its own static values and sequences, whatever it is batched with."""

import asyncio
import json
import time

import numpy as np
import pytest

from lengthwise.decoding import json_body
from lengthwise.padding import pad
from lengthwise.runtime.answers import Answer
from lengthwise.verification.random_sequences import draw
from tests.support import sample_models
from tests.support.numpy_models import serving
from tests.support.sample_models import manifest

AT_ONCE = 64


@pytest.mark.parametrize("second", [False, True], ids=["static", "static and two sequences"])
@pytest.mark.parametrize("count", [400, pytest.param(50_000, marks=pytest.mark.long)])
async def test_no_answer_is_of_another_row(second: bool, count: int):
    of = manifest(static=True, second=second)
    model, random = sample_models.loaded(of), np.random.default_rng(0)
    rows = draw(of, random.integers(1, 40, 200).tolist(), 1)
    expected = [model.answer(pad([row]), False)[0] for row in rows]
    bodies = [body_of(row) for row in rows]
    wrong: list[int] = []
    async with serving(model, runners=2, max_batch_rows=16) as service:

        async def ask(number: int) -> None:
            chosen = [(number * 7 + part * 31) % len(rows) for part in range(1 + number % 3)]
            body = b'{"sequences": [%s]}' % b",".join([bodies[row] for row in chosen])
            call = json_body.decode(body, service.serving.find, max_sequences=9)
            request = service.serving.submit(
                call, [item.steps for item in call.items], lambda results, _: results, arrived=time.monotonic()
            )
            if number % 50 == 0:  # its client leaves
                service.serving.batcher.withdraw(request, ConnectionError())
            try:
                answers = await request.future
            except ConnectionError:
                return
            for row, answer in zip(chosen, answers, strict=True):
                if not same(answer, expected[row]):
                    wrong.append(row)

        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(ask(number) for number in range(start, min(start + AT_ONCE, count))))
        figures = await service.figures()
    assert not wrong
    batches = figures['lengthwise_batch_rows_count{model="beside",version="1"}']
    assert batches < count  # they ran in company


def body_of(row: sample_models.Sample) -> bytes:
    """A row as an item of a body."""
    item: dict[str, object] = {"static": row.beside["static"].tolist()}
    if row.others:
        item["inputs"] = {"title": row.steps.tolist(), "body": row.others["body"].tolist()}
    else:
        item["steps"] = row.steps.tolist()
    return json.dumps(item).encode()


def same(answer: Answer | None, expected: Answer | None) -> bool:
    """Whether two answers have the same bits."""
    assert expected is not None
    return answer is not None and answer.probabilities.tobytes() == expected.probabilities.tobytes()
