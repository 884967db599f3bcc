"""How a user's module is called: its arguments, the order of the axes of its steps, and which results are outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lengthwise.errors import ConfigurationError
from lengthwise.padding import PaddedBatch
from lengthwise_export.errors import ExportError, UncheckableError
from lengthwise_export.layouts import RIGHT, ROLE_OF, StepLayout, role_of
from lengthwise_export.masks import step_mask
from lengthwise_export.options import ONE_VALUE_HINT, Second
from lengthwise_export.tracing.process_wide import PROCESS_WIDE

# A mask is true at valid steps, a padding mask at padding; the others are those of `ArrangedSteps`
Role = Literal["steps", "lengths", "mask", "padding-mask", "positions", "segments", "borders", "max-length"]

_ROLES: Final[Mapping[Second, tuple[Role, ...]]] = {
    "lengths": ("lengths",),
    "mask": ("mask",),
    "padding-mask": ("padding-mask",),
    "both": ("lengths", "mask"),
    "none": (),
}


class _ArgumentForm(NamedTuple):
    """Another form of the lengths or the mask, which a module may expect instead."""

    role: Role  # `lengths` or `mask`; that of a mask is for a padding mask, too
    convert: Callable[[Tensor, int], Tensor]  # makes this form of the argument, for a batch of a width
    text: str  # the form in words
    code: str  # what a user writes to convert the argument


_BUT: Final = "but it gets a bool mask [rows, width]"

# Only tried to explain an error, or a leak
_FORMS: Final = (
    _ArgumentForm("mask", lambda mask, _: mask.float(), "a float32 mask, but it gets a bool mask", "mask.to(x.dtype)"),
    _ArgumentForm("mask", lambda mask, _: mask.long(), "an int64 mask, but it gets a bool mask", "mask.long()"),
    _ArgumentForm("mask", lambda mask, _: mask[:, None], f"a mask [rows, 1, width], {_BUT}", "mask[:, None]"),
    _ArgumentForm(
        "mask",
        lambda mask, _: mask[:, None, None].float(),
        f"a float32 mask [rows, 1, 1, width], {_BUT}",
        "mask[:, None, None].to(x.dtype)",
    ),
    _ArgumentForm(
        "mask", lambda mask, _: mask[:, None, None], f"a mask [rows, 1, 1, width], {_BUT}", "mask[:, None, None]"
    ),
    _ArgumentForm(
        "mask",
        lambda mask, _: torch.where(mask, 0.0, -torch.inf),
        f"a mask to add, 0 at valid steps and -inf at padding, {_BUT}",
        "torch.where(mask, 0.0, -torch.inf)",
    ),
    _ArgumentForm(
        "lengths", lambda lengths, _: lengths.float(), "float32 lengths, but it gets int64", "lengths.to(x.dtype)"
    ),
    _ArgumentForm(
        "lengths",
        lambda lengths, width: lengths / width,
        "shares of the width, but it gets steps",
        "lengths / x.size(1)",
    ),
    _ArgumentForm(
        "lengths",
        lambda lengths, _: lengths / lengths.max(),
        "shares of the longest, but it gets steps",
        "lengths / x.size(1), the width, which other rows do not change",
    ),
)


@dataclass(frozen=True, slots=True)
class CallSignature:
    """How a module is called."""

    # What it takes besides the steps: int64 `lengths [rows]`, a bool mask `[rows, width]` that is true at valid steps
    # or at padding, both lengths and a mask that is true at valid steps, or nothing
    second: Second = "lengths"
    # The role of each argument, with its name if it is passed by keyword. By default the steps, then the arguments of
    # `second`, all by position
    arguments: tuple[tuple[Role, str | None], ...] = ()
    time_first: bool = False  # Steps and per-step answers are `[width, rows, ...]`; a mask is still `[rows, width]`
    channels_first: bool = False  # Steps are `[rows, features, width]`
    features_axis: bool = True  # False if steps of one feature are `[rows, width]`
    classes_first: bool = False  # Per-step answers are `[rows, classes, width]`
    form: _ArgumentForm | None = None  # The form of the lengths or the mask; None for the usual one
    layout: StepLayout = RIGHT  # Where each sequence is in the steps

    def arguments_for(self, batch: PaddedBatch) -> dict[Role, Any]:
        """The arguments of a call for a batch, by role, in the layout that the module takes; the steps are a copy."""
        arranged, lengths = self.layout.arrange(batch), torch.tensor(batch.lengths).long()
        usual = self.arguments_of(torch.tensor(arranged.steps), lengths, torch.tensor(arranged.valid))
        arguments: dict[Role, Any] = {
            **{role: torch.tensor(value) for role, value in arranged.by_role().items()},
            **({"steps": usual["steps"]} if self.layout.packed else usual),
        }
        if not self.layout.has_rows_axis:
            arguments = {role: value[0] if value.dim() > 1 else value for role, value in arguments.items()}
        return arguments | {"max-length": int(arguments["max-length"])}

    def arguments_of(self, steps: Tensor, lengths: Tensor | None, valid: Tensor | None = None) -> dict[Role, Tensor]:
        """The arguments of a call by role, from `steps [rows, width, features]` and the lengths.

        `valid [rows, width]` is true at valid steps; by default these are the first `lengths` steps of each row.
        """
        width = steps.shape[1]
        steps = steps if self.features_axis else steps.squeeze(-1)
        arguments: dict[Role, Tensor] = {
            "steps": steps.transpose(0, 1) if self.time_first else steps.mT if self.channels_first else steps
        }
        if lengths is None:
            return arguments
        if valid is None:
            valid = step_mask(lengths, width)
        for role in _ROLES[self.second]:
            arguments[role] = lengths if role == "lengths" else valid if role == "mask" else ~valid
            if self.form is not None and role.endswith(self.form.role):
                arguments[role] = self.form.convert(arguments[role], width)
        return arguments

    def call(self, module: nn.Module, tensors: Mapping[Role, Any]) -> Any:
        """Calls a module with its arguments, from their values by role."""
        arguments = self.arguments or _usual(self.second)
        positional = [tensors[role] for role, name in arguments if name is None]
        return module(*positional, **{name: tensors[role] for role, name in arguments if name is not None})

    def names(self, module: nn.Module) -> dict[Role, str]:
        """The names of the module's arguments by role; empty if the module has fewer, as with `*args`."""
        arguments = self.arguments or _usual(self.second)
        parameters = list(inspect.signature(module.forward).parameters.values())
        positional = [each.name for each in parameters if each.kind is not each.VAR_POSITIONAL]
        if len(positional) < len(arguments):
            return {}
        return {role: name or positional[index] for index, (role, name) in enumerate(arguments)}

    def with_positions(self, module: nn.Module) -> CallSignature | None:
        """The signature with positions of the steps too; None if the module takes none, or gets them already."""
        arguments = self.arguments or _usual(self.second)
        names = (name for name in inspect.signature(module.forward).parameters if role_of(name) == "positions")
        name = next(names, None)
        if name is None or any(role == "positions" for role, _ in arguments):
            return None
        return replace(self, arguments=(*arguments, ("positions", name)))

    def rows_first(self, logits: Tensor) -> Tensor:
        """Logits `[rows, classes]` unchanged; per-step logits transposed to `[rows, width, classes]`."""
        if logits.dim() != 3:
            return logits
        return logits.transpose(0, 1) if self.time_first else logits.mT if self.classes_first else logits

    def alternatives(self) -> Iterator[tuple[CallSignature, str]]:
        """Other ways to call it, each with the end of "the model runs ..."."""
        if self.form is not None:
            return
        plain = replace(self, time_first=False, channels_first=False, classes_first=False, features_axis=True)
        option = "--time-first" if self.time_first else "--channels-first"
        for other, axes, change in (
            (replace(plain, channels_first=True), "[rows, features, width]", "pass --channels-first"),
            (replace(plain, time_first=True), "[width, rows, features]", "pass --time-first"),
            (plain, "[rows, width, features]", f"leave {option} out"),
        ):
            if (other.time_first, other.channels_first) != (self.time_first, self.channels_first):
                yield other, f"with steps as {axes}: if that is right, {change}"
        if self.second in ("mask", "padding-mask"):
            mask: Literal["mask", "padding-mask"] = "padding-mask" if self.second == "mask" else "mask"
            names = tuple((role if role == "steps" else mask, name) for role, name in self.arguments)
            where = "padding" if mask == "padding-mask" else "valid steps"
            hint = f"with a mask that is true at {where}: if that is right, pass --second {mask}"
            yield replace(self, second=mask, arguments=names), hint
        for form in _FORMS:
            if any(role.endswith(form.role) for role in _ROLES[self.second]):
                yield replace(self, form=form), f"with {form.text}: begin forward with {form.role} = {form.code}"


def _usual(second: Second) -> tuple[tuple[Role, str | None], ...]:
    """The arguments of a call where none has a name: the steps, then those of `second`, all by position."""
    return (("steps", None), *((role, None) for role in _ROLES[second]))


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Switches off torch's fast path, whose nested tensors cannot be traced and hold no padding to compare."""
    with PROCESS_WIDE:
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


def in_evaluation(module: nn.Module) -> nn.Module:
    """Puts a module into evaluation mode, and returns it."""
    try:
        return module.eval()
    except NotImplementedError:  # a program of `torch.export` keeps the mode that it was exported in
        for part in module.modules():
            part.training = False
        return module


def read_signature(
    module: nn.Module,
    *,
    second: Second | None = None,
    time_first: bool = False,
    channels_first: bool = False,
    numbers: bool = False,
    blind: bool = False,
    positions: bool = False,
) -> CallSignature:
    """How a module is called, from the signature of its `forward` and the user's options; names decide the rest.

    With `numbers`, `inputs_embeds` is preferred to `input_ids`; with `positions`, a module that requires the positions
    of the steps gets them, counted from the mask. A `blind` module may take the steps alone; one that
    takes lengths or a mask gets them all the same, unless `second` is `none`.

    Raises:
        ConfigurationError: The options exclude each other, or the module has no `forward`.
    """
    if time_first and channels_first:
        raise ConfigurationError("--time-first and --channels-first: steps are in one order of axes or the other")
    if type(module).forward is nn.Module.forward:
        raise ConfigurationError(f"{type(module).__name__} has no forward{part_instead(module)}")
    kind, arguments = _read(module, second, numbers=numbers, blind=blind, positions=positions)
    arguments = () if arguments == _usual(kind) else arguments
    return CallSignature(second=kind, arguments=arguments, time_first=time_first, channels_first=channels_first)


def _read(
    module: nn.Module, second: Second | None, *, numbers: bool, blind: bool, positions: bool
) -> tuple[Second, tuple[tuple[Role, str | None], ...]]:
    """What a module takes besides the steps, and its arguments.

    Raises:
        ConfigurationError: `second` is `none`, and the model is not to be mended.
        UncheckableError: `forward` takes neither lengths nor a mask.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    header = f"{type(module).__name__}.forward({', '.join(each.name for each in parameters)})"
    steps = _steps_among(named, numbers=numbers)
    counted: dict[str, Role] = {}
    if positions:
        required = (each.name for each in named if not _is_optional(each))
        counted = {name: "positions" for name in required if role_of(name) == "positions"}
    others = [each for each in named if each is not steps and each.name not in counted]
    if second == "none" and not blind:
        raise ConfigurationError(
            f"--second none: {header} then cannot know where a sequence ends: also pass --mend (check: --suggest)"
        )
    takes_positional = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    names_say_nothing = second is None and all(_is_optional(each) and _meaning(each.name) is None for each in others)
    if blind and (second == "none" or names_say_nothing) and (steps or takes_positional):
        _require_no_more(others, header)
        return "none", tuple(_arguments_in_order(named, {steps.name: "steps"} if steps else {})) or _usual("none")
    if second is not None and not others and takes_positional:
        return second, _usual(second)
    if steps is None or not others:
        raise UncheckableError(
            f"{header} takes neither lengths nor a mask, so it cannot know where a sequence ends: add `lengths` "
            "([rows], int64) or `mask` ([rows, width], true at valid steps) as a second argument, or pass --mend "
            "(check: --suggest)"
            + ("; if it takes one through *args, say which with --second" if len(parameters) > len(named) else "")
            + (f"; if it only holds the model{part_instead(module)}" if steps is None and [*module.children()] else "")
        )
    by_role = _by_option(others, second, header) if second is not None else _by_name(others, header)
    hint = " (--second both passes lengths and a mask)" if second not in (None, "both") else ""
    _require_no_more([each for each in others if each not in by_role.values()], header, hint)
    roles: dict[str, Role] = {each.name: role for role, each in by_role.items()} | {steps.name: "steps"} | counted
    kind = next(kind for kind, roles_of_kind in _ROLES.items() if set(roles_of_kind) == set(by_role))
    return kind, tuple(_arguments_in_order(named, roles))


def read_packed_signature(
    module: nn.Module, layout: StepLayout, *, numbers: bool, channels_first: bool = False
) -> CallSignature:
    """How a module is called with sequences that are packed in one row, in the layout `layout`.

    Raises:
        ConfigurationError: No argument tells the borders, by its name or by the option.
        UncheckableError: `forward` requires an argument of another kind.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    header = f"{type(module).__name__}.forward({', '.join(each.name for each in parameters)})"
    steps = _steps_among(named, numbers=numbers)
    if layout.packed is None or steps is None:
        raise UncheckableError(f"{header} takes no steps")
    wanted = ROLE_OF[layout.packed]  # the role of the argument that tells the borders of the sequences
    others = [each for each in named if each is not steps]
    roles: dict[str, Role] = {each.name: role for each in others if (role := role_of(each.name)) is not None}
    if (chosen := layout.packed_input) is not None:
        if chosen not in {each.name for each in others}:
            raise ConfigurationError(f"--packed-input {chosen}: {header} has no such argument beside the steps")
        roles = {name: role for name, role in roles.items() if role != wanted} | {chosen: wanted}
    if wanted not in roles.values():
        raise ConfigurationError(
            f"{header} takes no {layout.packed}, by the names of its arguments: name the argument with --packed-input"
        )
    always: set[Role] = {wanted, "max-length"} if wanted == "borders" else {wanted}
    passed = {
        each.name: roles[each.name]
        for each in others
        if each.name in roles and (roles[each.name] in always or not _is_optional(each))
    }
    _require_no_more([each for each in others if each.name not in passed], header)
    arguments = tuple(_arguments_in_order(named, passed | {steps.name: "steps"}))
    return CallSignature(second="mask", arguments=arguments, channels_first=channels_first, layout=layout)


def part_instead(module: nn.Module) -> str:
    """For an error about the wrapper of a training library: names the submodules to return in its place."""
    parts = [f"model.{name} (a {type(part).__name__})" for name, part in module.named_children()]
    return f": return the part that answers from the factory, such as {' or '.join(parts[:3])}" if parts else ""


def _is_optional(parameter: Parameter) -> bool:
    return parameter.default is not parameter.empty


def _require_no_more(others: Sequence[Parameter], header: str, hint: str = "") -> None:
    """Makes sure that the arguments that are not passed have default values.

    Raises:
        UncheckableError: One has none.
    """
    if names := [each.name for each in others if not _is_optional(each)]:
        raise UncheckableError(
            f"{header} also requires {', '.join(names)}: give these default values, or wrap the module in another{hint}"
        )


def _steps_among(named: Sequence[Parameter], *, numbers: bool) -> Parameter | None:
    """The parameter for the steps: the first one, unless its name says that it is a mask or lengths.

    With `numbers`, `inputs_embeds` is preferred. None if `forward` has no parameter.
    """
    embeds = next((each for each in named if each.name == "inputs_embeds"), None)
    if (numbers and embeds is not None) or not named:
        return embeds
    first = named[0]
    required = [each for each in named[1:] if _meaning(each.name) is None and not _is_optional(each)]
    is_second = re.fullmatch(r"(.*_)?(masks?|lengths?|lens?|seqlens?)", first.name.lower()) is not None
    return required[0] if is_second and required else first


def _by_option(others: Sequence[Parameter], second: Second, header: str) -> dict[Role, Parameter]:
    """The parameters that `--second` refers to, by role; if there are several candidates, their names decide.

    Raises:
        ConfigurationError: `second` is `both`, and the names do not show lengths and a mask.
    """
    by_meaning: dict[str | None, list[Parameter]] = {}
    for each in others:
        by_meaning.setdefault(_meaning(each.name), []).append(each)
    if second == "both" and not ("lengths" in by_meaning and "mask" in by_meaning):
        raise ConfigurationError(
            f"{header}: --second both needs an argument with `len` in its name and one with `mask` but without "
            "`pad`: rename them, or wrap the module in another that passes them on"
        )
    likeliest: Mapping[Role, tuple[str | None, ...]] = {
        "lengths": ("lengths", None),
        "mask": ("mask", "which way round", None),
        "padding-mask": ("which way round", "mask", None),
    }
    return {
        role: _required_first(
            next((by_meaning[meaning] for meaning in likeliest[role] if meaning in by_meaning), others)
        )
        for role in _ROLES[second]
    }


def _by_name(others: Sequence[Parameter], header: str) -> dict[Role, Parameter]:
    """The parameters that mark the end of a sequence by their names, by role; required ones before optional ones.

    Raises:
        ConfigurationError: No name says it, or one says it in an unclear way; the message asks for `--second`.
    """
    candidates = [each for each in others if _meaning(each.name) is not None]
    likeliest = candidates[:1]
    # Next to an attention mask, a padding mask is the right one.
    if likeliest and _meaning(likeliest[0].name) == "mask":
        likeliest = [each for each in candidates if _meaning(each.name) == "which way round"][:1] or likeliest
    by_role: dict[Role, Parameter] = {}
    for each in [each for each in candidates if not _is_optional(each)] or likeliest:
        meaning = _meaning(each.name)
        if meaning == "which way round":
            raise ConfigurationError(_unclear(header, each, "may be true at padding or at valid steps;"))
        if meaning == "lengths" and re.search(r"rel|ratio|frac|share|percent|portion|norm", each.name.lower()):
            raise ConfigurationError(
                f"{header}: {each.name} looks like lengths as a share of the longest. A module gets lengths in steps: "
                "divide by x.size(1) in forward, or pass --second lengths if it takes steps"
            )
        by_role.setdefault("lengths" if meaning == "lengths" else "mask", each)
    if not by_role:
        name = (parameter := _required_first(others)).name
        default = "it keeps its default value" if _is_optional(parameter) else f"give it a default value ({name}=None)"
        raise ConfigurationError(
            _unclear(
                header,
                parameter,
                "is neither lengths nor a mask by its name; if it is one of them,",
                f". If it is something else, such as a state, labels or a switch, the model does not know where a "
                f"sequence ends: {default}, and --second none --mend makes the graph take lengths (check: --second "
                "none --suggest); or add `lengths` or `mask` to forward",
            )
        )
    return by_role


def _unclear(header: str, parameter: Parameter, why: str, otherwise: str = "") -> str:
    """Asks for `--second`, where the name of a parameter does not say what it is."""
    return (
        f"{header}: {parameter.name} {why} say --second lengths, --second mask (true at valid steps) or --second "
        f"padding-mask (true at padding){otherwise}"
    )


def _required_first(fitting: Sequence[Parameter]) -> Parameter:
    """The first parameter without a default value; if all have one, the first parameter."""
    return next((each for each in fitting if not _is_optional(each)), fitting[0])


def _arguments_in_order(named: Sequence[Parameter], roles: Mapping[str, Role]) -> Iterator[tuple[Role, str | None]]:
    """The role of each argument, in the order of the parameters; and its name, if it is passed by keyword.

    That is so for each argument after the first parameter that is not passed.
    """
    is_positional = True
    for each in named:
        is_positional = is_positional and each.kind is not each.KEYWORD_ONLY and each.name in roles
        if each.name in roles:
            yield roles[each.name], None if is_positional else each.name


def _meaning(name: str) -> Literal["lengths", "mask", "which way round"] | None:
    """What an argument is by its name: of a name with `pad` it is open whether the mask is true at padding."""
    lower = name.lower()
    if "pad" in lower:
        return "which way round"
    if "len" in lower:
        return "lengths"
    return "mask" if "mask" in lower else None


OutputSelector = Callable[[Any], dict[str, Tensor]]  # A module's result to outputs by name, `logits` first


def output_selector(output: str | int | None) -> OutputSelector:
    """The selector for `--output NAME|INDEX`; by default `logits`, otherwise the first float output of rank 2 or 3."""
    return partial(_select_output, output=None if output is None else str(output))


def _select_output(answer: Any, *, output: str | None) -> dict[str, Tensor]:
    """Picks `logits` `[rows, classes]` or `[rows, width, classes]`, and an output named `attention` `[rows, width]`.

    Raises:
        ExportError: There is no such output, or it has another shape.
    """
    by_name = outputs_by_name(answer)
    if output is None:
        fitting = (name for name, value in by_name.items() if _can_be_logits(value))
        output = "logits" if "logits" in by_name else next(fitting, None)
    elif output not in by_name:
        raise ExportError("outputs", f"the module returns no {output!r}, but {_types(by_name)}; name one with --output")
    outputs = by_name if output is None else {output: by_name[output]}
    if output is None or not _can_be_logits(by_name[output]):
        tensors = [value for value in outputs.values() if isinstance(value, Tensor)]
        has_one_value = any(tensor.dim() == 1 and tensor.is_floating_point() for tensor in tensors)
        what = (
            f"none of {_types(outputs)} is" if output is None else f"{_types(outputs)} cannot be the output: it must be"
        )
        hint = f"; {ONE_VALUE_HINT}" if has_one_value else ""
        raise ExportError("outputs", f"{what} float32 [rows, classes] or [rows, width, classes]{hint}")
    logits = by_name[output]
    attention = by_name.get("attention")
    if output == "attention" or not isinstance(attention, Tensor) or attention.dim() != 2:
        return {"logits": logits}
    return {"logits": logits, "attention": attention}


def outputs_by_name(answer: Any) -> dict[str, Any]:
    """A module's outputs by name, or by index if they have no names.

    Raises:
        ExportError: It returns neither a tensor nor a tuple, a mapping or a dataclass.
    """
    if isinstance(answer, Tensor):
        return {"0": answer}
    if isinstance(answer, Mapping):
        return {str(name): value for name, value in answer.items()}
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        return dict(answer._asdict())
    if isinstance(answer, tuple | list):
        return {str(index): value for index, value in enumerate(answer)}
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    raise ExportError("outputs", f"the module returns a {type(answer).__name__}: return a tensor, or a tuple or dict")


def _can_be_logits(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() in (2, 3)


def _types(outputs: Mapping[str, Any]) -> str:
    """The names of outputs with their types, for an error."""
    return ", ".join(
        f"{name} ({str(value.dtype).removeprefix('torch.')}, rank {value.dim()})"
        if isinstance(value, Tensor)
        else f"{name} (a {type(value).__name__})"
        for name, value in outputs.items()
    )
