"""Records a torch module: every torch function that it calls, with the line of the user's code.

A `TorchFunctionMode` sees the calls as they are written (`multi_head_attention_forward`, not its forty parts). The
calls that the answer depends on are found backwards through the storages of their tensors, so views and in-place
changes are followed. A tensor that becomes a Python number is assumed to affect the answer.

A *part* is a module inside the module, its *path* the name in `named_modules`, such as `encoder.layers.0`.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import rnn as layers
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import rnn as packing
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lengthwise_export.checking.recording import (
    DEFAULT_NAMES,
    AlternativeCall,
    ArgumentNames,
    ModelOutput,
    Operation,
    Recording,
)
from lengthwise_export.checking.rule import Cause
from lengthwise_export.checking.trials import Change
from lengthwise_export.errors import RunError
from lengthwise_export.layouts import Array, PaddedBatch, StepLayout
from lengthwise_export.onnx_graphs.beside import StepInput, completed
from lengthwise_export.tracing.call_signature import CallSignature, Role, in_evaluation, without_fast_path
from lengthwise_export.tracing.module_state import ModuleState
from lengthwise_export.tracing.outputs import OutputSelector, outputs_by_name
from lengthwise_export.tracing.process_wide import PROCESS_WIDE
from lengthwise_export.tracing.source_lines import CodeLocation, current_location, error_text, location_of

# Functions that make Python numbers of a tensor
_TO_PYTHON: Final = frozenset({"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"})

_UNINITIALIZED: Final = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})  # They return any memory
_DROPOUT_INSIDE: Final = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "multi_head_attention_forward", "scaled_dot_product_attention"}
)
"""Functions with a dropout inside; its probability is the only float among their arguments by position."""


class WithoutDropout(TorchFunctionMode):
    """A torch function mode in which dropout does nothing.

    The random numbers of dropout depend on the width of the batch: a check would take the difference for a leak.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls a function of torch with a dropout probability of 0; a function of dropout returns its input."""
        options = dict(kwargs or {})
        if "dropout" in func.__name__:
            return args[0] if args else options["input"]
        if func.__name__ in _DROPOUT_INSIDE:
            args = [0.0 if isinstance(value, float) else value for value in args]
            options |= {name: 0.0 for name in options if name.startswith("dropout")}
        return func(*args, **options)


@dataclass(frozen=True, slots=True)
class WholePart:
    """A part of a module that is recorded as one operation."""

    operator: str  # This and the next two are those of the `Operation`
    kind: str
    layer: str
    # From the inputs, keywords and outputs of a call, a function that returns the cause of a leak in it
    explained: Callable[[Sequence[Any], Mapping[str, Any], Any], Callable[[Change], Cause]]


DescribePart = Callable[[nn.Module], WholePart | None]  # None for a part that is not recorded as one operation


@dataclass(frozen=True, eq=False)
class TorchSubject:
    """A torch module under check. The module is put into evaluation mode."""

    module: nn.Module
    steps: StepInput
    signature: CallSignature
    select_output: OutputSelector
    describe_part: DescribePart = lambda part: None  # For the parts that are recorded as one operation each
    own_names: ArgumentNames | None = None  # Names for the code of a fix; None for those of the signature
    state: ModuleState | None = None  # The state when the module was read; None if that was not kept
    in_training: bool = False  # Whether it is checked in training mode, without dropout

    def __post_init__(self) -> None:
        """Puts the module into the mode in which it is checked."""
        if self.in_training:
            self.module.train()
        else:
            in_evaluation(self.module)

    @property
    def sizes(self) -> frozenset[int]:
        """The sizes of its parameters, buffers, and tensors in plain attributes."""
        unregistered = (
            value for part in self.module.modules() for value in vars(part).values() if isinstance(value, Tensor)
        )
        tensors = [*self.module.parameters(), *self.module.buffers(), *unregistered]
        return frozenset(size for tensor in tensors for size in tensor.shape)

    @property
    def layout(self) -> StepLayout:
        """How the module gets the steps of a batch."""
        return self.signature.layout

    @property
    def names(self) -> ArgumentNames:
        """The names of the module's arguments, and code for the width, as the texts of fixes use them."""
        if self.own_names is not None:
            return self.own_names
        names = self.signature.names(self.module)
        steps = names.get("steps")
        if steps is None:
            return DEFAULT_NAMES
        width = f"{steps}.size({0 if self.signature.time_first else 2 if self.signature.channels_first else 1})"
        role = next((role for role in ("lengths", "mask", "padding-mask") if role in names), None)
        if role is None:
            return ArgumentNames(width, is_to_add=True)
        # With padding on both sides, too: for that there is no simple code.
        return ArgumentNames(width, names[role], role, is_left_padded=not self.layout.is_right_padded)

    def answer(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch on the plain path, with torch's nested-tensor fast path switched off.

        A module without lengths may fail for one row, because a `squeeze()` removes its axis: the row then runs as two
        equal rows, of which the first answer is taken.

        Raises:
            RunError: The module raises, or its answer to one row has another form.
        """
        with without_fast_path():
            if self.signature.second != "none" or batch.rows > 1:
                return self._answer(batch)
            try:
                answer = self._answer(batch)
                if answer.logits.shape[0] != 1:
                    raise RunError(f"the answer to one row is {list(answer.logits.shape)}")
                return answer
            except RunError:
                with contextlib.suppress(RunError):
                    beside = {name: values.repeat(2, 0) for name, values in batch.beside.items()}
                    twice = self._answer(PaddedBatch(batch.steps.repeat(2, 0), batch.lengths.repeat(2), beside=beside))
                    return ModelOutput(twice.logits[:1], None if twice.attention is None else twice.attention[:1])
                raise

    def answer_in_float64(self, batch: PaddedBatch) -> ModelOutput | None:
        """The answer of a copy of the module in float64, rounded to float32; None if it raises or cannot be copied."""

        def selected(result: Any) -> dict[str, Tensor]:
            """The outputs of the module, in float32."""
            in_float32 = pytree.tree_map_only(
                Tensor, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, result
            )
            return self.select_output(in_float32)

        def in_float64(values: Array) -> Any:
            """The values in float64, if they are float32."""
            return values.astype(np.float64) if values.dtype == np.float32 else values

        beside = {name: in_float64(values) for name, values in completed(batch, self.steps).beside.items()}
        try:
            module = copy.deepcopy(self.module).double()
        except Exception:  # a user's class may raise any error, as one that Keras has not registered does
            return None
        double_subject = TorchSubject(module, self.steps, self.signature, selected, in_training=self.in_training)
        try:
            return double_subject.answer(PaddedBatch(in_float64(batch.steps), batch.lengths, beside=beside))
        except RunError:
            return None

    def answers_of_rounded_weights(self, batch: PaddedBatch) -> Iterator[ModelOutput]:
        """Yields none: `answer_in_float64` shows more."""
        return iter(())

    def answer_as_shipped(self, batch: PaddedBatch) -> ModelOutput:
        """Runs a batch with torch's default settings: its fast path may run, on nested tensors that hold no padding."""
        with PROCESS_WIDE, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._answer(batch)

    def output_form(self, batch: PaddedBatch) -> tuple[tuple[int, ...], int]:
        """The shape of the answer as the module gives it, and the number of its outputs."""
        with torch.no_grad(), without_fast_path():
            result = self.signature.call(self.module, self.signature.arguments_for(batch, self.steps))
        return tuple(self.select_output(result)["logits"].shape), len(outputs_by_name(result))

    def record(self, batch: PaddedBatch) -> Recording:
        """Runs a batch and records the calls of torch functions that the answer depends on."""
        recorder, inputs = (
            _Recorder(self.module, self.describe_part, self.layout),
            self.signature.arguments_for(batch, self.steps),
        )
        with without_fast_path(), recorder.listening():
            outputs = self._run(inputs)
        return recorder.recording(outputs.values())

    def with_layout(self, layout: StepLayout) -> TorchSubject:
        """The same module, which gets the steps of a batch in another layout."""
        return replace(self, signature=replace(self.signature, layout=layout))

    def alternatives(self) -> Iterator[AlternativeCall]:
        """Yields the same module, called in other ways that the user may have meant."""
        if (
            not self.layout.is_right_padded
            and (with_positions := self.signature.with_positions(self.module)) is not None
        ):
            sentence_end = (
                "with position_ids counted from the start of each sequence: pass them, or count them in forward"
            )
            yield AlternativeCall(replace(self, signature=with_positions), sentence_end)
        if self.layout.packed is not None:
            return
        yield from (
            AlternativeCall(replace(self, signature=signature), sentence_end)
            for signature, sentence_end in self.signature.alternatives()
            if self.steps.kind == "values" or not signature.channels_first
        )

    def _answer(self, batch: PaddedBatch) -> ModelOutput:
        outputs = self._run(self.signature.arguments_for(batch, self.steps))
        logits, attention = outputs["logits"].numpy(), outputs.get("attention")
        return ModelOutput(logits, None if attention is None else attention.numpy()).restored(self.layout, batch)

    def _run(self, arguments: dict[Role, Any]) -> dict[str, Tensor]:
        """Calls the module. The outputs are by name; `logits` has the rows as its first axis.

        Raises:
            RunError: The module raises; the error says at which line, and in which layer.
        """
        try:
            with torch.no_grad(), WithoutDropout() if self.in_training else contextlib.nullcontext():
                outputs = self.select_output(self.signature.call(self.module, arguments))
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            # The innermost layer that the exception passed through, by the `self` of its frames
            owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
            paths = {part: path for path, part in self.module.named_modules() if path}
            part = next(
                (module for module in reversed(owners) if isinstance(module, nn.Module) and module in paths), None
            )
            layer_text = None if part is None else f"`{paths[part]}` ({type(part).__name__}({part.extra_repr()}))"
            raise RunError(error_text(error), location_of(error), layer_text) from error
        outputs["logits"] = self.signature.rows_first(outputs["logits"])
        return outputs


class _Recorder(TorchFunctionMode):
    """Records the torch functions that a module calls, and its `WholePart`s, while `listening`."""

    def __init__(self, module: nn.Module, describe_part: DescribePart, layout: StepLayout) -> None:
        """Begins without a recorded call.

        Args:
            module: The module.
            describe_part: Says which of its parts are recorded as one operation each.
            layout: How the module gets the steps of a batch.
        """
        super().__init__()
        self._layout = layout
        self._describe_part = describe_part
        # The whole part that runs now, with the depth of its call; None outside of such a part
        self._running_part: tuple[int, WholePart] | None = None
        self._modules = dict(module.named_modules(remove_duplicate=False))
        self._paths = {id(part): path for path, part in self._modules.items()}
        self._running_paths: list[str] = []  # The paths of the modules that run now, the innermost last
        self._call_counts: Counter[tuple[str, CodeLocation | None]] = Counter()  # By operator and location
        self._calls: list[tuple[Operation, bool]] = []  # Each call, and whether it belongs to torch's packing
        # Every tensor is kept until the end, so that no storage address is reused.
        self._kept_tensors: list[Tensor] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Records the calls inside the block."""
        leave = register_module_forward_hook(self._leave, with_kwargs=True, always_call=True)
        with register_module_forward_pre_hook(self._enter), leave, self:
            yield

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        """A hook that torch calls before a module runs."""
        self._running_paths.append(self._paths.get(id(module), ""))
        if self._running_part is None and (part := self._describe_part(module)) is not None:
            self._running_part = (len(self._running_paths), part)

    def _leave(self, module: nn.Module, inputs: Any, options: Any, outputs: Any = None) -> None:
        """A hook that torch calls after a module ran. If the module raised, torch passes no outputs."""
        if self._running_part is not None and self._running_part[0] == len(self._running_paths):
            self._add_part(self._running_part[1], inputs, options, outputs)
            self._running_part = None
        self._running_paths.pop()

    def _add_part(self, part: WholePart, inputs: Sequence[Any], options: Mapping[str, Any], outputs: Any) -> None:
        """Records the call of a whole part as one operation."""
        input_tensors, output_tensors = _tensors((inputs, options)), _tensors(outputs)
        self._kept_tensors += input_tensors + output_tensors
        changed = [
            tensor for tensor in output_tensors if not any(tensor is input_tensor for input_tensor in input_tensors)
        ]
        if changed:  # a layer such as dropout may return its inputs, and is no operation then
            cause_of = part.explained(inputs, options, outputs)
            self._add(part.operator, part.kind, None, input_tensors, changed, cause_of=cause_of, layer=part.layer)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls a torch function, records the call, and returns its result.

        torch calls this in the place of each function inside `listening`. Not recorded are calls inside a part that is
        recorded as a whole, those that give neither a tensor nor a Python number, and those that give uninitialized
        memory, such as `torch.empty`.
        """
        answer = func(*args, **(kwargs or {}))
        if self._running_part is not None:
            self._kept_tensors += _tensors(answer)
            return answer
        is_property = func.__name__ == "__get__"  # such as `Tensor.T`
        name = torch.overrides.resolve_name(func).rsplit(".", 2)[-2] if is_property else func.__name__
        # `x[...] = y` returns None: its output is the tensor that was written to.
        result = args[0] if answer is None and args else answer
        outputs = [] if name in _UNINITIALIZED else _tensors(result)
        if not outputs and name not in _TO_PYTHON:
            return answer
        inputs = _tensors((args, kwargs))
        self._kept_tensors += inputs + outputs
        path = self._running_paths[-1] if self._running_paths else ""
        rows_first = getattr(self._modules.get(path), "batch_first", False)
        location, axes = current_location(), _shape_and_axes(name, *args, rows_first=rows_first, **(kwargs or {}))
        # Kept with the call: whether no leak can begin there, because torch's own code packs or unpacks sequences.
        # 1. Calls in torch's module of packed sequences. Packing itself takes the first steps of a row: in a layout
        #    where these may be padding, a leak may begin there.
        # 2. Calls in torch's module of recurrent layers, except the layer's computation.
        file, is_layer = sys._getframe(1).f_code.co_filename, name.startswith(("lstm", "gru", "rnn"))
        takes_steps = name == "_pack_padded_sequence" and not self._layout.is_right_padded
        is_packing = (file == packing.__file__ and not takes_steps) or (file == layers.__file__ and not is_layer)
        operator = f"{path}: {name}" if path else name
        self._add(operator, name, location, inputs, outputs, is_packing=is_packing, **axes)
        return answer

    def _add(
        self,
        operator: str,
        kind: str,
        location: CodeLocation | None,
        inputs: list[Tensor],
        outputs: list[Tensor],
        *,
        is_packing: bool = False,
        **more: Any,
    ) -> None:
        """Adds a call, with copies of its outputs as NumPy arrays; `more` are further fields of its operation."""
        real = (tensor.detach().dequantize() if tensor.is_quantized else tensor.detach() for tensor in outputs)
        dense = (tensor.resolve_conj().resolve_neg().cpu() for tensor in real)
        # NumPy knows neither bfloat16 nor floats of 8 bits
        values = [
            np.array((tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy())
            for tensor in dense
        ]
        operation = Operation(
            operator,
            kind,
            location,
            input_keys=frozenset(map(_storage, inputs)),
            input_views=frozenset(map(_view, inputs)),
            output_views=frozenset(map(_view, outputs)),
            outputs=tuple(zip(map(_storage, outputs), values, strict=True)),
            occurrence=self._call_counts[operator, location],
            **more,
        )
        self._call_counts[operator, location] += 1
        self._calls.append((operation, is_packing))

    def recording(self, tensors: Iterable[Tensor]) -> Recording:
        """The recorded calls that an answer depends on, found backwards from its tensors."""
        answers = frozenset(map(_storage, tensors))
        needed = set(answers)
        reaching = []
        for call, is_packing in reversed(self._calls):
            outputs = tuple((storage, value) for storage, value in call.outputs if storage in needed)
            # A Python number may decide about anything, so what it is made of counts as well.
            if outputs or call.kind in _TO_PYTHON:
                needed |= call.input_keys
                # Inside packing the rows are in another order, and torch's own code has no leak: do not compare.
                output_keys = frozenset(storage for storage, _ in outputs)
                reaching.append(replace(call, output_keys=output_keys, outputs=() if is_packing else outputs))
        reaching.reverse()
        return Recording(reaching, answers)


# Functions whose axes are their third argument; of others they are the second
_DIM_IS_THIRD: Final = frozenset(
    {"norm", "normalize", "topk", "kthvalue", "quantile", "nanquantile", "roll", "chunk", "diff"}
    | {"split", "tensor_split"}
)

_AXES_BY_OPERATOR: Final[Mapping[str, Callable[[Sequence[Any], Any], Any]]] = {
    **dict.fromkeys(("conv1d", "instance_norm", "group_norm", "matmul", "bmm"), lambda args, dim: -1),
    "scaled_dot_product_attention": lambda args, dim: -2,
    **dict.fromkeys(("div", "pad"), lambda args, dim: []),
    # A pooling to one step runs along all
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_max_pool1d"), lambda args, dim: -1 if dim in (1, [1]) else None),
    "einsum": lambda args, dim: _summed_axes(*args[0].replace(" ", "").partition("->")),
    "flip": lambda args, dim: [*args[1:]] if len(args) > 2 else dim,
    "__getitem__": lambda args, dim: _axes_of_last(
        args[0].shape, [*args[1]] if isinstance(args[1], tuple) else [args[1]]
    ),
}
"""For operators whose axes are not simply `dim`: from the arguments and `dim`, the axes that they run along."""


def _shape_and_axes(name: str, *args: Any, rows_first: bool = False, **keywords: Any) -> dict[str, Any]:
    """The shape and type of a call's first tensor, and the axes that the call runs along, as keywords of `Operation`.

    Of an attention, the tensor is its keys.

    Args:
        name: The torch function.
        args: Its positional arguments.
        rows_first: Whether its layer is `batch_first`.
        keywords: Its other arguments.

    Returns:
        `input_type`, `input_shape` and `reduced_axes`; the type alone if the axes are not known, and empty without a
        tensor.
    """
    tensors = [value for value in (*args, keywords.get("input")) if isinstance(value, Tensor)]
    tensor = next(iter(tensors[1:] if "attention" in name else tensors), None)  # the keys of an attention
    if tensor is None or tensor.is_complex():
        return {}
    input_type = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    # 1. The axes that the call names: by a keyword, or else by position; all axes if it names none
    dim: Any = next(iter(args[2 if name in _DIM_IS_THIRD else 1 :]), range(len(shape)))
    axes = next((keywords[word] for word in ("dim", "dims", "axis") if keywords.get(word) is not None), dim)
    # 2. Functions that name them in another way, or not at all
    if name == "max_pool1d":  # with a stride, the last window may be incomplete
        axes = -1 if keywords.get("stride") in (1, (1,)) or dim in (shape[-1], (shape[-1],)) else None
    if name.startswith(("lstm", "gru", "rnn", "multi_head")):
        axes = int(rows_first)
        if rows_first and name.startswith("multi_head"):  # the layer has swapped rows and steps of its input
            shape = (shape[1], shape[0], *shape[2:])
    if name in _AXES_BY_OPERATOR:
        axes = _AXES_BY_OPERATOR[name](args, [*axes] if isinstance(axes, tuple) else axes)
    # 3. As a tuple of indices from the front, if they are axes of this tensor
    axes = [*axes] if isinstance(axes, (tuple, list, range)) else [axes]
    if {*map(type, axes)} - {int} or not all(-len(shape) <= axis < len(shape) for axis in axes):
        return {"input_type": input_type}
    return {"input_type": input_type, "input_shape": shape, "reduced_axes": tuple(axis % len(shape) for axis in axes)}


def _summed_axes(operands: str, _: str, result: str) -> list[int]:
    """The axes of the first operand of an einsum that its result lacks."""
    return [axis for axis, letter in enumerate(operands.partition(",")[0]) if letter not in result]


def _axes_of_last(shape: Sequence[int], index: list[Any]) -> list[int]:
    """The axes of a tensor of which an index takes the last element, as `h[:, -1]` does of axis 1.

    Empty if an item of the index is neither an integer, a tensor nor `:`. An Ellipsis in the list `index` is replaced
    by the items that it stands for.
    """
    position = next((axis for axis, item in enumerate(index) if item is Ellipsis), None)
    if position is not None:
        index[position : position + 1] = [slice(None)] * (len(shape) - len(index) + 1)
    if not all(item == slice(None) if isinstance(item, slice) else isinstance(item, (int, Tensor)) for item in index):
        return []
    return [axis for axis, item in enumerate(index) if type(item) is int and item in (-1, shape[axis] - 1)]


def _tensors(value: Any) -> list[Tensor]:
    """The dense tensors in nested containers, such as the arguments of a call."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def _storage(tensor: Tensor) -> int:
    """The key of a tensor: the address of its storage, which its views share; its id if it has no memory."""
    return tensor.untyped_storage().data_ptr() or id(tensor)


def _view(tensor: Tensor) -> tuple[int, ...]:
    """The key of a tensor, and a hash of which part of its storage it is."""
    return _storage(tensor), hash((tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype))
