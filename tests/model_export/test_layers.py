import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lengthwise_export.architecture import layers
from lengthwise_export.architecture.normalization import Normalize

LENGTHS = torch.tensor([5, 1, 3, 7])
WIDTH, FEATURES = 9, 4


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


def batch() -> tuple[Tensor, Tensor]:
    """Steps with junk at padding, and the mask; none fills the width."""
    return torch.randn(len(LENGTHS), WIDTH, FEATURES), layers.step_mask(LENGTHS, WIDTH)


def answers(layer: nn.Module, steps: Tensor) -> list[Tensor]:
    """The layer's answer for each row by itself, without padding."""
    found = []
    for row, length in zip(steps, LENGTHS.tolist(), strict=True):
        alone = row[None, :length]
        found.append(layer(alone, layers.step_mask(torch.tensor([length]), length))[0])
    return found


def test_the_mask_comes_from_the_width_of_the_tensor() -> None:
    assert layers.step_mask(torch.tensor([1, 3]), 4).tolist() == [
        [True, False, False, False],
        [True, True, True, False],
    ]


def test_masking_removes_nan_where_a_product_would_keep_it() -> None:
    steps = torch.full((1, 2, 1), torch.nan)
    assert layers.masked(steps, torch.tensor([[False, False]])).tolist() == [[[0.0], [0.0]]]


EVERY_LAYER = [
    lambda: Normalize(FEATURES),
    lambda: Normalize(FEATURES, "indicator"),
    lambda: layers.MaskedBatchNorm(FEATURES),
    lambda: layers.MaskedLayerNorm(FEATURES),
    lambda: layers.MaskedConv(FEATURES, 6, kernel=3),
    lambda: layers.MaskedConv(FEATURES, 6, kernel=4, dilation=2),
    lambda: layers.MaskedSelfAttention(FEATURES, 2, dropout=0.0),
]


@pytest.mark.parametrize("make", EVERY_LAYER)
def test_a_padded_row_answers_as_it_does_alone(make) -> None:
    layer = make().eval()
    steps, mask = batch()
    padded = layer(steps, mask)
    for row, alone, length in zip(padded, answers(layer, steps), LENGTHS.tolist(), strict=True):
        torch.testing.assert_close(row[:length], alone)


@pytest.mark.parametrize("make", EVERY_LAYER)
def test_padding_is_zeros_after_every_layer(make) -> None:
    steps, mask = batch()
    assert not make().eval()(steps, mask)[~mask].any()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_layers_end_each_row_at_its_length(cell: str) -> None:
    layer = layers.MaskedRecurrent(cell, FEATURES, 6, layers=2, bidirectional=True, dropout=0.0).eval()
    steps, mask = batch()
    padded = layer(steps, LENGTHS)
    assert padded.shape == (len(LENGTHS), WIDTH, 12)
    assert not padded[~mask].any()
    for row, alone, length in zip(padded, steps, LENGTHS.tolist(), strict=True):
        torch.testing.assert_close(row[:length], layer(alone[None, :length], torch.tensor([length]))[0])


def test_stepwise_layers_write_zeros_at_padding_in_spite_of_their_biases() -> None:
    layer = layers.StepwiseLayers(FEATURES, 6, layers=2, dropout=0.0).eval()
    steps, mask = batch()
    answer = layer(steps, LENGTHS)
    assert answer[mask].any()
    assert not answer[~mask].any()


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (3, 1), (5, 1), (4, 3), (3, 4)])
def test_a_masked_convolution_is_torchs_on_the_unpadded_sequence(kernel: int, dilation: int) -> None:
    layer = layers.MaskedConv(FEATURES, 6, kernel, dilation).eval()
    # Linear weights [channels, kernel * features] as convolution weights [channels, features, kernel]
    weight = layer.project.weight.view(6, kernel, FEATURES).transpose(1, 2)
    steps, mask = batch()
    padded = layer(steps, mask)
    for row, alone, length in zip(padded, steps, LENGTHS.tolist(), strict=True):
        before = (kernel - 1) * dilation // 2  # as torch's padding="same"
        around = functional.pad(alone[:length].T, (before, (kernel - 1) * dilation - before))
        expected = functional.conv1d(around[None], weight, layer.project.bias, dilation=dilation)[0].T
        torch.testing.assert_close(row[:length], expected)


def test_batch_statistics_are_those_of_the_valid_steps() -> None:
    steps, mask = batch()
    reference = nn.BatchNorm1d(FEATURES)
    expected = reference(steps[mask])
    layer = layers.MaskedBatchNorm(FEATURES)
    torch.testing.assert_close(layer(steps, mask)[mask], expected)
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.running_variance, reference.running_var)


def test_batch_statistics_stay_finite_with_a_single_valid_step() -> None:
    layer = layers.MaskedBatchNorm(FEATURES)
    layer(torch.randn(1, 4, FEATURES), torch.tensor([[True, False, False, False]]))
    assert layer.running_variance.isfinite().all()


def test_a_batch_norm_in_use_keeps_its_statistics() -> None:
    layer = layers.MaskedBatchNorm(FEATURES).eval()
    layer(*batch())
    assert layer.running_mean.tolist() == [0.0] * FEATURES


def test_padded_keys_get_no_weight_in_self_attention() -> None:
    layer = layers.MaskedSelfAttention(FEATURES, 2, dropout=0.0).eval()
    steps, mask = batch()
    other = torch.where(mask.unsqueeze(2), steps, 50.0)
    assert layer(steps, mask)[mask].equal(layer(other, mask)[mask])


def test_attention_weights_are_nothing_at_padding_and_one_in_all() -> None:
    steps, mask = batch()
    pooled, weights = layers.AttentionPooling(FEATURES)(steps, mask)
    assert pooled.shape == (len(LENGTHS), FEATURES)
    assert not weights[~mask].any()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(LENGTHS)))


def test_mean_pooling_divides_by_the_length() -> None:
    steps, mask = batch()
    expected = torch.stack([row[:length].mean(dim=0) for row, length in zip(steps, LENGTHS.tolist(), strict=True)])
    torch.testing.assert_close(layers.mean_pooling(layers.masked(steps, mask), mask), expected)


def test_max_pooling_of_negative_values_does_not_find_the_zeros_of_padding() -> None:
    steps = torch.full((1, 3, 2), -5.0)
    mask = torch.tensor([[True, True, False]])
    assert layers.max_pooling(layers.masked(steps, mask), mask).tolist() == [[-5.0, -5.0]]


def test_last_pooling_takes_the_last_valid_step() -> None:
    steps, _ = batch()
    expected = torch.stack([row[length - 1] for row, length in zip(steps, LENGTHS.tolist(), strict=True)])
    assert layers.last_pooling(steps, LENGTHS, bidirectional=False).equal(expected)


def test_last_pooling_takes_the_first_step_of_what_read_backwards() -> None:
    steps, _ = batch()
    pooled = layers.last_pooling(steps, LENGTHS, bidirectional=True)
    assert pooled[:, 2:].equal(steps[:, 0, 2:])
    assert pooled[0, :2].equal(steps[0, LENGTHS[0] - 1, :2])


def test_a_padding_id_is_embedded_as_zeros() -> None:
    layer = layers.TokenEmbedding(5, 3, padding_id=2)
    embedded = layer(torch.tensor([[2, 1]]), torch.tensor([[True, True]]))
    assert not embedded[0, 0].any()
    assert embedded[0, 1].any()


def test_ids_past_the_table_may_stand_at_padding() -> None:
    layer = layers.TokenEmbedding(5, 3)
    assert not layer(torch.tensor([[1, 999]]), torch.tensor([[True, False]]))[0, 1].any()


def fitted(missing: str, *, normalize: bool = True) -> Normalize:
    layer = Normalize(2, missing, "training" if normalize else "none")
    layer.fit([torch.tensor([[1.0, torch.nan], [3.0, 7.0]]), torch.tensor([[5.0, 9.0]])])
    return layer


def standardized(missing: str, values: list[float], *, normalize: bool = True) -> list[float]:
    answer = fitted(missing, normalize=normalize)(torch.tensor([[values]]), torch.tensor([[True]]))
    return [round(value, 4) for value in answer[0, 0].tolist()]


def test_statistics_are_those_of_the_present_values() -> None:
    layer = fitted("mean")
    assert layer.mean.tolist() == [3.0, 8.0]
    torch.testing.assert_close(layer.std, torch.tensor([(8 / 3) ** 0.5, 1.0]))


@pytest.mark.parametrize(
    ("missing", "normalize", "expected"),
    [
        ("zero", True, [0.0, -8.0]),
        ("mean", True, [0.0, 0.0]),
        ("indicator", True, [0.0, 0.0, 0.0, 1.0]),
        ("zero", False, [3.0, 0.0]),
        ("mean", False, [3.0, 8.0]),
        ("indicator", False, [3.0, 8.0, 0.0, 1.0]),
    ],
)
def test_a_missing_value_becomes_what_its_policy_says(missing: str, normalize: bool, expected: list[float]) -> None:
    assert standardized(missing, [3.0, float("nan")], normalize=normalize) == expected


def test_a_constant_feature_becomes_zero_and_not_nan() -> None:
    layer = Normalize(1)
    layer.fit([torch.full((4, 1), 0.1)])
    assert layer.std.tolist() == [1.0]
    assert abs(layer(torch.full((1, 1, 1), 0.1), torch.tensor([[True]])).item()) < 1e-6


def test_a_feature_that_is_never_present_is_filled_with_zero() -> None:
    layer = Normalize(1, "mean")
    layer.fit([torch.full((4, 1), torch.nan)])
    assert layer(torch.full((1, 1, 1), torch.nan), torch.tensor([[True]])).item() == 0.0
