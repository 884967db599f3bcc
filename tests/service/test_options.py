"""Options that are declared once: what a flag and a keyword make of a field, and what is wrong with a value."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from pydantic import Field

from lengthwise.commands.command import Command
from lengthwise.commands.options import PYTHON_ONLY, Flag, Options, WrongOptions, flags, keywords
from lengthwise.errors import ConfigurationError


def pairs(texts: Sequence[str]) -> dict[str, str]:
    if not all("=" in text for text in texts):
        raise ValueError("must be NAME=VALUE")
    return dict(text.split("=") for text in texts)


class Given(Options):
    """One option of each kind."""

    rows: int = Field(default=4, ge=1, le=64, description="Rows.")
    share: float | None = Field(default=None, gt=0, lt=1, description="A share.")
    kind: Literal["a", "b"] | None = Field(default=None, description="A kind.")
    fast: bool = Field(default=False, description="Fast.")
    safe: bool = Field(default=True, description="Not safe.")
    known: bool | None = Field(default=None, description="Known.")
    out: Path | None = Field(default=None, description="A file.")
    name: str | int | None = Field(default=None, description="A name.")
    as_json: Annotated[bool, Flag("--json")] = Field(default=False, description="As JSON.")
    headers: Annotated[dict[str, str], Flag("--header", "NAME=VALUE", pairs, several=True)] = Field(
        default={}, description="Headers."
    )
    told: Annotated[Any, PYTHON_ONLY] = Field(default=None, description="Called.")


def run(*words: str) -> tuple[Given | None, Result]:
    seen: list[Given] = []
    command = click.command(cls=Command)(flags(Given)(lambda options: seen.append(options)))
    result = CliRunner().invoke(command, words)
    return (seen[0] if seen else None), result


@keywords(Given)
def act(target: str, options: Given) -> tuple[str, Given]:
    """Acts.

    Args:
        target: On what.

    Returns:
        What it was given.
    """
    return target, options


@pytest.mark.parametrize(
    ("words", "keyword"),
    [
        *(("", {}), ("--rows 8", {"rows": 8}), ("--share 0.5", {"share": 0.5}), ("--kind b", {"kind": "b"})),
        *(("--fast", {"fast": True}), ("--no-safe", {"safe": False}), ("--known", {"known": True})),
        *(("--no-known", {"known": False}), ("--out here", {"out": Path("here")}), ("--name 3", {"name": "3"})),
        *(("--json", {"as_json": True}), ("--header a=1 --header b=2", {"headers": {"a": "1", "b": "2"}})),
    ],
)
def test_a_flag_is_a_keyword(words: str, keyword: dict[str, Any]) -> None:
    options, result = run(*words.split())
    assert result.exit_code == 0, result.output
    assert act("x", **keyword) == ("x", options)
    assert options is not None
    assert options.model_fields_set == {*keyword}


@pytest.mark.parametrize(
    ("words", "keyword"),
    [
        *(("--rows 0", {"rows": 0}), ("--rows 65", {"rows": 65}), ("--share 1", {"share": 1.0})),
        *(("--share nan", {"share": float("nan")}), ("--kind c", {"kind": "c"}), ("--header a", {"headers": "a"})),
        *(("--rows x", {"rows": "x"}), ("--fast --nothing", {"fast": 1})),
    ],
)
def test_a_wrong_flag_is_a_wrong_keyword(words: str, keyword: dict[str, Any]) -> None:
    options, result = run(*words.split())
    assert (options, result.exit_code) == (None, 2)
    assert (words.split()[-2] if len(words.split()) % 2 == 0 else "--nothing") in result.stderr or "--nothing" in words
    with pytest.raises(ConfigurationError) as caught:
        act("x", **keyword)
    assert str(caught.value).startswith(f"{next(iter(keyword))} must be ")


def test_every_wrong_option_is_told_at_once() -> None:
    with pytest.raises(WrongOptions) as caught:
        Given(rows=True, fast=1, nothing=2)
    assert {part.split()[0] for part in str(caught.value).split("; ")} == {"rows", "fast", "there"}


def test_numbers_of_numpy_are_numbers_and_none_is_not_given() -> None:
    options = Given(rows=np.int64(3), share=np.float32(0.5), kind=None)
    assert (options.rows, options.share) == (3, 0.5)
    assert options.model_fields_set == {"rows", "share"}


def test_help_and_signature_show_every_option() -> None:
    assert "--told" not in run("--help")[1].stdout
    assert "[default: 4]" in run("--help")[1].stdout
    parameters = inspect.signature(act).parameters
    assert [*parameters] == ["target", *Given.model_fields, "options"]
    documented = inspect.getdoc(act) or ""
    for name, parameter in parameters.items():
        assert f"\n    {name}: " in documented
        assert parameter.annotation is not parameter.empty


def test_an_object_of_options_may_have_keywords_beside_it() -> None:
    assert act("x", options=Given(rows=8, fast=True), rows=9)[1] == Given(rows=9, fast=True)
    with pytest.raises(TypeError):
        act("x", nothing=1)
