"""A quick look at every decoder with hundreds of bodies; `make fuzz` sends ten thousand to each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fuzz.cases import MODELS, Case, cases
from tests.fuzz.decoders import DECODERS, Decoder, fuzz
from tests.support.numpy_models import Service, model, serving

BODIES = 150


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


def test_the_same_seed_makes_the_same_bodies_all_different() -> None:
    built = DECODERS[0].built()
    made = cases(built, 40, 3)
    assert made == cases(built, 40, 3) != cases(built, 40, 4)
    assert len(set(map(repr, made))) == 40


async def test_what_a_decoder_must_not_do_is_found() -> None:
    kept: list[bytes] = []

    async def bad(service: Service, case: Case) -> str:
        kept.append(bytes(10_000))
        if case.body == b"raise":
            raise KeyError("place")
        return "200"

    sent = [Case(b"raise"), *(Case(b"%d" % number) for number in range(50))]
    async with serving(model(MODELS[0])) as service:
        report = await fuzz(service, replace(DECODERS[0], decode=bad), sent)
    assert [(case.body, why) for case, why in report.failures] == [(b"raise", "KeyError: 'place'")]
    assert report.growth_bytes > 300_000
    assert not report.good
