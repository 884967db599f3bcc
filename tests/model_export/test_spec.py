"""Specs: what is refused and in which words, and docs/spec.md, which says every key with its type and default."""

import datetime
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from lengthwise_export.architecture.spec import TABLES, Spec
from lengthwise_export.errors import SpecError
from tests.support.specs import parsed_spec, spec


def test_a_spec_needs_only_its_steps_and_its_labels(tmp_path: Path) -> None:
    made = parsed_spec('[input]\nfeatures = 2\n[output]\nlabels = ["x", "y"]')
    assert (made.model.rnn, made.model.hidden, made.model.layers, made.model.bidirectional) == ("lstm", 64, 2, True)
    assert (made.input.missing, made.input.normalize, made.input.max_length) == ("refuse", "auto", 1024)
    assert made.resolved()["input"]["normalize"] == "training"
    shipped = Spec.read(Path("model_export/lengthwise_export/specs/japanese-vowels.toml"))
    assert shipped.output.labels == tuple("123456789")
    assert spec(labels='["urgent"]', task="multi-label").output.labels == ("urgent",)  # one is enough
    with pytest.raises(SpecError):
        Spec.read(tmp_path / "absent.toml")


TWO = '[output]\nlabels = ["a", "b"]'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"[input]\nfeatures = 2\ncolour = 1\n{TWO}", "input.colour"),
        (TWO, "input"),
        (f"[input]\n{TWO}", "exactly one of 'features' and 'vocabulary'"),
        (f"[input]\nfeatures = 2\nvocabulary = 3\n{TWO}", "exactly one"),
        (f"[input]\nfeatures = 2\npadding_id = 0\n{TWO}", "'padding_id'"),
        (f'[input]\nfeatures = 2\nfeature_names = ["x"]\n{TWO}', "1 names for 2 features"),
        (f'[input]\nvocabulary = 5\nmissing = "zero"\n{TWO}', "'missing' is for values"),
        (f'[input]\nvocabulary = 5\nnormalize = "training"\n{TWO}', "'normalize' is for values"),
        (f"[input]\nvocabulary = 5\npadding_id = 5\n{TWO}", "'padding_id' 5"),
        ('[input]\nfeatures = 2\n[output]\nlabels = ["a", "a"]', "a label may occur only once"),
        ('[input]\nfeatures = 2\n[output]\nlabels = ["a"]', "at least two"),
        ("[input]\nfeature = 2", r"input.feature: unknown key; did you mean features\?; known are features, feature_n"),
        (
            "[model]\nconv = [{ channels = 2, size = 3 }]",
            "model.conv.0.size: unknown key; known are channels, kernel, ",
        ),
        ("[training]\nepochs = 3", "training: unknown key; known are input, model, output"),
        (
            "[input]\nfeatures = 2\n[output]\nlabels = [0, 1]",
            "labels.0: must be a string, in quotes, got 0; output.labels.1",
        ),
        (f"[input]\nfeatures = 2\n[output]\nlabels = {[*range(100)]}", r"labels\.9: .*; and 90 more$"),
        (f'[input]\nfeatures = 2\n[model]\nrnn = "x"\nlayers = -1\n{TWO}', "model.rnn: .*model.layers: "),
    ],
)
def test_what_is_wrong_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(SpecError, match=named.replace("[", r"\[")):
        parsed_spec(text)


def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "vowels.toml"
    path.write_text("this is = not [toml")
    with pytest.raises(SpecError, match=r"vowels\.toml: not TOML"):
        Spec.read(path)


@pytest.mark.parametrize(("value", "name"), [("true", "training"), ("false", "none")])
def test_true_and_false_are_names_of_normalisations(value: str, name: str) -> None:
    assert spec(step=f"features = 3\nnormalize = {value}").input.normalize == name


ROCKET = "kind = 'rocket'"
SUMMARIES = "kind = 'summaries'"


@pytest.mark.parametrize(
    ("model", "task", "step", "named"),
    [
        ('rnn = "none"\nbidirectional = true', "single-label", "features = 3", "'bidirectional' has no meaning"),
        ("self_attention_heads = 3", "single-label", "features = 3", "'self_attention_heads' 3 must divide"),
        ("hidden = 256\nself_attention_heads = 1", "single-label", "features = 3", "use more heads"),
        ('pooling = "mean"', "per-step", "features = 3", "'model.pooling' has no meaning"),
        ("preset = 'inception'", "single-label", "features = 3", "preset"),
        ("layers = 0", "single-label", "features = 3", "'layers' 0"),
        ("conv = [{channels = 5, kernel = [3, 5]}]", "single-label", "features = 3", "multiple of the 2 branches"),
        ("conv = [{channels = 4, residual = 2}]", "single-label", "features = 3", "goes back further"),
        ("feed_forward = 8", "single-label", "features = 3", "needs 'self_attention_heads'"),
        ("sequence_features = ['length', 'length']", "single-label", "features = 3", "only once"),
        ("sequence_features = ['level']", "single-label", "vocabulary = 5", "ids have no level"),
        ("conv = [{channels = 4, kernel = []}]", "single-label", "features = 3", "kernel"),
        ("conv = [{channels = 4, kernel = [0]}]", "single-label", "features = 3", "kernel"),
        ("members = 0", "single-label", "features = 3", "members"),
        (f"{ROCKET}\nclassifier = 'logistic'", "single-label", "features = 3", "other keys are 'kernels', 'grid' and"),
        (f"{ROCKET}\nhidden = 8", "single-label", "features = 3", "'hidden' has no meaning with kind = 'rocket'"),
        ("kernels = 84", "single-label", "features = 3", "'kernels' is for kind = 'rocket'"),
        ("grid = 'training'", "single-label", "features = 3", "'grid' is for kind = 'rocket'"),
        (f"{ROCKET}\ngrid = 'training'", "single-label", "features = 3\nnormalize = 'both'", "not to 'both'"),
        (f"{ROCKET}\nkernels = 83", "single-label", "features = 3", "must be at least 84"),
        (
            f"{SUMMARIES}\nhidden = 8",
            "single-label",
            "features = 3",
            "other keys are 'summaries', 'classifier' and",
        ),
        ("trees = 100", "single-label", "features = 3", "'trees' is for kind = 'summaries'"),
        (
            f"{SUMMARIES}\nclassifier = 'logistic'\ntrees = 100",
            "single-label",
            "features = 3",
            "where that is 'logistic'",
        ),
        (SUMMARIES, "per-step", "features = 3", "no answer for each step"),
        (SUMMARIES, "single-label", "features = 3\nmissing = 'mean'", "'input.missing' = 'mean' has no meaning"),
        (SUMMARIES, "single-label", "features = 3\nnormalize = 'both'", "'input.normalize' = 'both' has no meaning"),
        (SUMMARIES, "single-label", "features = 3\nlong = 'head'", "'input.long' = 'head' has no meaning"),
        (SUMMARIES, "single-label", "features = 3\nstatic = 2", "'input.static' = '2' has no meaning"),
        (f"{SUMMARIES}\nclassifier = 'boosted-trees'", "multi-label", "features = 3", "'extra-trees' takes several"),
        (ROCKET, "single-label", "features = 3\nmissing = 'handled'", "is for model.kind = 'summaries'"),
        ("kind = 'rockets'", "single-label", "features = 3", "model.kind"),
        (ROCKET, "per-step", "features = 3", "no answer for each step"),
        (ROCKET, "single-label", "vocabulary = 5", "token ids have no order"),
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


def test_the_manifest_says_what_the_spec_says() -> None:
    manifest = spec(step="vocabulary = 9\npadding_id = 2\nmax_length = 33").manifest(name="m", version=4)
    assert (manifest.input.kind, manifest.input.vocabulary, manifest.input.padding_id) == ("tokens", 9, 2)
    assert (manifest.max_length, manifest.graph.sequences, manifest.graph.attention) == (33, "tokens", "attention")
    # only attention pooling promises attention
    assert spec('pooling = "max"').manifest(name="m", version=1).graph.attention is None
    assert spec(task="per-step").manifest(name="m", version=1).graph.attention is None


DOCUMENT = Path("docs/spec.md").read_text()


def rows(place: tuple[str, ...]) -> list[list[str]]:
    """The lines below a table's heading: key, type, default, meaning."""
    (section,) = re.findall(rf"^### `\[+{re.escape('.'.join(place))}\]+`\n(.*?)(?=^#|\Z)", DOCUMENT, re.M | re.S)
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines() if "`" in line]
    return [line for line in lines if line[0] != "key"]


def type_said(schema: dict[str, Any]) -> str:
    """A key's type in the document's words, from its JSON schema."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    if len(kinds) > 1:
        return " or ".join(map(type_said, kinds))
    (kind,) = kinds
    if "enum" in kind:
        return ", ".join(f'`"{choice}"`' for choice in kind["enum"])
    if kind["type"] == "object":
        return "table of lists of strings"
    if kind["type"] == "array":
        names = {"string": "strings", "integer": "integers"}
        return f"list of {names.get(kind['items'].get('type'), 'tables')}"

    bounds = f", {kind['minimum']:g} or more" if "minimum" in kind else ""
    below = f", below {kind['exclusiveMaximum']:g}" if "exclusiveMaximum" in kind else ""
    return f"{kind['type']}{bounds}{below}"


def default_said(schema: dict[str, Any], *, required: bool) -> str:
    """A key's default in the document's words."""
    if required:
        return "required"
    value = schema["default"]
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


@pytest.mark.parametrize(("place", "table"), [(place, table) for place, table in TABLES.items() if place])
def test_every_key_stands_there_with_its_type_and_default(place: tuple[str, ...], table: type[BaseModel]) -> None:
    schema = table.model_json_schema()
    expected = [
        [f"`{key}`", type_said(made), default_said(made, required=key in schema.get("required", []))]
        for key, made in schema["properties"].items()
    ]
    assert [row[:3] for row in rows(place)] == expected
    assert [row[0] for row in rows(place) if not row[3]] == []


def test_every_example_is_a_spec_and_every_task_has_one() -> None:
    examples = [parsed_spec(text) for text in re.findall(r"^```toml\n(.*?)^```", DOCUMENT, re.M | re.S)]
    assert {example.input.features for example in examples} == {3}
    assert {example.output.task for example in examples} == {"single-label", "multi-label", "per-step"}
