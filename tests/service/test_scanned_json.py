"""What is said of a large wrong body is what the reader in Python says of it, step by step."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lengthwise.decoding import fast_json, validation
from lengthwise.decoding.validation import PREDICT
from tests.support.arrow_streams import outcome
from tests.support.numpy_models import MANIFESTS, OneModel, manifest

pytestmark = pytest.mark.skipif(not fast_json.COMPILED, reason="needs the module in C")

LONG = " " * 66_000
RIGHT = ["1", "-2.5", "0", "1e3", "3.4028235e38", "0.1234567890123456789012", "9" * 30, "-0", "0.0", "1E-400"]
WRONG = ["1e39", "-1e39", "9" * 50, "1e400", "null", '"x"', "true", "[]", "[1]", "{}", '"ä"']
WRONG += ['{"a": [1, "]"]}', '"\\u00e4\\n\\"["']
NO_JSON = ["01", "1.", ".5", "+1", "nul", "NaN", "1 2", "[1,]", "{1: 2}", "'x'", "-", "1e", "]", ""]
NO_JSON += ['"\\x"', '"\\ud800"', '"']
ODD_ITEMS = ["5", "null", '"x"', "{}", '{"id": "a"}', '{"steps": 5}', '{"a": 1, "a": 2}']
VALUES = st.one_of(st.sampled_from(RIGHT), st.sampled_from(WRONG))
IDS = ['"a"', "5", '"' + "i" * 300 + '"', '"\\u00e9"']


def joined(parts: list[str], brackets: str = "[]", blank: str = "") -> str:
    return brackets[0] + blank + f",{blank}".join(parts) + blank + brackets[1]


@st.composite
def texts(draw: Any, features: int | None) -> str:
    """The text of an array of sequences, mostly of right steps."""
    blank = draw(st.sampled_from(["", " ", "\n\t"]))

    def step() -> str:
        if draw(st.integers(0, 3)):
            return "3" if features is None else joined(["1"] * features, blank=blank)
        if features is None or draw(st.integers(0, 3)) == 0:
            return str(draw(VALUES))
        size = features if draw(st.booleans()) else draw(st.integers(0, 3))
        return joined([draw(VALUES) for _ in range(size)], blank=blank)

    def item() -> str:
        steps = joined([step() for _ in range(draw(st.integers(0, 5)))], blank=blank)
        kind = draw(st.integers(0, 5))
        if kind == 0:
            return str(draw(st.sampled_from(ODD_ITEMS)))
        if kind > 2:
            return steps
        fields = [f'"steps":{blank}{steps}', f'"id": {draw(st.sampled_from(IDS))}', '"odd": [1, {}]']
        kept = draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3, unique=draw(st.booleans())))
        return joined(kept, "{}", blank)

    return joined([item() for _ in range(draw(st.integers(1, 4)))], blank=blank)


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_is_wrong_is_said_as_by_the_reader_in_python(name: str) -> None:
    rules = MANIFESTS[name]
    catalog: Any = OneModel(rules)
    told: set[bool] = set()

    @settings(max_examples=150)
    @given(texts(rules.input.features), st.sampled_from(["", ', "priority": 11', ', "odd": 1', ', "model": "none"']))
    @example(joined(["[" + ",".join(["[1]"] * 50) + "]"] * 3), "")
    @example(joined(["[" + ",".join(["[null, null]"] * 50) + "]"] * 3), "")
    def holds(sequences: str, options: str) -> None:
        body = f'{{"sequences": [{LONG}{sequences[1:]}{options}}}'.encode()
        expected = outcome(lambda: validation.read(body, catalog.find, max_sequences=3))
        said = outcome(lambda: fast_json.explain(body, catalog.find, max_sequences=3, layout=PREDICT))
        if "stands twice" in str(expected):  # which is not looked for where nothing is parsed
            return
        assert said == (expected if isinstance(expected, tuple) else None)
        told.add(said is None)

    holds()
    assert False in told


@pytest.mark.parametrize("text", NO_JSON)
@pytest.mark.parametrize(
    "place", ["[[[1, {}]]]", "[[{}, [1, 2]]]", '[{{"steps": [[1, 2]], "odd": {}}}]', "[[[3]], {}]", "[[[3]]{}]"]
)
def test_a_text_that_is_no_json_is_left_to_the_reader_in_python(text: str, place: str) -> None:
    catalog: Any = OneModel(manifest())
    body = f'{{"sequences": [{LONG}{place.format(text)[1:]}}}'.encode()
    try:
        json.loads(body, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        assert fast_json.explain(body, catalog.find, max_sequences=3, layout=PREDICT) is None


@pytest.mark.parametrize(
    "step", [joined(["0"] * 50_000), '"' + "x" * 5000 + '"', '{"a": ' + "[" * 20 + "]" * 20 + "}" + LONG]
)
def test_a_long_step_is_named_by_its_kind_and_size(step: str) -> None:
    catalog: Any = OneModel(manifest())
    body = f'{{"sequences": [{LONG}[[1, 2], {step}]]}}'.encode()
    expected = outcome(lambda: validation.read(body, catalog.find, max_sequences=3))
    said = outcome(lambda: fast_json.explain(body, catalog.find, max_sequences=3, layout=PREDICT))
    assert said == expected
