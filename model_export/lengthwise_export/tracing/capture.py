"""From a user's torch module to an exported program, packing and all, without touching the module.

`torch.export` cannot carry a packed sequence, and it unrolls a plain `nn.LSTM`, which freezes the width. For the time
of one trace this module puts three things in their place:

    pack_padded_sequence       keeps the rectangle and the lengths aside, behind an ordinary PackedSequence
    LSTM | GRU | RNN.forward   call `recurrent` with that rectangle and those lengths
    pad_packed_sequence        gives the rectangle back, at the full width

so everything between them, written for packed sequences or not, is traced as it stands. A packed sequence's `data` is
the rectangle with rows and steps merged, `[rows * width, features]`: what is computed step by step on it stays right.
Whether the rest of the module is right at other sizes than the traced ones, a trace cannot show; the proof runs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import rnn as packing
from torch.nn.utils.rnn import PackedSequence

from lengthwise.runtime.manifest import StepInput
from lengthwise_export.errors import ExportError
from lengthwise_export.tracing.call_signature import CallSignature, step_mask, without_fast_path
from lengthwise_export.tracing.dynamic_shapes import Branches, OpenSizes, watched_branches
from lengthwise_export.tracing.outputs import OutputSelector
from lengthwise_export.tracing.patched_builtins import open_numbers, trace_error
from lengthwise_export.tracing.recurrent_op import recurrent, weights_of
from lengthwise_export.tracing.source_lines import current_location, error_text, location_of

# Sizes of the traced batch: any above one would do, for 0 and 1 are the sizes that torch.export may burn in.
_ROWS, _WIDTH = 3, 7


def capture(
    model: nn.Module,
    steps: StepInput,
    *,
    signature: CallSignature,
    select_output: OutputSelector,
) -> tuple[ExportedProgram, list[str]]:
    """Traces a module with rows and width left open.

    Args:
        model: The module.
        steps: What one step is.
        signature: How it is called.
        select_output: Picks the graph's outputs, by name, from whatever the module returns.

    Returns:
        A program of (sequences, lengths int32), and the names of its outputs.

    Raises:
        ExportError: The module does something that no graph can do; says what, and where in its code.
    """
    if steps.kind == "tokens":
        sequences = torch.ones(_ROWS, _WIDTH, dtype=torch.int64)
    else:
        sequences = torch.zeros(_ROWS, _WIDTH, steps.features or 0)
    lengths = torch.tensor([_WIDTH, 1, 2], dtype=torch.int32)
    trace = _Trace()
    traced = _Traced(model, signature, select_output, trace).eval()
    sizes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    trace.branches = _steady_branches(model, steps, signature)
    with _replaced(trace), open_numbers(model), torch.no_grad():
        try:
            program = torch.export.export(traced, (sequences, lengths), dynamic_shapes=sizes, strict=False)
        except ExportError:
            raise
        except (Exception, SystemExit) as error:  # whatever the module's code raises, and a dozen of torch's own
            raise trace_error(location_of(error), error_text(error)) from error
    return program, trace.outputs


def _steady_branches(model: nn.Module, steps: StepInput, signature: CallSignature) -> Branches:
    """Which way the module's branches on tensor values go, of those that go one way for every batch tried here."""
    seen: dict[tuple[str, int], set[bool]] = {}
    random = torch.Generator().manual_seed(0)
    with watched_branches(seen), without_fast_path(), torch.no_grad():
        for lengths in ([1], [4, 2], [1, 7, 3], [5, 5], [2, 1, 9, 9]):
            shape = (len(lengths), max(lengths))
            if steps.kind == "tokens":
                sequences = torch.randint(steps.vocabulary or 1, shape, generator=random)
            else:
                sequences = torch.randn(*shape, steps.features or 0, generator=random)
            ends = torch.tensor(lengths)
            # A batch that the module refuses tells nothing of its branches, and the trace tells what it refuses.
            with contextlib.suppress(Exception, SystemExit):
                signature.call(model, signature.given(sequences, ends, step_mask(ends, shape[1])))
    return {place: ways.pop() for place, ways in seen.items() if len(ways) == 1}


class _Traced(nn.Module):
    """The module with the graph's own inputs and outputs, and its recurrent weights in ONNX's layout as buffers."""

    def __init__(
        self, model: nn.Module, signature: CallSignature, select_output: OutputSelector, trace: _Trace
    ) -> None:
        super().__init__()
        self.model = model
        self._signature = signature
        self._select_output = select_output
        self._trace = trace
        for path, part in model.named_modules():
            if isinstance(part, nn.RNNBase) and part.proj_size == 0:
                trace.weights[part] = [_Layer(*vars(weights).values()) for weights in weights_of(part)]
                self.add_module(f"recurrent_{path.replace('.', '_')}", nn.ModuleList(trace.weights[part]))

    def forward(self, sequences: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """`[rows, width(, features)]` and int32 `[rows]` to the chosen outputs."""
        torch._check(lengths.shape[0] == sequences.shape[0])  # type: ignore[no-untyped-call]  # torch's own
        ends = lengths.long()
        self._trace.begin(sequences, ends)
        given = self._signature.given(sequences, ends, step_mask(ends, sequences.shape[1]))
        with OpenSizes(sequences, ends, given, self._trace.branches):
            answer = self._signature.call(self.model, given)
        outputs = self._select_output(answer)
        outputs["logits"] = self._signature.rows_first(outputs["logits"])
        self._trace.outputs = list(outputs)
        return tuple(outputs.values())


class _Layer(nn.Module):
    """One layer's weights as buffers, so that the exporter makes initializers of them."""

    inputs: Tensor
    states: Tensor
    biases: Tensor

    def __init__(self, inputs: Tensor, states: Tensor, biases: Tensor) -> None:
        super().__init__()
        self.register_buffer("inputs", inputs)
        self.register_buffer("states", states)
        self.register_buffer("biases", biases)


@dataclass(frozen=True)
class _Rectangle:
    """What stands behind a packed sequence: `steps [rows, width, ...]`, and whether they are 0 past the lengths."""

    steps: Tensor
    lengths: Tensor
    zeroed: bool


class _Trace:
    """What one trace knows: the sequences' shape and lengths, and the rectangles that stand behind packed sequences.

    A packed sequence is known again by its data, or by its `batch_sizes`, which users hand on when they make one from
    what they computed on another's data.
    """

    def __init__(self) -> None:
        self.weights: dict[nn.RNNBase, list[_Layer]] = {}
        self.outputs: list[str] = []
        self.branches: Branches = {}
        # The tensors are kept beside the rectangles, so that no other tensor can get their id.
        self._by_data: dict[int, tuple[Tensor, _Rectangle]] = {}
        self._by_sizes: dict[int, tuple[Tensor, _Rectangle]] = {}

    def begin(self, sequences: Tensor, lengths: Tensor) -> None:
        """Takes the batch that is traced: `[rows, width(, features)]`, and int64 `[rows]`."""
        self.shape = sequences.shape[:2]
        self.lengths = lengths

    def lengths_of(self, steps: Tensor) -> Tensor:
        """Where each row of a rectangle ends that came to a recurrent layer without being packed.

        The sequences' own lengths where it has their rows and width: a sound module cannot tell the difference. What
        has other axes (features as steps, say) runs through at its full width.
        """
        if steps.shape[:2] == self.shape:
            return self.lengths
        return torch.full((steps.shape[0],), steps.shape[1], dtype=torch.int64, device=steps.device)

    def run(self, module: nn.RNNBase, steps: Tensor, lengths: Tensor, initial: Any) -> tuple[Tensor, Any]:
        """One recurrent module over `[rows, width, features]`: its outputs, and its last states as torch gives them."""
        if module.proj_size:
            raise trace_error(
                current_location(), "ONNX's LSTM has no projection: put a Linear behind it, for proj_size"
            )
        layers = self.weights[module]
        state, cell = initial if isinstance(initial, tuple) else (initial, None)
        outputs, states, cells = recurrent(
            steps,
            lengths,
            [layer.inputs for layer in layers],
            [layer.states for layer in layers],
            [layer.biases for layer in layers],
            state,
            cell,
            module.mode,
        )
        return outputs, (states, cells) if module.mode == "LSTM" else states

    def pack(self, rectangle: _Rectangle, sizes: Tensor | None = None) -> PackedSequence:
        if sizes is None:
            sizes = rectangle.lengths.clone()
            self._by_sizes[id(sizes)] = (sizes, rectangle)
        data = rectangle.steps.flatten(0, 1)
        self._by_data[id(data)] = (data, rectangle)
        return PackedSequence(data, sizes)

    def behind(self, packed: PackedSequence) -> _Rectangle:
        if id(packed.data) in self._by_data:
            return self._by_data[id(packed.data)][1]
        if id(packed.batch_sizes) not in self._by_sizes:
            raise trace_error(
                current_location(), "a PackedSequence made by hand has no lengths: use pack_padded_sequence"
            )
        packed_as = self._by_sizes[id(packed.batch_sizes)][1]
        rows, width = packed_as.steps.shape[:2]
        return _Rectangle(packed.data.reshape(rows, width, *packed.data.shape[1:]), packed_as.lengths, zeroed=False)


_tracing: list[_Trace] = []
"""The trace that runs, innermost last: what the replaced functions of torch work for."""


@contextlib.contextmanager
def _replaced(trace: _Trace) -> Iterator[None]:
    """Puts this module's packing and recurrent layers in the place of torch's.

    The packing functions are changed from within (their code), because a user's module holds them under its own names.
    """
    forwards = {kind: kind.forward for kind in (nn.LSTM, nn.GRU, nn.RNN)}
    codes = {
        packing.pack_padded_sequence: _pack_padded_sequence.__code__,
        packing.pad_packed_sequence: _pad_packed_sequence.__code__,
    }
    with contextlib.ExitStack() as undo:
        _tracing.append(trace)
        undo.callback(_tracing.pop)
        for kind, forward in forwards.items():
            undo.callback(setattr, kind, "forward", forward)
            kind.forward = _recurrent_forward  # type: ignore[method-assign, assignment]  # undone above
        for function, code in codes.items():
            undo.callback(setattr, function, "__code__", function.__code__)
            function.__code__ = code
        undo.enter_context(without_fast_path())
        yield


def _pack_padded_sequence(input, lengths, batch_first=False, enforce_sorted=True):  # type: ignore[no-untyped-def]
    # This code runs inside torch's function, which has that function's globals and not this module's.
    from lengthwise_export.tracing.capture import packed

    return packed(input, lengths, batch_first)


def _pad_packed_sequence(sequence, batch_first=False, padding_value=0.0, total_length=None):  # type: ignore[no-untyped-def]
    from lengthwise_export.tracing.capture import padded

    return padded(sequence, batch_first, padding_value)


def packed(steps: Tensor, lengths: Any, batch_first: bool) -> PackedSequence:
    """What `pack_padded_sequence` gives while a trace runs; any order of rows will do."""
    rectangle = steps if batch_first else steps.transpose(0, 1)
    return _tracing[-1].pack(_Rectangle(rectangle, torch.as_tensor(lengths), zeroed=False))


def padded(sequence: PackedSequence, batch_first: bool, padding_value: float) -> tuple[Tensor, Tensor]:
    """What `pad_packed_sequence` gives while a trace runs: always at the full width, a longer one is of no use."""
    rectangle = _tracing[-1].behind(sequence)
    steps = rectangle.steps
    if padding_value != 0.0 or not rectangle.zeroed:
        valid = torch.arange(steps.shape[1], device=steps.device) < rectangle.lengths.unsqueeze(1)
        steps = torch.where(valid.view(*valid.shape, *[1] * (steps.dim() - 2)), steps, padding_value)
    return (steps if batch_first else steps.transpose(0, 1)), rectangle.lengths


def _recurrent_forward(module: nn.RNNBase, input: Any, hx: Any = None) -> tuple[Any, Any]:
    """What `LSTM.forward`, `GRU.forward` and `RNN.forward` do while a trace runs."""
    trace = _tracing[-1]
    if isinstance(input, PackedSequence):
        rectangle = trace.behind(input)
        outputs, state = trace.run(module, rectangle.steps, rectangle.lengths, hx)
        return trace.pack(_Rectangle(outputs, rectangle.lengths, zeroed=True), input.batch_sizes), state
    if input.dim() != 3:
        raise trace_error(
            current_location(), f"{type(module).__name__} runs over a single sequence: run it over the batch"
        )
    steps = input if module.batch_first else input.transpose(0, 1)
    outputs, state = trace.run(module, steps, trace.lengths_of(steps), hx)
    return (outputs if module.batch_first else outputs.transpose(0, 1)), state
