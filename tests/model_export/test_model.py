"""The built-in architecture: its parts and its presets, from padding that reaches no answer to exports."""

from pathlib import Path

import pytest
import torch

import lengthwise_export
from lengthwise_export.architecture.model import SequenceClassifier
from lengthwise_export.architecture.model_spec import PRESETS
from lengthwise_export.architecture.spec import Spec, as_toml
from tests.support.specs import parsed_spec, spec

CONV = 'conv = [{channels = 5, kernel = 3}, {channels = 4, kernel = 2, norm = "none"}]'


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def made(model: str, **keys: str) -> Spec:
    step = keys.get("step", "features = 3\nmax_length = 60")
    return parsed_spec(
        f"[input]\n{step}\n[model]\n{model}\n[output]\nlabels = ['a', 'b']\ntask = '{keys.get('task', 'single-label')}'"
    )


COMBINED = [
    f'rnn = "{rnn}"\npooling = "{pooling}"\n{more}'
    for rnn in ("lstm", "gru", "none")
    for pooling in ("attention", "mean", "max", "last")
    for more in ("", CONV, "self_attention_heads = 2")
]
WHOLE = [f"preset = '{name}'\nsequence_features = ['length', 'level', 'scale']" for name in PRESETS]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("model", [*COMBINED, *WHOLE])
@pytest.mark.parametrize("junk", [1e30, torch.nan])
def test_neither_padding_nor_width_nor_neighbours_reach_an_answer(model: str, junk: float) -> None:
    network = SequenceClassifier(made(model)).eval()
    steps, lengths = torch.randn(3, 50, 3), torch.tensor([50, 1, 23])
    padded = torch.nn.functional.pad(steps, (0, 0, 0, 7), value=junk)
    for row, length in zip(padded, lengths.tolist(), strict=True):
        row[length:] = junk
    together = network(padded, lengths).logits
    for row, length in enumerate(lengths.tolist()):
        alone = network(steps[row : row + 1, :length], lengths[row : row + 1]).logits
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_a_last_step_of_zeros_is_data() -> None:
    model = SequenceClassifier(spec()).eval()
    steps = torch.randn(1, 4, 3)
    steps[0, 3] = 0
    assert not model(steps, torch.tensor([4])).logits.equal(model(steps, torch.tensor([3])).logits)


def test_a_per_step_model_answers_each_step_and_nothing_at_padding() -> None:
    model = SequenceClassifier(spec(task="per-step")).eval()
    answer = model(torch.randn(2, 5, 3), torch.tensor([5, 2]))
    assert answer.logits.shape == (2, 5, 2)
    assert answer.attention is None
    assert not answer.logits[1, 2:].any()


def test_attention_is_given_where_the_model_pools_by_it() -> None:
    steps, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
    assert SequenceClassifier(spec()).eval()(steps, lengths).attention.shape == (2, 5)
    assert SequenceClassifier(spec('pooling = "mean"')).eval()(steps, lengths).attention is None


def test_only_missing_values_are_treated_as_missing() -> None:
    model = SequenceClassifier(spec(step='features = 3\nmissing = "indicator"')).eval()
    zeros, missing = torch.zeros(1, 2, 3), torch.full((1, 2, 3), torch.nan)
    lengths = torch.tensor([2])
    assert not model(zeros, lengths).logits.equal(model(missing, lengths).logits)
    assert model(missing, lengths).logits.isfinite().all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_set_of_ordinary_keys_and_fits_every_task_and_tokens(name: str) -> None:
    table = made(f"preset = '{name}'").resolved()["model"]
    assert "preset" not in table
    assert Spec.from_table(made(f"preset = '{name}'").resolved()).resolved()["model"] == table
    assert made(f"preset = '{name}'\nhidden = 5").model.hidden == 5  # a key beside it wins
    values, tokens, lengths = torch.randn(2, 9, 3), torch.randint(7, (2, 9)), torch.tensor([9, 4])
    for keys, steps, shape in (
        ({"task": "multi-label"}, values, (2, 2)),
        ({"task": "per-step"}, values, (2, 9, 2)),
        ({"step": "vocabulary = 7"}, tokens, (2, 2)),
    ):
        assert SequenceClassifier(made(f"preset = '{name}'", **keys)).eval()(steps, lengths).logits.shape == shape


NORMALIZED = [(name, normalize) for name in PRESETS for normalize in ("sequence", "both")]


@pytest.mark.parametrize(
    ("name", "normalize"),
    [
        pytest.param(*pair, marks=pytest.mark.long if number % 4 in (0, 3) else pytest.mark.gallery)
        for number, pair in enumerate(NORMALIZED)  # each preset once, with one way or the other
    ],
)
def test_every_preset_checks_clean_and_is_exported_with_the_same_bits(
    name: str, normalize: str, tmp_path: Path
) -> None:
    step = f"features = 3\nmax_length = 60\nmissing = 'mean'\nnormalize = '{normalize}'"
    described = tmp_path / "described.toml"
    described.write_text(as_toml(made(f"preset = '{name}'", step=step)))
    checked = lengthwise_export.check(described, max_length=60)
    assert (checked.verdict, list(checked.leaks)) == ("sound", [])
    assert lengthwise_export.export(described, tmp_path / "m").manifest.promises[0].bits


def test_auto_without_data_is_the_first_architecture() -> None:
    assert made("preset = 'auto'").resolved()["model"]["rnn"] == made("").resolved()["model"]["rnn"] == "lstm"
