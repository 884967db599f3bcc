"""Random chains of operators are mended or refused, and the fuzzer finds what is wrong."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tests.fuzz.chains import draw
from tests.fuzz.mends import BAD, main, tried


@pytest.mark.sampled(5)
@pytest.mark.parametrize("seed", range(20))
def test_a_random_chain_is_answered_as_the_original_alone_or_refused(seed: int) -> None:
    found = tried(draw(seed), seed)
    assert found.result not in BAD, found.why


@pytest.mark.long
def test_a_thousand_random_chains_are_answered_as_the_originals_alone_or_refused() -> None:
    done = CliRunner().invoke(main, ["--chains", "1000", "--seed", "100000"])
    assert done.exit_code == 0, done.output
