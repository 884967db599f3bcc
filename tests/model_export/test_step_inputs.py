"""What one step of a module is, and what is said where it cannot be found out."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.trace_torch import TorchSubject
from lengthwise_export.errors import UncheckableError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.step_inputs import read_steps
from lengthwise_export.tracing.call_signature import CallSignature, read_signature
from lengthwise_export.tracing.outputs import output_selector
from tests.gallery.torch_models import Factory, network


class Mean(nn.Module):
    """A masked mean and a layer over it; what differs is how it is called."""

    def __init__(self, features: int = 4, *, turned: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(features, 3)
        self.turned = turned

    def forward(self, x, mask):
        x = x if self.turned is None else self.turned(x)
        return self.out(x.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1) / mask.sum(1, keepdim=True))


class Bert(nn.Module):
    def __init__(self, ids: int, said: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        if said is not None:
            self.config = SimpleNamespace(vocab_size=said)
        self.words, self.places, self.kinds = nn.Embedding(ids, 6), nn.Embedding(600, 6), nn.Embedding(2, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        h = self.words(input_ids) + self.places(torch.arange(input_ids.size(1))) + self.kinds(input_ids * 0)
        return self.out((h * attention_mask.unsqueeze(-1)).sum(1))


def found(module: nn.Module, signature: CallSignature | None = None, **options: object) -> TorchSubject:
    said = TargetOptions(**options)
    signature = signature or read_signature(module, second=said.second)
    return read_steps("net:make", unread(module.eval(), signature), said)[0]


def unread(module: nn.Module, signature: CallSignature) -> TorchSubject:
    return TorchSubject(module, StepInput(features=1), signature, output_selector(None))


def test_a_step_is_what_the_first_layer_takes() -> None:
    module, options = Mean(), TargetOptions()
    subject, shape = read_steps("net:make", unread(module, read_signature(module)), options)
    assert (subject.steps.features, shape[-1]) == (4, 3)


@pytest.mark.parametrize(
    ("ids", "said", "expected"), [(200, 200, 200), (208, 200, 200), (200, None, 200), (90, 500, 90)]
)
def test_the_vocabulary_is_the_configurations_or_that_of_the_table_the_ids_go_into(
    ids: int, said: int | None, expected: int
) -> None:
    assert found(Bert(ids, said)).steps.vocabulary == expected
    assert found(nn.Sequential(Bert(ids, said))[0]).steps.vocabulary == expected


def test_raw_samples_have_no_axis_of_features() -> None:
    raw = Mean(1, turned=lambda x: x.unsqueeze(-1) if x.dim() == 2 else x.squeeze(-1).unsqueeze(-1).unsqueeze(-1))
    for options in ({}, {"features": 1}):
        read = found(raw, **options)
        assert (read.steps.features, read.signature.features_axis) == (1, False)
    assert found(Mean(1)).signature.features_axis


@network(0, lambda: {"conv": nn.Conv1d(4, 6, 3, padding=1), "out": nn.Linear(6, 3)})
def channels_first(self, x, mask):
    return self.out(self.conv(x * mask.unsqueeze(1)).mean(-1))


@network(0, lambda: {"out": nn.Linear(4, 3)})
def time_first(self, x, mask):
    return self.out((x * mask.T.unsqueeze(-1)).sum(0))


@network(0, lambda: {"out": nn.Linear(4, 3)})
def float_mask(self, x, mask):
    return self.out((x * (1.0 - (1.0 - mask)).unsqueeze(-1)).sum(1))


@network(0, lambda: {"out": nn.Linear(4, 3)})
def long_mask(self, x, mask):
    return self.out((x * nn.functional.embedding(mask, torch.ones(2, 1))).sum(1))


@network(0, lambda: {"conv": nn.Conv1d(4, 6, 3, padding=1), "out": nn.Linear(6, 3)})
def says_bool(self, x, mask):
    if x.size(1) != 4:
        raise TypeError("'bool' object is not callable")
    return self.out(self.conv(x * mask.unsqueeze(1)).mean(-1))


@network(0, lambda: {"out": nn.Linear(4, 3)})
def float_lengths(self, x, lengths):
    return self.out(x.sum(1)) + lengths[:, None] @ torch.ones(1, 3)


@network(0, lambda: {"out": nn.Linear(4, 3)})
def shares(self, x, lens):
    return self.out(x[torch.arange(x.size(0)), (lens * x.size(1)).round().long() - 1])


@pytest.mark.parametrize(
    ("module", "helps"),
    [
        (channels_first, "--channels-first"),
        (time_first, "--time-first"),
        (float_mask, r"mask = mask\.to\(x\.dtype\)"),
        (long_mask, r"mask = mask\.long\(\)"),
        (says_bool, "--channels-first"),
        (float_lengths, r"float32 lengths.*lengths = lengths\.to\(x\.dtype\)"),
        (shares, "shares of the width"),
        (lambda: Mean().double(), r"weights of float64.*module\.float\(\)"),
    ],
)
@pytest.mark.parametrize("said", [{}, {"features": 4}])
def test_what_does_not_run_is_told_what_would_help(module, helps: str, said: dict) -> None:
    with pytest.raises(ConfigurationError, match=helps) as caught:
        found(module(), **said)
    assert "cannot be read off" not in str(caught.value)


def test_a_layout_that_was_said_and_is_not_meant_is_told() -> None:
    module = Mean()
    with pytest.raises(ConfigurationError, match="--channels-first"):
        found(module, read_signature(module, channels_first=True))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("width", [40, 64, 300])
def test_a_width_that_is_frozen_is_left_to_the_check(width: int) -> None:
    @network(0, lambda: {"step": nn.Linear(4, 6), "out": nn.Linear(6 * width, 3)})
    def flat(self, x, mask):
        return self.out((self.step(x) * mask.unsqueeze(-1)).flatten(1))

    assert found(flat()).steps.features == 4


@network(0, dict)
def bare(self, x, mask):
    return x.sum(1)[:, :3]


def test_only_a_module_whose_layers_say_nothing_is_told_that_it_cannot_be_read() -> None:
    with pytest.raises(ConfigurationError, match="--features N"):
        found(bare())
    assert found(bare(), features=5).steps.features == 5


@network(0, lambda: {"out": nn.Linear(4, 3)})
def broken(self, x, mask):
    raise ValueError("no weights yet")


@network(0, lambda: {"mix": nn.GRU(3, 8, batch_first=True), "out": nn.Linear(8, 2)})
def misspelt(self, x, mask):
    return self.out(self.mix(x)[0] * valid.unsqueeze(-1)).mean(1)  # noqa: F821


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "why", "advice"),
    [(broken, "no weights yet", "cannot be read off"), (misspelt, "name 'valid' is not defined", "--vocabulary")],
)
def test_what_raises_whatever_a_step_is_gets_no_advice_about_steps(module: Factory, why: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as raised:
        found(module())
    assert advice not in str(raised.value)


class Decoded(Mean):
    """A masked mean that gives the label in the place of scores."""

    def forward(self, x, mask):
        return super().forward(x, mask).argmax(1)


@pytest.mark.parametrize("said", [{}, {"features": 4}])
def test_labels_in_the_place_of_scores_do_not_count_as_raising(said: dict) -> None:
    with pytest.raises(UncheckableError, match=r"the model's answer: none of 0 \(int64, rank 1\) is .* decode them"):
        found(Decoded(), **said)


@pytest.mark.parametrize(("module", "said"), [(Mean(), "--features 9"), (Bert(200, None), "--vocabulary 900")])
def test_a_stated_step_that_contradicts_the_module_is_named_beside_its_own(module: nn.Module, said: str) -> None:
    option, size = said.split()
    its_own = {"--features": "--features 4", "--vocabulary": "--vocabulary 200"}[option]
    with pytest.raises(UncheckableError, match=f"raises with {said}, and runs with {its_own}"):
        found(module, **{option.strip("-"): int(size)})
