"""Traces a user's torch module with `torch.export`, including packed sequences, without changing the module.

`torch.export` cannot trace a packed sequence, and unrolls an `nn.LSTM`, which freezes the width. Replaced meanwhile:

    pack_padded_sequence       stores the padded batch and the lengths, and returns an ordinary PackedSequence, whose
                               `data` is `[rows * width, features]`: per-step computations on it are still right
    LSTM | GRU | RNN.forward   call the operator `recurrent` with the padded batch and the lengths
    pad_packed_sequence        returns the padded batch at the full width

The replacements are process-wide: `replaced` lets only one thread at a time trace.

A trace may fail, or hold for some widths only: the module's code may branch on the width, as in `if x.size(1) > 100`,
and a graph has one of the two branches. torch notes such a condition as a *guard* on the symbol of the width.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import SymInt, Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import rnn as packing
from torch.nn.utils.rnn import PackedSequence

from lengthwise_export.errors import ExportError, TraceError
from lengthwise_export.layouts import PaddedBatch
from lengthwise_export.masks import step_mask
from lengthwise_export.onnx_graphs.beside import STATIC, StepInput, completed
from lengthwise_export.tracing.call_signature import CallSignature, in_evaluation, without_fast_path
from lengthwise_export.tracing.dynamic_shapes import A_LIST, Branches, BranchRecorder, ListItem, OpenSizes, open_numbers
from lengthwise_export.tracing.module_state import ModuleState
from lengthwise_export.tracing.outputs import OutputSelector
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
"""Widths to try for the traced batch; the first at which the module runs is taken.

67 steps are still more than one behind convolutions with strides: torch.export would treat a width of 1 as a constant.
7 are for a module with a short table of positions, 521 for convolutions without padding, which may need many steps.
"""

WIDEST: Final = 2048  # wider batches are not tried: attention would need much memory
Lines = dict[str, CodeLocation]
"""The lines of the code that branch on a size, by the condition as torch writes it, such as `s0 > 100`."""

_SAID_INSTEAD: Final = {
    # torch, of an extension that runs in a trace
    "its data is not allocated yet": "runs an extension of C++ or CUDA, which cannot be traced: use torch's own layers",
    ListItem.__name__: A_LIST,  # Python, of a number that the code computes of an item of the lengths
}
"""What is said instead of an error in whose message these words are."""


def capture(
    model: nn.Module, steps: StepInput, *, signature: CallSignature, select_output: OutputSelector
) -> tuple[ExportedProgram, list[str]]:
    """Traces a module with dynamic rows and width; returns the exported program and the names of its outputs.

    The inputs of the program are the sequences and the int32 lengths, and what stands beside them (`names_beside`); of
    a module that is called with the steps alone, all but the lengths. A module that raises, that cannot be traced or
    that branches on the width is a `TraceError`, which names the line.
    """
    call = _Call(model, steps, signature, select_output)
    # If the module runs at none of these widths, the trace reports the error
    width = next((width for width in _WIDTHS if call.runs(width)), min(_WIDTHS))
    with _branching_lines() as lines:
        program, outputs = _exported(call, width, lines)
        # Some modules have a table of positions that grows with the widest batch so far, and branch on its size. If the
        # trace ends at such a size, `runs_wider` makes the table grow, and a second trace holds for all widths
        if (widest := _widest_of_trace(program)) < WIDEST and call.runs_wider(widest):
            program, outputs = _exported(call, width, lines)
    _require_no_branch_on_width(program, lines, call)
    return program, outputs


@dataclass(frozen=True, slots=True)
class _Call:
    """A module, and how it is called."""

    model: nn.Module
    steps: StepInput  # whether a step is numbers or a token id, and how many there are
    signature: CallSignature
    select_output: OutputSelector  # takes the outputs of the graph from the module's answer

    def batch(self, lengths: list[int], random: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """A batch with these lengths: sequences `[rows, width(, features)]`, and the lengths as int64 `[rows]`.

        Steps are drawn with the generator `random`; without one they are all 0, or all the token 1.
        """
        shape = (len(lengths), max(lengths))
        if self.steps.kind == "tokens":
            count = self.steps.vocabulary or 1
            ids = torch.full(shape, min(1, count - 1))
            sequences = ids if random is None else torch.randint(count, shape, generator=random)
        else:
            values = (*shape, self.steps.features or 0)
            sequences = torch.zeros(values) if random is None else torch.randn(values, generator=random)
        return sequences, torch.tensor(lengths)

    def beside(self, sequences: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """What stands beside a batch, by the names of the graph's inputs, in order."""
        batch = PaddedBatch(sequences.numpy(), lengths.int().numpy())
        return {name: torch.tensor(values) for name, values in completed(batch, self.steps).beside.items()}

    def run(self, lengths: list[int], random: torch.Generator | None = None) -> None:
        """Runs the module on a batch with these lengths, as made by `batch`; raises what the module raises."""
        batch = self.batch(lengths, random)
        arguments = self.signature.arguments_of(*batch, beside=self.beside(*batch))
        with without_fast_path(), torch.no_grad():
            self.signature.call(self.model, arguments)

    def runs(self, width: int) -> bool:
        """Whether the module answers a batch of two rows of this width."""
        with contextlib.suppress(Exception, SystemExit):
            self.run([width] * 2)
            return True
        return False

    def runs_wider(self, width: int) -> bool:
        """Runs the module at the largest width up to `WIDEST` that it takes; returns whether that is above `width`.

        So a table of positions that grows with the widest batch so far has this size afterwards. The width is found by
        bisection, which tries `WIDEST` itself first.
        """
        widest, too_wide, middle = width, WIDEST + 1, WIDEST
        while too_wide - widest > 1:
            widest, too_wide = (middle, too_wide) if self.runs(middle) else (widest, middle)
            middle = (widest + too_wide) // 2
        return widest > width

    def constant_branches(self, width: int) -> Branches:
        """The results of the branches on a value in a tensor that are the same for several small batches.

        Such a branch, as in `if lengths.min() < 1: raise`, is traced with this result.
        """
        outcomes_by_line: dict[tuple[str, int], set[bool]] = {}
        random = torch.Generator().manual_seed(0)
        for lengths in ([1], [4, 2], [1, 7, 3], [5, 5], [2, 1, 9, 9], [width, 1, 2], [width + 2, width, width]):
            branches: dict[tuple[str, int], set[bool]] = {}
            # A batch at which the module raises shows nothing about its branches; the trace will report the error
            with contextlib.suppress(Exception, SystemExit), BranchRecorder(branches):
                self.run(lengths, random)
                for line, outcomes in branches.items():
                    outcomes_by_line.setdefault(line, set()).update(outcomes)
        return {line: outcomes.pop() for line, outcomes in outcomes_by_line.items() if len(outcomes) == 1}


def _exported(call: _Call, width: int, lines: Lines) -> tuple[ExportedProgram, list[str]]:
    """Exports a module with `torch.export`, from a batch of three rows; returns the program and its outputs' names.

    The state of the module is restored. `lines` gets the lines of the code that branch on a size.

    Raises:
        TraceError: The module's code, or torch, raised; the message names the line.
        ExportError: The module's code cannot be traced, for a reason that this package knows.
    """
    sequences, lengths = call.batch([width] * 3)
    trace = _Trace(lines, call.constant_branches(width))
    inputs = {"sequences": sequences, "lengths": lengths.int(), **call.beside(sequences, lengths)}
    if call.signature.second == "none":
        del inputs["lengths"]
    traced = in_evaluation(_Traced(call, trace, list(inputs)))
    # The rows of all are dynamic, and the widths of sequences
    dynamic_axes = {name: 1 if values.dim() == 1 or name == STATIC else 2 for name, values in inputs.items()}
    dynamic_shapes = [dict.fromkeys(range(count), Dim.DYNAMIC) for count in dynamic_axes.values()]
    with (
        _replaced_layers(trace),
        open_numbers(call.model),
        torch.no_grad(),
        quiet(),
        contextlib.ExitStack() as cleanup,
    ):
        cleanup.callback(ModuleState(call.model).restore)  # a cache of the module must not keep tensors of this trace
        try:
            program = torch.export.export(
                traced, tuple(inputs.values()), dynamic_shapes=(tuple(dynamic_shapes),), strict=False
            )
        except ExportError:
            raise
        except (Exception, SystemExit) as error:  # the module's code may raise anything, and torch a dozen kinds
            text = error_text(error)
            known = next((said for part, said in _SAID_INSTEAD.items() if part in text), text)
            raise TraceError(location_of(error), known) from error
    _drop_unread_writes(program)
    return program, trace.outputs


def _drop_unread_writes(program: ExportedProgram) -> None:
    """Removes writes into weights that nothing of the call reads afterwards, as of a Keras layer that counts its calls.

    In torch's program a weight of Keras is a constant, into which nothing can be written. What a later call would read
    has been looked for before: its answer would not be steady.
    """
    place = {node: index for index, node in enumerate(program.graph.nodes)}

    def views_of(weight: Any) -> Iterator[Any]:
        """A weight, and the nodes that give it in another form, which is often itself."""
        yield weight
        for user in weight.users:
            if user.target in (torch.ops.aten.to.dtype_layout, torch.ops.aten.to.dtype):
                yield from views_of(user)

    for write in [node for node in place if node.target is torch.ops.aten.copy_.default and not node.users]:
        weight = write.args[0]
        while weight.op == "call_function" and weight.target is torch.ops.aten.to.dtype_layout:
            weight = weight.args[0]
        if weight.op == "placeholder" and all(
            place[user] <= place[write] for view in views_of(weight) for user in view.users
        ):
            program.graph.erase_node(write)
    program.graph_module.recompile()


@contextlib.contextmanager
def _branching_lines() -> Iterator[Lines]:
    """Yields a dictionary that gets the lines of the user's code that branch on a size during the block.

    Such a branch calls `SymBool.__bool__`, which is replaced meanwhile.
    """
    lines: Lines = {}
    decide: Callable[[torch.SymBool], bool] = torch.SymBool.__bool__

    def decide_and_note_line(condition: torch.SymBool) -> bool:
        """Replaces `SymBool.__bool__`: notes the line by the text of the condition, and by that of its opposite."""
        decision = decide(condition)
        is_in_users_code = is_users(sys._getframe(1).f_code.co_filename, installed=True)  # else torch branches
        location = current_location() if is_in_users_code else None
        if location is not None:
            for expression in (condition.node.expr, ~condition.node.expr):  # torch keeps the one that was true
                lines.setdefault(str(expression), location)
        return decision

    with replaced((torch.SymBool, "__bool__", decide_and_note_line)):
        yield lines


def _require_no_branch_on_width(program: ExportedProgram, lines: Lines, call: _Call) -> None:
    """Makes sure that the trace holds for all widths, or for all at which the module runs.

    Raises:
        TraceError: The module takes another branch for wider batches; the message names the line.
    """
    widest = _widest_of_trace(program)
    # A module that raises for wider batches takes no other branch: its table of positions ends there
    if widest >= WIDEST or not call.runs(widest + 1):
        return
    # Find the guard on the width whose bound is the widest batch of the trace, and the line that branches on it
    symbol, shape_env = _width(program).node.expr, _width(program).node.shape_env
    guards = [guard for guard in shape_env.guards if symbol in guard.expr.free_symbols]
    guard_at_bound = next((guard for guard in guards if guard.expr.has(widest + 1) or guard.expr.has(widest)), None)
    condition = None if guard_at_bound is None else str(guard_at_bound.expr)
    # torch may have simplified the condition, so that it is in no line: then name the last line that branches on width
    lines_on_width = (line for text, line in reversed(lines.items()) if str(symbol) in text)
    raise TraceError(
        lines[condition] if condition in lines else next(lines_on_width, None),
        f"the code branches on the width, and takes another way for batches wider than {widest}; a graph holds one. "
        "Compute both and choose with torch.where, or take the branch out",
    )


def _widest_of_trace(program: ExportedProgram) -> int:
    """The largest width, in steps, for which the guards of a trace hold; `WIDEST` if that is larger or unbounded."""
    width = _width(program)
    bounds = program.range_constraints.get(width.node.expr) if isinstance(width, SymInt) else None
    return WIDEST if bounds is None or not bounds.upper.is_Integer else min(WIDEST, int(bounds.upper))


def _width(program: ExportedProgram) -> Any:
    """The width of the batch in a program: a `SymInt`, or a number if the trace fixed it."""
    names = set(program.graph_signature.user_inputs)
    steps = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name in names)
    return steps.meta["val"].shape[1]


class _Traced(nn.Module):
    """Wraps the user's module for the trace: its inputs and outputs are those of the graph.

    The weights of recurrent layers are its buffers, in ONNX's layout, so that they become initializers of the graph.
    """

    def __init__(self, call: _Call, trace: _Trace, inputs: Sequence[str]) -> None:
        """Makes the buffers, and puts them into `trace.weights`, where the recurrent operators of the trace find them.

        Args:
            call: The user's module and how it is called.
            trace: The state of the trace, which begins.
            inputs: The names of the inputs; the first are `sequences` and, unless the call has none, `lengths`.
        """
        super().__init__()
        self.model = call.model
        self._inputs = inputs
        self._call = call
        self._trace = trace
        self._values_of_buffers = [*call.model.buffers()]  # the trace has other tensors in their place
        for path, submodule in call.model.named_modules():
            if isinstance(submodule, nn.RNNBase) and submodule.proj_size == 0:
                trace.weights[submodule] = weights_of(submodule)
                self.add_module(f"recurrent_{path.replace('.', '_')}", nn.ModuleList(trace.weights[submodule]))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Calls the module with sequences `[rows, width(, features)]`; returns the selected outputs, `logits` first.

        The further `inputs` are int32 lengths `[rows]`, unless the module is called with the steps alone, and what
        stands beside them. The names of the outputs are stored in the trace.
        """
        beside = dict(zip(self._inputs, inputs, strict=True))
        sequences, lengths = beside.pop("sequences"), beside.pop("lengths", None)
        for tensor in inputs[1:]:
            torch._check(tensor.shape[0] == sequences.shape[0])  # type: ignore[no-untyped-call]  # torch's own
        lengths = None if lengths is None else lengths.long()
        self._trace.shape, self._trace.lengths = sequences.shape[:2], lengths
        signature = self._call.signature
        arguments = signature.arguments_of(sequences, lengths, beside=beside)
        buffers = zip(self.model.buffers(), self._values_of_buffers, strict=True)
        with OpenSizes(sequences, lengths, arguments, self._trace.branches, self._trace.lines, buffers):
            answer = signature.call(self.model, arguments)
        outputs = self._call.select_output(answer)
        outputs["logits"] = signature.rows_first(outputs["logits"])
        self._trace.outputs = list(outputs)
        return tuple(outputs.values())


@dataclass(frozen=True)
class _PackedBatch:
    """The padded batch that a PackedSequence of the trace stands for."""

    steps: Tensor  # `[rows, width, ...]`
    lengths: Tensor  # `[rows]`
    is_zero_at_padding: bool  # False if the padding may hold other values


class _Trace:
    """The state of one trace: which batch each PackedSequence stands for, the weights, and the outputs.

    The batch of a PackedSequence is found by the tensor `data`. The user's code may make a PackedSequence of new data
    and the `batch_sizes` of an earlier one: then it is found by these.
    """

    shape: torch.Size  # `[rows, width]`
    lengths: Tensor | None  # int64 `[rows]`; None if the module takes the steps alone

    def __init__(self, lines: Lines, branches: Branches) -> None:
        self.lines = lines  # that have branched on a size so far
        self.branches = branches  # the results of branches on a value in a tensor
        self.weights: dict[nn.RNNBase, list[LayerWeights]] = {}  # of each recurrent module, by layer
        self.outputs: list[str] = []  # the names of the outputs, after the module has run
        # Batches by the id of their `data` or `batch_sizes`, a tensor that is kept alive so that no other gets its id
        self._packed: dict[int, tuple[Tensor, _PackedBatch]] = {}

    def run(self, module: nn.RNNBase, steps: Tensor, lengths: Tensor | None, initial: Any) -> tuple[Tensor, Any]:
        """Runs a recurrent module with the operator `recurrent`; returns what the module returns, rows first.

        Args:
            module: An `nn.LSTM`, `nn.GRU` or `nn.RNN`.
            steps: `[rows, width, features]`.
            lengths: `[rows]`; None to run every row over the full width.
            initial: The initial state, of an LSTM a pair of state and cell; None for zeros.

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
        """Returns a PackedSequence that stands for a padded batch.

        `sizes` are the `batch_sizes` of the PackedSequence that the batch was computed from. If they are None, a copy
        of the lengths takes their place: `unpack` finds the batch by that tensor, whatever its values are.
        """
        if sizes is None:
            sizes = batch.lengths.clone()
            self._packed[id(sizes)] = (sizes, batch)
        data = batch.steps.flatten(0, 1)
        self._packed[id(data)] = (data, batch)
        return PackedSequence(data, sizes)

    def unpack(self, packed: PackedSequence) -> _PackedBatch:
        """The padded batch that a PackedSequence stands for.

        Raises:
            TraceError: The user's code made the PackedSequence by hand, from tensors that the trace does not know.
        """
        if id(packed.data) in self._packed:
            return self._packed[id(packed.data)][1]
        if id(packed.batch_sizes) not in self._packed:
            raise TraceError(
                current_location(), "a PackedSequence made by hand has no lengths: use pack_padded_sequence"
            )
        # The user's code has computed new data for each step, which may not be 0 at padding
        earlier = self._packed[id(packed.batch_sizes)][1]
        rows, width = earlier.steps.shape[:2]
        return _PackedBatch(
            packed.data.reshape(rows, width, *packed.data.shape[1:]), earlier.lengths, is_zero_at_padding=False
        )


_tracing: list[_Trace] = []
"""The running traces, innermost last: the replaced functions of torch use the last one. Guarded by `replaced`."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the logs and the warnings of torch's exporter during the block."""
    with warnings.catch_warnings(action="ignore"), contextlib.ExitStack() as cleanup:
        for name in ("torch.onnx", "onnxscript", "torch._subclasses", "torch.fx"):
            logger = logging.getLogger(name)
            cleanup.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        yield


@contextlib.contextmanager
def _replaced_layers(trace: _Trace) -> Iterator[None]:
    """Replaces torch's packing functions and recurrent layers during the block; they use `trace`.

    The code objects of the packing functions are replaced, and not the functions: the user's code may have imported
    these by name.
    """
    forwards = [(kind, "forward", _recurrent_forward) for kind in (nn.LSTM, nn.GRU, nn.RNN)]
    codes = {packing.pack_padded_sequence: _pack_padded_sequence, packing.pad_packed_sequence: _pad_packed_sequence}
    with replaced(*forwards), without_fast_path(), contextlib.ExitStack() as cleanup:
        _tracing.append(trace)
        cleanup.callback(_tracing.pop)
        for function, replacement in codes.items():
            cleanup.callback(setattr, function, "__code__", function.__code__)
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
    """The result of `pack_padded_sequence` during a trace; rows may be in any order.

    `steps` are `[rows, width, features]` if `batch_first`, else `[width, rows, features]`; `lengths` are `[rows]`.
    """
    batch = steps if batch_first else steps.transpose(0, 1)
    return _tracing[-1].pack(_PackedBatch(batch, torch.as_tensor(lengths), is_zero_at_padding=False))


def padded(sequence: PackedSequence, batch_first: bool, padding_value: float) -> tuple[Tensor, Tensor]:
    """The result of `pad_packed_sequence` during a trace: steps at the full width, and lengths `[rows]`.

    Steps are `[rows, width, features]` if `batch_first`, else `[width, rows, features]`; padding is `padding_value`.
    """
    batch = _tracing[-1].unpack(sequence)
    steps = batch.steps
    if padding_value != 0.0 or not batch.is_zero_at_padding:
        valid = step_mask(batch.lengths, steps.shape[1])
        steps = torch.where(valid.view(*valid.shape, *[1] * (steps.dim() - 2)), steps, padding_value)
    return (steps if batch_first else steps.transpose(0, 1)), batch.lengths


def _recurrent_forward(module: nn.RNNBase, input: Any, hx: Any = None) -> tuple[Any, Any]:
    """Replaces `LSTM.forward`, `GRU.forward` and `RNN.forward` during a trace; returns what they return.

    A PackedSequence runs with its lengths. A tensor with the rows and the width of the traced batch runs with the
    lengths of that batch, any other tensor over its full width.

    Raises:
        TraceError: The module runs over a single sequence.
    """
    trace = _tracing[-1]
    if isinstance(input, PackedSequence):
        batch = trace.unpack(input)
        outputs, state = trace.run(module, batch.steps, batch.lengths, hx)
        return trace.pack(_PackedBatch(outputs, batch.lengths, is_zero_at_padding=True), input.batch_sizes), state
    if input.dim() != 3:
        raise TraceError(
            current_location(), f"{type(module).__name__} runs over a single sequence: run it over the batch"
        )
    steps = input if module.batch_first else input.transpose(0, 1)
    lengths = trace.lengths
    # torch runs over the padding here. The answers of a module without leaks do not depend on that, so the node gets
    # the lengths, if the tensor has the rows and the width of the batch. Else its steps are something else, such as
    # features
    if lengths is not None and steps.shape[:2] != trace.shape:
        lengths = torch.full((steps.shape[0],), steps.shape[1], dtype=torch.int64, device=steps.device)
    outputs, state = trace.run(module, steps, lengths, hx)
    return (outputs if module.batch_first else outputs.transpose(0, 1)), state
