"""Each part works with what its extras bring, and with nothing else: here by hiding the rest, and nightly installed."""

import pytest

from lengthwise.errors import EXTRAS_OF
from tests.support.extras import brought, required, with_only
from tests.support.parts import PARTS, Part

PACKAGES = {"sklearn": "scikit-learn"}
NEVER_IMPORTED = {"fastapi-offline"}


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=pytest.mark.long if part.is_slow else ()) for part in PARTS],
    ids=lambda part: part.does,
)
def test_a_part_runs_with_its_extras_alone(part: Part) -> None:
    assert brought(part.extras).isdisjoint(part.lacks)
    done = with_only(part.extras, part.program, beside=part.beside)
    assert done.stdout.split()[-1:] == ["good"], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("extras", "call", "named"),
    [
        ((), "serve", "serve"),
        (("serve",), "serve --port 1", "cpu"),
        (("cpu",), "serve", "serve"),
        ((), "check examples/masking.py:lengths_given", "check"),
        (("check",), "check examples/masking.py:lengths_given", "export"),
        (("check",), "check service/lengthwise/models/japanese-vowels/1", "cpu"),
        (("cpu",), "export examples/masking.py:lengths_given --out nowhere", "export"),
        ((), "train service/lengthwise/models/japanese-vowels/1/examples.jsonl --out nowhere", "train"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(extras: tuple[str, ...], call: str, named: str) -> None:
    done = with_only(extras, "from lengthwise.commands.cli import main; main()", *call.split())
    assert done.returncode == 2  # 1 is a verdict: of `check`, that something leaks
    assert f"pip install 'lengthwise[{named}]'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("extra", ["serve", "cpu", "client", "check", "export", "train", "bench"])
def test_an_extra_brings_what_errors_say_that_it_brings(extra: str) -> None:
    told = {PACKAGES.get(module, module.replace("_", "-")) for module, extras in EXTRAS_OF.items() if extra in extras}
    asked = {one.name for one in required([extra])} - {one.name for one in required([])} - NEVER_IMPORTED
    assert asked <= told <= brought([extra])
