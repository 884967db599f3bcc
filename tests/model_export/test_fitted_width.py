"""`--width N --fit pad|resample`: models of one width, which get every sequence as their training did."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import lengthwise
import lengthwise_export
from lengthwise.errors import ConfigurationError, InvalidRequest, LengthwiseError
from lengthwise.runtime.manifest import Fit, Manifest, StepInput
from lengthwise.runtime.opening import ATTENTION
from lengthwise.verification.promises import KERNELS
from lengthwise_export.targets import fitted

WIDTH: Final = 20
LENGTHS: Final = (1, 3, 11, 19, 20)


class Positions(nn.Module):
    """As tsai's TST: features first, a table of positions over the whole width, a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.positions = nn.Linear(4, 8), nn.Parameter(torch.randn(WIDTH, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(WIDTH * 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.inputs(x.mT) + self.positions).flatten(1))


class Recurrent(nn.Module):
    """An LSTM that runs over the whole width, and a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(4, 6, batch_first=True, bidirectional=True), nn.Linear(WIDTH * 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0].flatten(1))


def as_trained(steps: np.ndarray[Any, Any], fit: Fit) -> Tensor:
    """One sequence, `[steps, features]`, as a training brings it to the width: `[1, WIDTH, features]`."""
    row = torch.from_numpy(steps).T[None]  # [1, features, steps]
    if fit == "pad":
        return F.pad(row, (0, WIDTH - row.shape[2])).mT
    return F.interpolate(row, size=WIDTH, mode="linear", align_corners=False).mT


def drawn(lengths: tuple[int, ...]) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return [random.standard_normal((length, 4)).astype(np.float32) for length in lengths]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 40))
def test_resampling_is_that_of_each_sequence_alone(lengths: list[int], width: int) -> None:
    sequences = [torch.randn(1, length, 2) for length in lengths]
    batch = torch.full((len(lengths), max(lengths) + 3, 2), torch.nan)
    for row, steps in zip(batch, sequences, strict=True):
        row[: steps.shape[1]] = steps[0]
    actual = fitted.resampled(batch, torch.tensor(lengths), width)
    expected = [F.interpolate(x.mT, size=width, mode="linear", align_corners=False).mT for x in sequences]
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-5, atol=1e-5)


@given(st.integers(1, 2000), st.integers(1, 200))
@example(1024, 7)
def test_resampling_is_that_of_torch_over_long_sequences(length: int, width: int) -> None:
    steps = (3.0 * torch.arange(length)).sin()[None, :, None]
    expected = F.interpolate(steps.mT, size=width, mode="linear", align_corners=False).mT
    torch.testing.assert_close(fitted.resampled(steps, torch.tensor([length]), width), expected, rtol=0, atol=3e-6)


@given(st.lists(st.sampled_from([1.0, 2.0, torch.nan]), min_size=1, max_size=12), st.integers(1, 12))
@example([1.0, torch.nan, 2.0], 3)
@example([1.0, torch.nan], 3)
def test_missing_values_spread_as_far_as_in_torch(numbers: list[float], width: int) -> None:
    steps = torch.tensor(numbers)[None, :, None]
    actual = fitted.resampled(steps, torch.tensor([len(numbers)]), width)
    expected = F.interpolate(steps.mT, size=width, mode="linear", align_corners=False).mT
    assert torch.equal(actual.isnan(), expected.isnan())


def test_padding_is_zeros_behind_numbers_and_ids() -> None:
    steps, lengths = torch.tensor([[1, 2, 9], [3, 4, 5]]), torch.tensor([2, 3])
    assert fitted.padded(steps, lengths, 4).tolist() == [[1, 2, 0, 0], [3, 4, 5, 0]]
    assert fitted.padded(steps[..., None].float(), lengths, 2)[..., 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.fixture(scope="module", params=["pad", pytest.param("resample", marks=pytest.mark.long)])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Positions, Any, Manifest]:
    """The original, the model as it is served, and its manifest."""
    torch.manual_seed(0)
    module, folder, fit = Positions().eval(), tmp_path_factory.mktemp("models"), request.param
    longest = {} if fit == "pad" else {"max_length": 50}
    published = lengthwise_export.export(
        module, folder / "positions", features=4, channels_first=True, width=WIDTH, fit=fit, **longest
    )
    return module, lengthwise.load(published.directory), published.manifest


def test_answers_are_those_of_the_original_so_fed(served: tuple[Positions, Any, Manifest]) -> None:
    module, model, manifest = served
    fit = manifest.input.fit
    sequences = drawn(LENGTHS if fit == "pad" else (*LENGTHS, 33, 50))
    expected = [module(as_trained(steps, fit).mT).softmax(1)[0].detach().numpy() for steps in sequences]
    together = model.predict(sequences)
    np.testing.assert_allclose([each.probabilities for each in together], expected, atol=1e-5)
    alone = [model.predict([steps])[0].probabilities for steps in sequences]
    assert np.array_equal(alone, [each.probabilities for each in together])


def test_its_attention_without_a_mask_runs_in_one_operator(served: tuple[Positions, Any, Manifest]) -> None:
    assert served[2].made[KERNELS] == ATTENTION


def test_an_answer_says_how_its_sequence_was_fitted(served: tuple[Positions, Any, Manifest]) -> None:
    _, model, manifest = served
    fit = manifest.input.fit
    predictions = model.predict(drawn(LENGTHS))
    assert {each.fitted for each in predictions} == {fit}
    assert [each.length for each in predictions] == [*LENGTHS]
    with pytest.raises(InvalidRequest, match="20" if fit == "pad" else "50"):
        model.predict(drawn((51,)))


@pytest.mark.long
def test_a_recurrent_layer_runs_over_the_whole_width(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, sequences = Recurrent().eval(), drawn(LENGTHS)
    published = lengthwise_export.export(module, tmp_path / "recurrent", features=4, width=WIDTH, fit="pad")
    expected = [module(as_trained(steps, "pad")).softmax(1)[0].detach().numpy() for steps in sequences]
    actual = lengthwise.load(published.directory).predict(sequences)
    np.testing.assert_allclose([each.probabilities for each in actual], expected, atol=1e-5)


def test_a_model_of_one_width_is_told_what_cures_it() -> None:
    class Masked(Positions):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return super().forward(x.mT)

    report = lengthwise_export.check(Masked(), features=4, max_length=40)
    assert report.verdict == "uncheckable"
    assert f"--width {WIDTH} --fit pad" in report.reason
    assert "LW603" in report.reason
    assert "by number" in report.reason


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"width": WIDTH}, "belong together"),
        ({"fit": "pad"}, "belong together"),
        ({"width": WIDTH, "fit": "pad", "max_length": 30}, "--max-length 30 contradicts --width 20"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=why):
        lengthwise_export.export(Recurrent(), tmp_path / "m", features=4, **options)


class WithStatic(Positions):
    def forward(self, x: Tensor, lengths: Tensor, static: Tensor) -> Tensor:
        return super().forward(x.mT) + static.sum()


def test_nothing_may_stand_beside_a_fitted_sequence_yet() -> None:
    with pytest.raises(ConfigurationError, match=r"--width: .*beside"):
        lengthwise_export.check(WithStatic(), features=4, width=WIDTH, fit="pad")


def test_token_ids_are_not_resampled() -> None:
    module = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(4 * WIDTH, 2))
    with pytest.raises(ConfigurationError, match="token ids"):
        lengthwise_export.check(module, vocabulary=9, width=WIDTH, fit="resample")
    assert lengthwise_export.check(module, vocabulary=9, width=WIDTH, fit="pad").verdict == "sound"


@pytest.mark.parametrize("table", [{"width": 4}, {"fit": "pad"}, {"width": 0, "fit": "pad"}])
def test_a_manifest_says_both_or_none(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="width"):
        StepInput(features=2, **table)


def test_a_width_is_an_option_of_torch_modules_alone() -> None:
    with pytest.raises(LengthwiseError, match="--width does not apply"):
        lengthwise_export.check("model_export/lengthwise_export/specs/japanese-vowels.toml", width=9, fit="pad")


@pytest.mark.parametrize(("width", "channels_first"), [(9, True), (WIDTH, False)])
def test_a_width_or_an_order_that_the_module_lacks_is_told(width: int, channels_first: bool) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"raises for a sequence of --width {width} steps: .*trained with.*--channels-first"
    ):
        lengthwise_export.check(Positions(), features=4, channels_first=channels_first, width=width, fit="pad")


def test_a_shortest_sequence_above_the_longest_is_told_so() -> None:
    report = lengthwise_export.check(Recurrent(), features=4, width=WIDTH, fit="pad", min_length=30)
    assert "at least 30 steps" in (report.reason or "")
    assert "pass a smaller --min-length" in (report.reason or "")
