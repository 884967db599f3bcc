"""The operators `recurrent` and `recurrent_cells`, against torch's layers and against each row alone."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lengthwise_export.tracing.recurrent_op import ACTIVATIONS, GATES, recurrent, recurrent_cells, weights_of

LENGTHS = torch.tensor([3, 7, 1, 5])
KINDS = {
    "lstm": lambda **form: nn.LSTM(3, 4, **form),
    "gru": lambda **form: nn.GRU(3, 4, **form),
    "tanh": lambda **form: nn.RNN(3, 4, **form),
    "relu": lambda **form: nn.RNN(3, 4, nonlinearity="relu", **form),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def run(module: nn.RNNBase, values: torch.Tensor, state=None, cell=None, lengths: torch.Tensor = LENGTHS):
    layers = weights_of(module)
    with torch.no_grad():
        return recurrent(
            values,
            lengths,
            [layer.inputs for layer in layers],
            [layer.states for layer in layers],
            [layer.biases for layer in layers],
            state,
            cell,
            module.mode,
        )


def packed(module: nn.RNNBase, values: torch.Tensor, initial=None):
    sequence = pack_padded_sequence(values, LENGTHS, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        outputs, state = module(sequence, initial)
    return pad_packed_sequence(outputs, batch_first=True, total_length=values.shape[1])[0], state


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layers", "both_ways"), [(1, False), (1, True), (3, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_gives_what_torch_gives_for_packed_sequences(
    kind: str, layers: int, both_ways: bool, bias: bool
) -> None:
    module = KINDS[kind](num_layers=layers, bidirectional=both_ways, bias=bias, batch_first=True)
    values = torch.randn(4, 9, 3)
    expected, state = packed(module, values)
    outputs, states, cells = run(module, values)
    assert torch.equal(outputs, expected)
    assert torch.equal(states, state[0] if kind == "lstm" else state)
    assert kind != "lstm" or torch.equal(cells, state[1])


def test_outputs_are_zero_past_each_length_whatever_stands_there() -> None:
    module = nn.GRU(3, 4, bidirectional=True, batch_first=True)
    values = torch.randn(4, 9, 3)
    poisoned = values.clone()
    past = torch.arange(9) >= LENGTHS[:, None]
    poisoned[past] = torch.nan
    outputs, states, _ = run(module, poisoned)
    assert not outputs[past].any()
    assert torch.equal(outputs, run(module, values, lengths=LENGTHS.int())[0])
    assert states.isfinite().all()


def test_initial_states_begin_a_row() -> None:
    module = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    values, state, cell = torch.randn(4, 9, 3), torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    expected, _ = packed(module, values, (state, cell))
    assert torch.equal(run(module, values, state, cell)[0], expected)


def test_weights_stand_in_the_order_that_onnx_wants() -> None:
    (layer,) = weights_of(nn.LSTM(3, 4, bidirectional=True))
    assert layer.inputs.shape == (2, 16, 3)
    assert layer.states.shape == (2, 16, 4)
    assert layer.biases.shape == (2, 32)
    module = nn.LSTM(3, 4)
    (layer,) = weights_of(module)
    forget = module.weight_ih_l0[4:8]  # torch: input, forget, cell, output; ONNX: input, output, forget, cell
    assert torch.equal(layer.inputs[0, 8:12], forget)


ROWS = torch.tensor([6, 3, 1])
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
    outputs, states, cells = recurrent_cells(values, ROWS, *given, *run)
    for row, length in enumerate(ROWS.tolist()):
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
    assert names == {*["Affine", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"]}
