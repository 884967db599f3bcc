import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lengthwise_export.tracing.recurrent_op import recurrent, weights_of

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
    assert torch.equal(outputs, run(module, values)[0])
    assert states.isfinite().all()


def test_initial_states_begin_a_row() -> None:
    module = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    values, state, cell = torch.randn(4, 9, 3), torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    expected, _ = packed(module, values, (state, cell))
    assert torch.equal(run(module, values, state, cell)[0], expected)


def test_lengths_may_be_int32() -> None:
    module = nn.GRU(3, 4, batch_first=True)
    values = torch.randn(4, 9, 3)
    assert torch.equal(run(module, values, lengths=LENGTHS.int())[0], run(module, values)[0])


def test_weights_stand_in_the_order_that_onnx_wants() -> None:
    (layer,) = weights_of(nn.LSTM(3, 4, bidirectional=True))
    assert layer.inputs.shape == (2, 16, 3)
    assert layer.states.shape == (2, 16, 4)
    assert layer.biases.shape == (2, 32)
    module = nn.LSTM(3, 4)
    (layer,) = weights_of(module)
    forget = module.weight_ih_l0[4:8]  # torch: input, forget, cell, output; ONNX: input, output, forget, cell
    assert torch.equal(layer.inputs[0, 8:12], forget)
