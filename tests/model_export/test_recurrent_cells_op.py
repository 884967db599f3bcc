"""The operator `recurrent_cells`: one recurrent layer over a padded batch, against a loop over each row alone."""

from __future__ import annotations

import pytest
import torch

from lengthwise_export.tracing.recurrent_op import ACTIVATIONS, GATES, recurrent_cells

LENGTHS = torch.tensor([6, 3, 1])
HIDDEN, FEATURES, WIDTH = 4, 3, 8


def weights(kind: str, directions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    size = GATES[kind] * HIDDEN
    shapes = ((directions, size, FEATURES), (directions, size, HIDDEN), (directions, 2 * size))
    inputs, states, biases = (torch.randn(shape, generator=random) * 0.4 for shape in shapes)
    return inputs, states, biases


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "activations"), [("LSTM", "hard_sigmoid,relu,relu"), ("GRU", "sigmoid,softsign")])
def test_padding_changes_no_row(kind: str, activations: str, direction: str) -> None:
    values = torch.randn(3, WIDTH, FEATURES, generator=torch.Generator().manual_seed(1))
    given = weights(kind, 2 if direction == "bidirectional" else 1)
    run = (None, None, kind, activations, direction, False)
    outputs, states, cells = recurrent_cells(values, LENGTHS, *given, *run)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = recurrent_cells(values[row : row + 1, :length], None, *given, *run)
        assert torch.allclose(outputs[row, :length], alone[0][0], atol=1e-6)
        assert not outputs[row, length:].any()
        assert torch.allclose(states[:, row], alone[1][:, 0], atol=1e-6)
        assert torch.allclose(cells[:, row], alone[2][:, 0], atol=1e-6)


def test_a_forward_layer_is_the_one_of_torch() -> None:
    torch.manual_seed(2)
    layer = torch.nn.RNN(FEATURES, HIDDEN, batch_first=True)
    values = torch.randn(2, WIDTH, FEATURES)
    biases = torch.cat([layer.bias_ih_l0, layer.bias_hh_l0]).unsqueeze(0)
    given = (layer.weight_ih_l0.unsqueeze(0), layer.weight_hh_l0.unsqueeze(0), biases)
    with torch.no_grad():
        outputs, states, _ = recurrent_cells(values, None, *given, None, None, "RNN", "tanh", "forward", False)
        expected, last = layer(values)
    assert torch.allclose(outputs, expected, atol=1e-6)
    assert torch.allclose(states, last, atol=1e-6)


def test_the_activations_are_those_of_onnx() -> None:
    names = {activation.name for activation in ACTIVATIONS.values()}
    assert names == {
        "Affine",
        "Elu",
        "HardSigmoid",
        "LeakyRelu",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Tanh",
    }
