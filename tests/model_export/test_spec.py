import datetime
import math
import re
from pathlib import Path
from typing import Any

import pytest

from lengthwise_export.architecture.spec import TABLES, Spec
from lengthwise_export.errors import SpecError
from tests.support.specs import spec

SHIPPED = Path("model_export/lengthwise_export/specs/japanese-vowels.toml")


def test_a_spec_needs_only_its_steps_and_its_labels() -> None:
    made = Spec.from_toml('[input]\nfeatures = 2\n[output]\nlabels = ["x", "y"]')
    assert (made.model.rnn, made.model.hidden, made.model.layers, made.model.bidirectional) == ("lstm", 64, 2, True)
    assert (made.input.missing, made.input.normalize, made.input.max_length) == ("refuse", "auto", 1024)
    assert made.resolved()["input"]["normalize"] == "training"


def test_the_shipped_spec_reads() -> None:
    assert Spec.read(SHIPPED).output.labels == tuple("123456789")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("this is = not [toml", "not TOML"),
        ('[input]\nfeatures = 2\ncolour = 1\n[output]\nlabels = ["a", "b"]', "input.colour"),
        ('[output]\nlabels = ["a", "b"]', "input"),
        ('[input]\n[output]\nlabels = ["a", "b"]', "exactly one of 'features' and 'vocabulary'"),
        ('[input]\nfeatures = 2\nvocabulary = 3\n[output]\nlabels = ["a", "b"]', "exactly one"),
        ('[input]\nfeatures = 2\npadding_id = 0\n[output]\nlabels = ["a", "b"]', "'padding_id'"),
        ('[input]\nfeatures = 2\nfeature_names = ["x"]\n[output]\nlabels = ["a", "b"]', "1 names for 2 features"),
        ('[input]\nvocabulary = 5\nmissing = "zero"\n[output]\nlabels = ["a", "b"]', "'missing' is for values"),
        ('[input]\nvocabulary = 5\nnormalize = "training"\n[output]\nlabels = ["a", "b"]', "'normalize' is for values"),
        ('[input]\nvocabulary = 5\npadding_id = 5\n[output]\nlabels = ["a", "b"]', "'padding_id' 5"),
        ('[input]\nfeatures = 2\n[output]\nlabels = ["a", "a"]', "a label may occur only once"),
        ('[input]\nfeatures = 2\n[output]\nlabels = ["a"]', "at least two"),
        ("[input]\nfeature = 2", r"input.feature: unknown key; did you mean features\?; known are features, feature_n"),
        (
            "[model]\nconv = [{ channels = 2, size = 3 }]",
            "model.conv.0.size: unknown key; known are channels, kernel, ",
        ),
        ("[training]\nepochs = 3", "training: unknown key; known are input, model, output"),
    ],
)
def test_what_is_wrong_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(SpecError, match=named.replace("[", r"\[")):
        Spec.from_toml(text)


@pytest.mark.parametrize(
    ("model", "task", "step", "named"),
    [
        ('rnn = "none"\nbidirectional = true', "single-label", "features = 3", "'bidirectional' has no meaning"),
        ("self_attention_heads = 3", "single-label", "features = 3", "'self_attention_heads' 3 must divide"),
        ("hidden = 256\nself_attention_heads = 1", "single-label", "features = 3", "use more heads"),
        ('pooling = "mean"', "per-step", "features = 3", "'model.pooling' has no meaning"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(model: str, task: str, step: str, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        spec(model, task=task, step=step)


KEYS = [(*table, key) for table, kind in TABLES.items() for key in kind.model_fields if (*table, key) not in TABLES] + [
    ("input",),
    ("model",),
    ("model", "conv"),
    ("output",),
]
WRONG = [
    "abc", "", 0, -1, 1.5, True, [0, 1], ["a", 1], [], [[1]], {"a": 1}, [{"a": 1}], math.nan, math.inf, 10**30, None,
    datetime.date(1979, 5, 27),
]  # fmt: skip
STRANGE = re.compile(r"Input|Extra|Tuple|Value error|valid (integer|string|number|boolean|tuple)|pydantic|class '")


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_whatever_stands_at_a_key_is_refused_in_plain_words(key: tuple[str, ...]) -> None:
    said = [refusal(key, value) for value in WRONG]
    assert any(said)
    assert [text for text in said if text and (key[-1] not in text or STRANGE.search(text))] == []


def refusal(key: tuple[str, ...], value: object) -> str:
    """Why a spec with a value at a key is refused; nothing where it is not."""
    table: dict[str, Any] = {"input": {"features": 3}, "model": {}, "output": {"labels": ["x", "y"]}}
    inner = table if len(key) == 1 else table[key[0]]
    if key[:-1] == ("model", "conv"):
        inner = {"channels": 4}
        table["model"]["conv"] = [inner]
    inner[key[-1]] = value
    try:
        Spec.from_table(table)
    except SpecError as error:
        return str(error)
    return ""


def test_labels_that_are_numbers_are_told_to_be_strings() -> None:
    with pytest.raises(SpecError) as caught:
        Spec.from_toml("[input]\nfeatures = 2\n[output]\nlabels = [0, 1]")
    assert str(caught.value) == (
        "spec: output.labels.0: must be a string, in quotes, got 0; output.labels.1: must be a string, in quotes, got 1"
    )


def test_of_many_wrong_keys_the_first_are_told_and_how_many_more() -> None:
    with pytest.raises(SpecError, match=r"labels\.9: .*; and 90 more$"):
        Spec.from_table({"input": {"features": 2}, "output": {"labels": list(range(100))}})


def test_every_wrong_key_is_named_in_one_message() -> None:
    with pytest.raises(SpecError):
        spec('rnn = "transformer"\nlayers = -1')


def test_a_multi_label_model_may_have_one_label() -> None:
    assert spec(labels='["urgent"]', task="multi-label").output.labels == ("urgent",)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        Spec.read(tmp_path / "absent.toml")


def test_the_manifest_says_what_the_spec_says() -> None:
    manifest = spec(step="vocabulary = 9\npadding_id = 2\nmax_length = 33").manifest(name="m", version=4)
    assert (manifest.input.kind, manifest.input.vocabulary, manifest.input.padding_id) == ("tokens", 9, 2)
    assert (manifest.max_length, manifest.graph.sequences, manifest.graph.attention) == (33, "tokens", "attention")


def test_only_attention_pooling_promises_attention() -> None:
    assert spec('pooling = "max"').manifest(name="m", version=1).graph.attention is None
    assert spec(task="per-step").manifest(name="m", version=1).graph.attention is None
