"""Records a torch module: every torch function that it calls, with the line of the user's code.

A `TorchFunctionMode` sees the calls as they are written (`multi_head_attention_forward`, not its forty parts). The
calls that the answer depends on are found backwards through the storages of their tensors, so views and in-place
changes are followed. A tensor that becomes a Python number is assumed to affect the answer.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import rnn as layers
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import rnn as packing
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lengthwise.padding import PaddedBatch
from lengthwise.runtime.manifest import StepInput
from lengthwise_export.checking.causes import DEFAULT_NAMES, ArgumentNames, Cause
from lengthwise_export.checking.recording import AlternativeReading, ModelOutput, Operation, Recording
from lengthwise_export.checking.trials import Change
from lengthwise_export.errors import RunError
from lengthwise_export.masks import step_mask
from lengthwise_export.tracing.call_signature import (
    ArgumentFormat,
    CallSignature,
    OutputSelector,
    Role,
    in_evaluation,
    without_fast_path,
)
from lengthwise_export.tracing.module_state import ModuleState
from lengthwise_export.tracing.process_wide import PROCESS_WIDE
from lengthwise_export.tracing.source_lines import current_location, error_text, location_of

_FORMATS: Final[dict[ArgumentFormat, str]] = {
    "float mask": "with a float32 mask, but it gets a bool mask: begin forward with mask = mask.to(x.dtype)",
    "int64 mask": "with an int64 mask, but it gets a bool mask: begin forward with mask = mask.long()",
    "float lengths": "with float32 lengths, but it gets int64: begin forward with lengths = lengths.to(x.dtype)",
    "share of the width": "with lengths as shares of the width, but it gets steps (int64): begin forward with "
    "lengths = lengths / x.size(1)",
    "share of the longest": "with lengths as shares of the longest, but it gets steps (int64): divide by the width, "
    "which other rows do not change, and begin forward with lengths = lengths / x.size(1)",
}
"""The end of the sentence "the model runs ..." for each format of the lengths or the mask."""


def alternative_calls(signature: CallSignature) -> Iterator[tuple[CallSignature, str, bool]]:
    """Other ways to call a module, of which the user may have meant one, to be tried when it raises or leaks.

    Each has the end of the sentence "the model runs ...", and whether that names an option, or code to write.
    """
    if signature.form != "as promised":
        return
    plain = replace(signature, time_first=False, channels_first=False, classes_first=False, features_axis=True)
    if not signature.channels_first:
        said = "with steps as [rows, features, width]: if that is right, pass --channels-first"
        yield replace(plain, channels_first=True), said, True
    if not signature.time_first:
        said = "with steps as [width, rows, features]: if that is right, pass --time-first"
        yield replace(plain, time_first=True), said, True
    if signature.time_first or signature.channels_first:
        option = "--time-first" if signature.time_first else "--channels-first"
        yield plain, f"with steps as [rows, width, features]: if that is right, leave {option} out", True
    if signature.second in ("mask", "padding-mask"):
        other: Literal["mask", "padding-mask"] = "padding-mask" if signature.second == "mask" else "mask"
        place = "padding" if other == "padding-mask" else "valid steps"
        names: tuple[tuple[Role, str | None], ...] = tuple(
            (role if role == "steps" else other, name) for role, name in signature.arguments
        )
        said = f"with a mask that is true at {place}: if that is right, pass --second {other}"
        yield replace(signature, second=other, arguments=names), said, True
    if signature.second == "none":
        return
    for argument_format, runs in _FORMATS.items():
        if ("mask" in argument_format) == (signature.second in ("mask", "padding-mask")) or signature.second == "both":
            yield replace(signature, form=argument_format), runs, False


_TO_PYTHON: Final = frozenset({"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"})

_UNINITIALIZED: Final = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})
"""Functions whose result is uninitialised memory, which must not be compared."""


@dataclass(frozen=True, slots=True)
class WholePart:
    """A part of a module that is recorded as one operation."""

    operator: str
    kind: str
    place: str
    explained: Callable[[Sequence[Any], Mapping[str, Any], Any], Callable[[Change], Cause]]


DescribePart = Callable[[nn.Module], WholePart | None]
"""Describes a part that is recorded as one operation; None for one that is not."""


class TorchSubject:
    """A torch module under check. The module is put into evaluation mode.

    Args:
        whole: Describes those of its parts that are recorded as one operation each; None for all others.
        state: Its state when it was read; None if that was not kept.
    """

    def __init__(
        self,
        module: nn.Module,
        steps: StepInput,
        *,
        signature: CallSignature,
        select_output: OutputSelector,
        whole: DescribePart | None = None,
        names: ArgumentNames | None = None,
        state: ModuleState | None = None,
    ) -> None:
        self._module = in_evaluation(module)
        self.state = state
        self.steps = steps
        self._signature = signature
        self._select_output = select_output
        self._whole = whole or (lambda part: None)
        self._names = names

    @property
    def sizes(self) -> frozenset[int]:
        """The sizes of its parameters, buffers, and tensors in plain attributes."""
        unregistered = (
            value for part in self._module.modules() for value in vars(part).values() if isinstance(value, Tensor)
        )
        tensors = [*self._module.parameters(), *self._module.buffers(), *unregistered]
        return frozenset(size for tensor in tensors for size in tensor.shape)

    @property
    def names(self) -> ArgumentNames:
        """The names of the module's arguments."""
        if self._names is not None:
            return self._names
        names = self._signature.names(self._module)
        steps = names.get("steps")
        if steps is None:
            return DEFAULT_NAMES
        width = f"{steps}.size({0 if self._signature.time_first else 2 if self._signature.channels_first else 1})"
        role = next((role for role in ("lengths", "mask", "padding-mask") if role in names), None)
        return ArgumentNames(width) if role is None else ArgumentNames(width, names[role], role)

    def answer(self, batch: PaddedBatch, *, left: bool = False) -> ModelOutput:
        """Runs a batch on the plain path, with torch's nested-tensor fast path switched off.

        A module that takes the steps alone may fail for one row, if it calls `squeeze()` without an axis. Then that row
        is run twice in one batch.
        """
        with without_fast_path():
            if self._signature.second == "none" and batch.rows == 1:
                return self._answer_one(batch)
            return _answer(self._run(self._inputs(batch, left=left)))

    def _answer_one(self, batch: PaddedBatch) -> ModelOutput:
        try:
            answer = _answer(self._run(self._inputs(batch)))
            if answer.logits.shape[0] == 1:
                return answer
            error = RunError(f"the answer to one row is {list(answer.logits.shape)}")
        except RunError as raised:
            error = raised
        try:
            twice = _answer(self._run(self._inputs(PaddedBatch(batch.steps.repeat(2, 0), batch.lengths.repeat(2)))))
        except RunError:
            raise error from None
        return ModelOutput(twice.logits[:1], None if twice.attention is None else twice.attention[:1])

    def answer_in_float64(self, batch: PaddedBatch) -> ModelOutput | None:
        """The answer that float64 gives; None if the module does not run in it."""

        def selected(result: Any) -> dict[str, Tensor]:
            narrow = pytree.tree_map_only(
                Tensor, lambda each: each.float() if each.is_floating_point() else each, result
            )
            return self._select_output(narrow)

        wide = copy.deepcopy(self._module).double()
        steps: Any = batch.steps.astype(np.float64) if batch.steps.dtype == np.float32 else batch.steps
        subject = TorchSubject(wide, self.steps, signature=self._signature, select_output=selected)
        try:
            return subject.answer(PaddedBatch(steps, batch.lengths))
        except RunError:
            return None

    def answer_as_shipped(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch with torch's default settings; its fast path uses nested tensors, which hold no padding."""
        with PROCESS_WIDE, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _answer(self._run(self._inputs(batch)))

    def answer_left(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a left-padded batch."""
        return self.answer(batch, left=True)

    def record(self, batch: PaddedBatch) -> Recording:
        """Runs a batch and records the calls."""
        recorder, inputs = _Recorder(self._module, self._whole), self._inputs(batch)
        with without_fast_path(), recorder.listening():
            outputs = self._run(inputs)
        return recorder.recording(outputs.values())

    def alternatives(self) -> Iterator[AlternativeReading]:
        """The same module, called in other ways that the user may have meant."""
        for signature, said, is_option in alternative_calls(self._signature):
            if self.steps.kind == "values" or not signature.channels_first:
                subject = TorchSubject(self._module, self.steps, signature=signature, select_output=self._select_output)
                yield AlternativeReading(subject, said, is_option)

    def _inputs(self, batch: PaddedBatch, *, left: bool = False) -> dict[Role, Tensor]:
        """The arguments of the module. The steps are copied, because a module may write into its input."""
        lengths = torch.tensor(batch.lengths).long()
        valid = step_mask(lengths, batch.width)
        return self._signature.given(torch.tensor(batch.steps), lengths, valid.flip(1) if left else valid)

    def _run(self, given: dict[Role, Tensor]) -> dict[str, Tensor]:
        try:
            with torch.no_grad():
                outputs = self._select_output(self._signature.call(self._module, given))
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            raise RunError(error_text(error), location_of(error), self._part_in(error)) from error
        outputs["logits"] = self._signature.rows_first(outputs["logits"])
        return outputs

    def _part_in(self, error: BaseException) -> str | None:
        """The innermost layer that an exception passed through."""
        running = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        paths = {part: path for path, part in self._module.named_modules() if path}
        part = next((part for part in reversed(running) if isinstance(part, nn.Module) and part in paths), None)
        return None if part is None else f"`{paths[part]}` ({type(part).__name__}({part.extra_repr()}))"


def _answer(outputs: dict[str, Tensor]) -> ModelOutput:
    return ModelOutput(outputs["logits"].numpy(), outputs["attention"].numpy() if "attention" in outputs else None)


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module, whole: DescribePart) -> None:
        super().__init__()
        self._whole = whole
        self._inside: tuple[int, WholePart] | None = None
        self._paths = {id(part): path for path, part in module.named_modules(remove_duplicate=False)}
        self._stack: list[str] = []
        self._calls: list[tuple[Operation, bool]] = []  # with whether each belongs to torch's packing
        # Every tensor is kept until the end, so that no storage address is reused.
        self._seen: list[Tensor] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Records the calls inside the block."""
        enter = register_module_forward_pre_hook(self._enter)
        leave = register_module_forward_hook(self._leave, with_kwargs=True, always_call=True)
        try:
            with self:
                yield
        finally:
            enter.remove()
            leave.remove()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._stack.append(self._paths.get(id(module), ""))
        if self._inside is None and (part := self._whole(module)) is not None:
            self._inside = (len(self._stack), part)

    def _leave(self, module: nn.Module, inputs: Any, options: Any, outputs: Any) -> None:
        if self._inside is not None and self._inside[0] == len(self._stack):
            self._add_part(self._inside[1], inputs, options, outputs)
            self._inside = None
        self._stack.pop()

    def _add_part(self, part: WholePart, inputs: Sequence[Any], options: Mapping[str, Any], outputs: Any) -> None:
        given, results = _tensors((inputs, options)), _tensors(outputs)
        self._seen += given + results
        changed = [tensor for tensor in results if not any(tensor is own for own in given)]
        if not changed:  # such as a dropout, which gives back what it gets
            return
        call = Operation(
            part.operator,
            part.kind,
            location=None,
            inputs=frozenset(map(_storage, given)),
            outputs=tuple((_storage(tensor), _copied(tensor)) for tensor in changed),
            explained=part.explained(inputs, options, outputs),
            place=part.place,
        )
        self._calls.append((call, False))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if self._inside is not None:
            self._seen += _tensors(answer)
            return answer
        name = func.__name__
        if name == "__get__":
            name = torch.overrides.resolve_name(func).rsplit(".", 2)[-2]
        # `x[...] = y` returns None: its output is the tensor that was written to.
        outcome = args[0] if answer is None and args else answer
        outputs = [] if name in _UNINITIALIZED else _tensors(outcome)
        if not outputs and name not in _TO_PYTHON:
            return answer
        inputs = _tensors((args, kwargs))
        self._seen += inputs + outputs
        path = self._stack[-1] if self._stack else ""
        call = Operation(
            f"{path}: {name}" if path else name,
            name,
            current_location(),
            inputs=frozenset(map(_storage, inputs)),
            outputs=tuple((_storage(tensor), _copied(tensor)) for tensor in outputs),
        )
        self._calls.append((call, _is_packing(sys._getframe(1).f_code.co_filename, name)))
        return answer

    def recording(self, tensors: Iterable[Tensor]) -> Recording:
        """The calls that the answer's tensors depend on, with their outputs."""
        answers = frozenset(map(_storage, tensors))
        needed = set(answers)
        reaching = []
        for call, is_packing in reversed(self._calls):
            outputs = tuple((storage, value) for storage, value in call.outputs if storage in needed)
            if outputs or call.kind in _TO_PYTHON:
                needed |= call.inputs
                # Inside packing the rows are in another order, and torch's own code has no leak: do not compare.
                gives = frozenset(storage for storage, _ in outputs)
                reaching.append(replace(call, gives=gives, outputs=() if is_packing else outputs))
        reaching.reverse()
        return Recording(reaching, answers)


def _is_packing(file: str, name: str) -> bool:
    """Whether a call belongs to torch's packing code, and is not a computation on packed values."""
    return file == packing.__file__ or (file == layers.__file__ and not name.startswith(("lstm", "gru", "rnn")))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() or id(tensor)


def _copied(tensor: Tensor) -> NDArray[Any]:
    return np.array(tensor.detach().resolve_conj().resolve_neg().cpu().numpy())
