"""Each part works with what its extras bring, and with nothing else: here by hiding the rest, and nightly installed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lengthwise.errors import EXTRAS_OF
from tests.support.extras import brought, required, with_only
from tests.support.parts import PARTS, Part

pytestmark = pytest.mark.process

PACKAGES = {"sklearn": "scikit-learn"}
NEVER_IMPORTED = {"fastapi-offline"}


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=pytest.mark.long if part.is_slow else ()) for part in PARTS],
    ids=lambda part: part.does,
)
def test_a_part_runs_with_its_extras_alone(part: Part) -> None:
    assert brought(part.extras).isdisjoint(part.lacks)
    done = with_only(part.extras, part.program, beside=part.beside)
    assert done.stdout.split()[-1:] == ["good"], done.stdout + done.stderr


@pytest.mark.sampled(15)
@pytest.mark.parametrize(
    ("extras", "call", "named"),
    [
        ((), "serve", "serve,cpu"),
        (("serve",), "serve --port 1", "cpu"),
        (("cpu",), "serve", "serve"),
        ((), "check examples/masking.py:lengths_given", "torch,check"),
        ((), "check examples/masking.py:lengths_given --suggest", "export,cpu"),
        (("torch", "check"), "check examples/masking.py:lengths_given --suggest", "export,cpu"),
        (("torch", "check", "cpu"), "check examples/masking.py:lengths_given --suggest", "export"),
        (("check",), "check examples/masking.py:lengths_given", "torch"),
        (("torch",), "check service/lengthwise/models/japanese-vowels/1", "check,cpu"),
        (("check",), "check service/lengthwise/models/japanese-vowels/1", "cpu"),
        ((), "export examples/masking.py:lengths_given --out nowhere", "export,cpu"),
        (("cpu",), "export examples/masking.py:lengths_given --out nowhere", "export"),
        ((), "train service/lengthwise/models/japanese-vowels/1/examples.jsonl --out nowhere", "train"),
    ],
)
def test_what_is_missing_is_one_line_that_names_its_extras(extras: tuple[str, ...], call: str, named: str) -> None:
    done = with_only(extras, "from lengthwise.commands.cli import main; main()", *call.split())
    assert done.returncode == 2  # 1 is a verdict: of `check`, that something leaks
    assert f"pip install 'lengthwise[{named}]'" in done.stderr.splitlines()[-1]
    assert f"in a checkout: pip install -e '.[{named}]'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize(("extras", "named"), [(("bench",), "cpu"), (("cpu", "bench"), "demo")])
def test_the_readmes_picture_is_drawn_with_the_extras_that_it_names(extras: tuple[str, ...], named: str) -> None:
    program = "import runpy; runpy.run_module('benchmarks.padding_picture', run_name='__main__')"
    done = with_only(extras, program)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert f"pip install -e '.[{named}]'" in done.stderr


@pytest.mark.parametrize("extra", ["serve", "cpu", "client", "check", "torch", "export", "train", "bench"])
def test_an_extra_brings_what_errors_say_that_it_brings(extra: str) -> None:
    told = {PACKAGES.get(module, module.replace("_", "-")) for module, extras in EXTRAS_OF.items() if extra in extras}
    asked = {one.name for one in required([extra])} - {one.name for one in required([])} - NEVER_IMPORTED
    assert asked <= told <= brought([extra])


def unexplained(lines: list[str]) -> Iterator[str]:
    """The versions without a reason: none behind one, and none above it in its list or above its list of one line."""
    is_explained = False
    for line in map(str.strip, lines):
        if line.startswith("#"):
            is_explained = True
        elif line.endswith("[") or line in ("", "]"):
            is_explained = False
        elif re.search(r'"[^"]*[<>=]=[^"]*"', line) and not is_explained and "  # " not in line:
            yield line


def test_every_version_says_why_it_stands_there() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    assert [*unexplained(text[text.index("dependencies = [") : text.index("[project.scripts]")].splitlines())] == []
    assert [*unexplained(['client = ["httpx2>=2.0"]', "", "dev = [", '"uv>=1",  # x', '"ruff==1",'])] == [
        'client = ["httpx2>=2.0"]',
        '"ruff==1",',
    ]


@pytest.mark.parametrize("library", ["torch", "keras", "grpcio"])
def test_a_library_whose_private_parts_are_used_has_one_minor_version(library: str) -> None:
    for wanted in required(["export", "train", "keras", "grpc"]):
        if wanted.name == library:
            bounds = {bound.operator: bound.version for bound in wanted.specifier}
            major, minor = map(int, bounds[">="].split("."))
            assert bounds["<"] == f"{major}.{minor + 1}"
