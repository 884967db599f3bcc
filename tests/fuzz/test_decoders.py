"""A quick look at every decoder with hundreds of bodies; `make fuzz` sends ten thousand to each."""

from __future__ import annotations

import pytest

from tests.fuzz.cases import MODELS, cases
from tests.fuzz.decoders import DECODERS, Decoder, fuzz
from tests.support.numpy_models import model, serving

BODIES = 150


@pytest.mark.sampled(7)
@pytest.mark.parametrize("decoder", DECODERS, ids=[one.name for one in DECODERS])
async def test_whatever_is_sent_is_a_valid_call_or_a_refusal_soon_and_leaves_nothing(decoder: Decoder) -> None:
    sent = cases(decoder.built(), BODIES, 1)
    async with serving(*map(model, MODELS), admin_calls=True) as service:
        report = await fuzz(service, decoder, sent)
    assert report.failures == []
    assert report.good, (report.slowest_seconds, report.slowest[:500], report.growth_bytes)
    assert report.bodies == sum(report.answers.values()) == BODIES
    assert report.answers["200"] > BODIES / 10, report.answers  # it gets past the first check
    assert report.answers["400"] + report.answers["422"] > BODIES / 10, report.answers
