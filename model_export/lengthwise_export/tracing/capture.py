"""Traces a user's torch module with `torch.export`, including packed sequences, without changing the module.

`torch.export` cannot trace a packed sequence, and unrolls an `nn.LSTM`, which freezes the width. Replaced meanwhile:

    pack_padded_sequence       stores the padded batch and the lengths, and returns an ordinary PackedSequence, whose
                               `data` is `[rows * width, features]`: per-step computations on it are still right
    LSTM | GRU | RNN.forward   call the operator `recurrent` with the padded batch and the lengths
    pad_packed_sequence        returns the padded batch at the full width

The replacements are process-wide: `replaced` lets only one thread at a time trace.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import SymInt, Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import rnn as packing
from torch.nn.utils.rnn import PackedSequence

from lengthwise.runtime.manifest import StepInput
from lengthwise_export.errors import ExportError, TraceError
from lengthwise_export.masks import step_mask
from lengthwise_export.tracing.call_signature import CallSignature, OutputSelector, in_evaluation, without_fast_path
from lengthwise_export.tracing.dynamic_shapes import Branches, BranchRecorder, OpenSizes, open_numbers
from lengthwise_export.tracing.module_state import ModuleState
from lengthwise_export.tracing.process_wide import replaced
from lengthwise_export.tracing.recurrent_op import LayerWeights, recurrent, weights_of
from lengthwise_export.tracing.source_lines import (
    CodeLocation,
    current_location,
    error_text,
    is_users,
    location_of,
)

_WIDTHS: Final = (67, 7, 521)
"""Widths of the traced batch; the first at which the module runs is taken. A wide batch stays wider than 1 behind
strides, where torch.export would treat the width as a constant; a table of positions may be short, and convolutions
without padding may need many steps."""


WIDEST: Final = 2048  # wider batches are not tried: attention would need much memory
Lines = dict[str, CodeLocation]  # the lines of the code that branch on a size, by the condition as torch writes it

_UNALLOCATED: Final = "its data is not allocated yet"
_EXTENSION: Final = "runs an extension of C++ or CUDA, which cannot be traced: use torch's own layers"
"""What is said instead of torch's words."""


def capture(
    model: nn.Module, steps: StepInput, *, signature: CallSignature, select_output: OutputSelector
) -> tuple[ExportedProgram, list[str]]:
    """Traces a module with dynamic rows and width: a program of (sequences, lengths int32), and its outputs' names.

    The program of a module that is called with the steps alone has no lengths. A module that raises, or whose code
    cannot be traced, is a TraceError that names the line.
    """
    call = _Call(model, steps, signature, select_output)
    # If it accepts none of these widths, the trace reports the error.
    width = next((width for width in _WIDTHS if call.runs(width)), min(_WIDTHS))
    with _branching_lines() as lines:
        program, outputs = _exported(call, width, lines)
        if (ends := _ends_at(program)) < WIDEST and call.runs_wider(ends):
            # A table may grow with the widest batch so far.
            program, outputs = _exported(call, width, lines)
    _require_one_way(program, lines, call)
    return program, outputs


@dataclass(frozen=True, slots=True)
class _Call:
    """A module, and how it is called."""

    model: nn.Module
    steps: StepInput
    signature: CallSignature
    select_output: OutputSelector

    def batch(self, lengths: list[int], random: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Sequences `[rows, width(, features)]`, random or all the same, and their lengths `[rows]` int64."""
        shape = (len(lengths), max(lengths))
        if self.steps.kind == "tokens":
            count = self.steps.vocabulary or 1
            ids = torch.full(shape, min(1, count - 1))
            sequences = ids if random is None else torch.randint(count, shape, generator=random)
        else:
            values = (*shape, self.steps.features or 0)
            sequences = torch.zeros(values) if random is None else torch.randn(values, generator=random)
        return sequences, torch.tensor(lengths)

    def run(self, lengths: list[int], random: torch.Generator | None = None) -> None:
        """Runs the module on a batch of these lengths."""
        with without_fast_path(), torch.no_grad():
            self.signature.call(self.model, self.signature.arguments_of(*self.batch(lengths, random)))

    def runs(self, width: int) -> bool:
        """Whether the module answers a batch of two rows of this width."""
        with contextlib.suppress(Exception, SystemExit):
            self.run([width] * 2)
            return True
        return False

    def runs_wider(self, width: int) -> bool:
        """Whether the module answers wider batches. A bisection finds and runs the widest one, up to `WIDEST`."""
        widest, too_wide, middle = width, WIDEST + 1, WIDEST
        while too_wide - widest > 1:
            widest, too_wide = (middle, too_wide) if self.runs(middle) else (widest, middle)
            middle = (widest + too_wide) // 2
        return widest > width

    def constant_branches(self, width: int) -> Branches:
        """The branches on a value in a tensor that have the same result for all of several small batches."""
        results: dict[tuple[str, int], set[bool]] = {}
        random = torch.Generator().manual_seed(0)
        for lengths in ([1], [4, 2], [1, 7, 3], [5, 5], [2, 1, 9, 9], [width, 1, 2], [width + 2, width, width]):
            branches: dict[tuple[str, int], set[bool]] = {}
            # A batch at which the module raises shows nothing about its branches; the trace will report the error.
            with contextlib.suppress(Exception, SystemExit), BranchRecorder(branches):
                self.run(lengths, random)
                for line, outcomes in branches.items():
                    results.setdefault(line, set()).update(outcomes)
        return {line: outcomes.pop() for line, outcomes in results.items() if len(outcomes) == 1}


def _exported(call: _Call, width: int, lines: Lines) -> tuple[ExportedProgram, list[str]]:
    """Exports a module with `torch.export`, from a batch of three rows; also the names of its outputs.

    Raises:
        TraceError: The module's code, or torch, raised; the message names the line.
        ExportError: The module's code cannot be traced, for a reason that this package knows.
    """
    sequences, ends = call.batch([width] * 3)
    trace = _Trace(lines, call.constant_branches(width))
    traced = in_evaluation(_Traced(call, trace))
    arguments: tuple[Tensor, ...] = (sequences,) if call.signature.second == "none" else (sequences, ends.int())
    sizes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC})[: len(arguments)]
    model = call.model
    with (
        _replaced_layers(trace),
        open_numbers(model),
        torch.no_grad(),
        quiet(),
        contextlib.ExitStack() as undo,
    ):
        undo.callback(ModuleState(model).restore)  # what it keeps for later calls must not be of this trace
        try:
            program = torch.export.export(traced, arguments, dynamic_shapes=sizes, strict=False)
        except ExportError:
            raise
        except (Exception, SystemExit) as error:  # whatever the module's code raises, and a dozen of torch's own
            text = error_text(error)
            raise TraceError(location_of(error), _EXTENSION if _UNALLOCATED in text else text) from error
    return program, trace.outputs


@contextlib.contextmanager
def _branching_lines() -> Iterator[Lines]:
    """Notes the lines that branch on a size during the block."""
    lines: Lines = {}
    decide: Callable[[torch.SymBool], bool] = torch.SymBool.__bool__

    def decide_and_note(condition: torch.SymBool) -> bool:
        answer = decide(condition)
        is_in_users_code = is_users(sys._getframe(1).f_code.co_filename, installed=True)  # else torch branches
        location = current_location() if is_in_users_code else None
        if location is not None:
            for expression in (condition.node.expr, ~condition.node.expr):
                lines.setdefault(str(expression), location)
        return answer

    with replaced((torch.SymBool, "__bool__", decide_and_note)):
        yield lines


def _require_one_way(program: ExportedProgram, lines: Lines, call: _Call) -> None:
    """Makes sure that the code takes the same branches for wide batches as in the trace.

    Raises:
        TraceError: It does; the message names the line.
    """
    widest = _ends_at(program)
    # Where a table of positions ends, the module raises for wider batches: no other branch is taken.
    if widest >= WIDEST or not call.runs(widest + 1):
        return
    symbol, env = _width(program).node.expr, _width(program).node.shape_env
    guards = [guard for guard in env.guards if symbol in guard.expr.free_symbols]
    guard_at_bound = next((guard for guard in guards if guard.expr.has(widest + 1) or guard.expr.has(widest)), None)
    condition = None if guard_at_bound is None else str(guard_at_bound.expr)
    # If torch has simplified the condition, it is in no line: then the last line that branches on the width is named.
    lines_on_width = (line for text, line in reversed(lines.items()) if str(symbol) in text)
    raise TraceError(
        lines[condition] if condition in lines else next(lines_on_width, None),
        f"the code branches on the width, and takes another way for batches wider than {widest}; a graph holds one. "
        "Compute both and choose with torch.where, or take the branch out",
    )


def _ends_at(program: ExportedProgram) -> int:
    """The widest batch for which the code takes the same branches as in the trace, at most `WIDEST`."""
    width = _width(program)
    bounds = program.range_constraints.get(width.node.expr) if isinstance(width, SymInt) else None
    return WIDEST if bounds is None or not bounds.upper.is_Integer else min(WIDEST, int(bounds.upper))


def _width(program: ExportedProgram) -> Any:
    """The width of the batch in a program: a `SymInt`, or a number if the trace fixed it."""
    names = set(program.graph_signature.user_inputs)
    steps = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name in names)
    return steps.meta["val"].shape[1]


class _Traced(nn.Module):
    """Wraps the module: inputs and outputs are those of the graph, and recurrent weights are buffers in ONNX layout."""

    def __init__(self, call: _Call, trace: _Trace) -> None:
        super().__init__()
        self.model = call.model
        self._call = call
        self._trace = trace
        for path, part in call.model.named_modules():
            if isinstance(part, nn.RNNBase) and part.proj_size == 0:
                trace.weights[part] = weights_of(part)
                self.add_module(f"recurrent_{path.replace('.', '_')}", nn.ModuleList(trace.weights[part]))

    def forward(self, sequences: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """Runs `[rows, width(, features)]` and int32 lengths `[rows]` (None: steps alone), to the selected outputs."""
        ends = None
        if lengths is not None:
            torch._check(lengths.shape[0] == sequences.shape[0])  # type: ignore[no-untyped-call]  # torch's own
            ends = lengths.long()
        self._trace.shape, self._trace.lengths = sequences.shape[:2], ends
        signature = self._call.signature
        arguments = signature.arguments_of(sequences, ends)
        with OpenSizes(sequences, ends, arguments, self._trace.branches, self._trace.lines):
            answer = signature.call(self.model, arguments)
        outputs = self._call.select_output(answer)
        outputs["logits"] = signature.rows_first(outputs["logits"])
        self._trace.outputs = list(outputs)
        return tuple(outputs.values())


@dataclass(frozen=True)
class _PackedBatch:
    """The padded batch of a packed sequence: `steps [rows, width, ...]`, and whether its padding is known to be 0."""

    steps: Tensor
    lengths: Tensor
    zeroed: bool


class _Trace:
    """The state of one trace. A packed sequence is known by its `data`, or by the `batch_sizes` that users pass on."""

    shape: torch.Size  # `[rows, width]`
    lengths: Tensor | None  # int64 `[rows]`; None if the module takes the steps alone

    def __init__(self, lines: Lines, branches: Branches) -> None:
        self.lines, self.branches = lines, branches
        self.weights: dict[nn.RNNBase, list[LayerWeights]] = {}
        self.outputs: list[str] = []
        # By the id of their data or of their batch sizes, which are kept alive so that no other tensor gets the id.
        self._packed: dict[int, tuple[Tensor, _PackedBatch]] = {}

    def run(self, module: nn.RNNBase, steps: Tensor, lengths: Tensor | None, initial: Any) -> tuple[Tensor, Any]:
        """Runs a module over `[rows, width, features]`; without lengths, every row runs over the full width.

        Raises:
            TraceError: It is an LSTM with a projection, which ONNX does not have.
        """
        if module.proj_size:
            raise TraceError(current_location(), "ONNX's LSTM has no projection: put a Linear behind it, for proj_size")
        layers = self.weights[module]
        weights = ([getattr(layer, name) for layer in layers] for name in ("inputs", "states", "biases"))
        state, cell = initial if isinstance(initial, tuple) else (initial, None)
        outputs, states, cells = recurrent(steps, lengths, *weights, state, cell, module.mode)
        return outputs, (states, cells) if module.mode == "LSTM" else states

    def pack(self, batch: _PackedBatch, sizes: Tensor | None = None) -> PackedSequence:
        """A PackedSequence that stands for a padded batch; `sizes` are the batch sizes of an earlier one."""
        if sizes is None:
            sizes = batch.lengths.clone()
            self._packed[id(sizes)] = (sizes, batch)
        data = batch.steps.flatten(0, 1)
        self._packed[id(data)] = (data, batch)
        return PackedSequence(data, sizes)

    def unpack(self, packed: PackedSequence) -> _PackedBatch:
        """The padded batch that a PackedSequence stands for.

        Raises:
            TraceError: The user's code made the PackedSequence itself.
        """
        if id(packed.data) in self._packed:
            return self._packed[id(packed.data)][1]
        if id(packed.batch_sizes) not in self._packed:
            raise TraceError(
                current_location(), "a PackedSequence made by hand has no lengths: use pack_padded_sequence"
            )
        # The user's code has computed new data for each step.
        before = self._packed[id(packed.batch_sizes)][1]
        rows, width = before.steps.shape[:2]
        return _PackedBatch(packed.data.reshape(rows, width, *packed.data.shape[1:]), before.lengths, zeroed=False)


_tracing: list[_Trace] = []
"""The running traces, innermost last: the replaced functions of torch use the last one. Guarded by `replaced`."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the logs and warnings of torch's exporter; its errors are raised, with one line of text."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch._subclasses", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _replaced_layers(trace: _Trace) -> Iterator[None]:
    """Replaces torch's packing functions and recurrent layers during the block.

    Of the packing functions the code objects are replaced: a module may have imported these functions by name.
    """
    forwards = [(kind, "forward", _recurrent_forward) for kind in (nn.LSTM, nn.GRU, nn.RNN)]
    codes = {packing.pack_padded_sequence: _pack_padded_sequence, packing.pad_packed_sequence: _pad_packed_sequence}
    with replaced(*forwards), without_fast_path(), contextlib.ExitStack() as undo:
        _tracing.append(trace)
        undo.callback(_tracing.pop)
        for function, replacement in codes.items():
            undo.callback(setattr, function, "__code__", function.__code__)
            function.__code__ = replacement.__code__
        yield


def _pack_padded_sequence(input, lengths, batch_first=False, enforce_sorted=True):  # type: ignore[no-untyped-def]  # as torch's
    # This code object runs inside torch's function, with the globals of torch's module. Hence the import.
    from lengthwise_export.tracing.capture import packed

    return packed(input, lengths, batch_first)


def _pad_packed_sequence(sequence, batch_first=False, padding_value=0.0, total_length=None):  # type: ignore[no-untyped-def]  # as torch's
    from lengthwise_export.tracing.capture import padded

    return padded(sequence, batch_first, padding_value)


def packed(steps: Tensor, lengths: Any, batch_first: bool) -> PackedSequence:
    """The result of `pack_padded_sequence` for `[rows, width, features]` during a trace; rows may be in any order."""
    batch = steps if batch_first else steps.transpose(0, 1)
    return _tracing[-1].pack(_PackedBatch(batch, torch.as_tensor(lengths), zeroed=False))


def padded(sequence: PackedSequence, batch_first: bool, padding_value: float) -> tuple[Tensor, Tensor]:
    """The result of `pad_packed_sequence` during a trace: `[rows, width, features]` at full width, and `[rows]`."""
    batch = _tracing[-1].unpack(sequence)
    steps = batch.steps
    if padding_value != 0.0 or not batch.zeroed:
        valid = step_mask(batch.lengths, steps.shape[1])
        steps = torch.where(valid.view(*valid.shape, *[1] * (steps.dim() - 2)), steps, padding_value)
    return (steps if batch_first else steps.transpose(0, 1)), batch.lengths


def _recurrent_forward(module: nn.RNNBase, input: Any, hx: Any = None) -> tuple[Any, Any]:
    """Replaces `LSTM.forward`, `GRU.forward` and `RNN.forward` during a trace.

    Raises:
        TraceError: The module runs over a single sequence.
    """
    trace = _tracing[-1]
    if isinstance(input, PackedSequence):
        batch = trace.unpack(input)
        outputs, state = trace.run(module, batch.steps, batch.lengths, hx)
        return trace.pack(_PackedBatch(outputs, batch.lengths, zeroed=True), input.batch_sizes), state
    if input.dim() != 3:
        raise TraceError(
            current_location(), f"{type(module).__name__} runs over a single sequence: run it over the batch"
        )
    steps = input if module.batch_first else input.transpose(0, 1)
    lengths = trace.lengths
    # Where the input has the rows and the width of the batch, the lengths of the sequences make no difference to the
    # answers of a module without leaks. Otherwise (features as steps, for example) rows run over the full width.
    if lengths is not None and steps.shape[:2] != trace.shape:
        lengths = torch.full((steps.shape[0],), steps.shape[1], dtype=torch.int64, device=steps.device)
    outputs, state = trace.run(module, steps, lengths, hx)
    return (outputs if module.batch_first else outputs.transpose(0, 1)), state
