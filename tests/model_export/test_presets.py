from pathlib import Path

import pytest
import torch

from lengthwise.runtime.session import Session
from lengthwise.verification import measurement, promises
from lengthwise_export.architecture.model import Ensemble, SequenceClassifier, classifier
from lengthwise_export.architecture.model_spec import PRESETS
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.errors import SpecError
from lengthwise_export.exporting import flow
from lengthwise_export.exporting.candidate import from_spec
from lengthwise_export.options import CheckOptions
from tests.support.long import long_but


def made(model: str, **keys: str) -> Spec:
    step = keys.get("step", "features = 3\nmax_length = 60")
    return Spec.from_toml(
        f"[input]\n{step}\n[model]\n{model}\n[output]\nlabels = ['a', 'b']\ntask = '{keys.get('task', 'single-label')}'"
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_set_of_ordinary_keys(name: str) -> None:
    table = made(f"preset = '{name}'").resolved()["model"]
    assert "preset" not in table
    assert Spec.from_table(made(f"preset = '{name}'").resolved()).resolved()["model"] == table


def test_a_key_beside_a_preset_wins() -> None:
    assert made("preset = 'rnn'\nhidden = 5").model.hidden == 5
    assert made("preset = 'conv'\npooling = 'max'").model.pooling == "max"


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("task", ["multi-label", "per-step"])
def test_a_preset_fits_every_task(name: str, task: str) -> None:
    logits = classifier(made(f"preset = '{name}'", task=task)).eval()(torch.randn(2, 9, 3), torch.tensor([9, 4])).logits
    assert logits.shape == ((2, 9, 2) if task == "per-step" else (2, 2))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_tokens(name: str) -> None:
    model = classifier(made(f"preset = '{name}'", step="vocabulary = 7")).eval()
    assert model(torch.randint(7, (2, 9)), torch.tensor([9, 4])).logits.shape == (2, 2)


@pytest.mark.parametrize("name", PRESETS)
def test_padding_and_neighbours_do_not_reach_an_answer(name: str) -> None:
    model = classifier(made(f"preset = '{name}'\nsequence_features = ['length', 'level', 'scale']")).eval()
    steps, lengths = torch.randn(3, 50, 3), torch.tensor([50, 1, 23])
    padded = torch.nn.functional.pad(steps.clone(), (0, 0, 0, 7), value=1e30)
    for row, length in enumerate(lengths.tolist()):
        padded[row, length:] = 1e30
    together = model(padded, lengths).logits
    for row, length in enumerate(lengths.tolist()):
        by_itself = model(steps[row : row + 1, :length], lengths[row : row + 1]).logits
        torch.testing.assert_close(together[row : row + 1], by_itself, atol=1e-5, rtol=1e-4)


NORMALIZED = [(name, normalize) for name in PRESETS for normalize in ("sequence", "both")]


@pytest.mark.parametrize(
    ("name", "normalize"),
    [
        pytest.param(*pair, marks=pytest.mark.long if number % 4 in (0, 3) else pytest.mark.gallery)
        for number, pair in enumerate(NORMALIZED)  # each preset once, with one way or the other
    ],
)
def test_every_preset_exports_and_keeps_bits(name: str, normalize: str) -> None:
    step = f"features = 3\nmax_length = 60\nmissing = 'mean'\nnormalize = '{normalize}'"
    source = from_spec(made(f"preset = '{name}'", step=step), None)
    data = source.build(source.manifest).SerializeToString()
    cases = measurement.measure_cases(
        lambda threads: Session(data, source.manifest, threads=threads), source.manifest, source.reference
    )
    assert promises.failures(cases) == []


@pytest.mark.parametrize("name", long_but(PRESETS, lambda name: name == "rnn"))
def test_check_finds_no_leak_in_a_preset(name: str, tmp_path: Path) -> None:
    described = tmp_path / f"{name}.toml"
    described.write_text(
        "[input]\nfeatures = 3\nmax_length = 60\nmissing = 'mean'\nnormalize = 'both'\n"
        f"[model]\npreset = '{name}'\n[output]\nlabels = ['a', 'b']\n"
    )
    checked = flow.check(str(described), CheckOptions(max_length=60))
    assert (checked.report.verdict, list(checked.report.leaks)) == ("sound", [])


def test_the_logits_of_an_ensemble_are_the_mean_of_its_members() -> None:
    torch.manual_seed(0)
    model = classifier(made("hidden = 4\nmembers = 3")).eval()
    assert isinstance(model, Ensemble)
    steps, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
    each = [member(steps, lengths) for member in model.members]
    answer = model(steps, lengths)
    torch.testing.assert_close(answer.logits, torch.stack([one.logits for one in each]).mean(dim=0))
    torch.testing.assert_close(answer.attention.sum(dim=1), torch.ones(2))


def test_auto_without_data_is_the_first_architecture() -> None:
    written, silent = made("preset = 'auto'").resolved()["model"], made("").resolved()["model"]
    assert (written["rnn"], silent["rnn"]) == ("lstm", "lstm")
    assert isinstance(classifier(made("")), SequenceClassifier)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("preset = 'inception'", "preset"),
        ("layers = 0", "'layers' 0"),
        ("conv = [{channels = 5, kernel = [3, 5]}]", "multiple of the 2 branches"),
        ("conv = [{channels = 4, residual = 2}]", "goes back further"),
        ("feed_forward = 8", "needs 'self_attention_heads'"),
        ("sequence_features = ['length', 'length']", "only once"),
        ("conv = [{channels = 4, kernel = []}]", "kernel"),
        ("conv = [{channels = 4, kernel = [0]}]", "kernel"),
        ("members = 0", "members"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(model: str, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        made(model)
