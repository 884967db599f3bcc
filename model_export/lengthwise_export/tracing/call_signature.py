"""How a user's module is called: its arguments, and the order of the axes of its steps.

A *role* says what an argument of `forward` is for, such as `steps` or `mask`. `read_signature` finds the roles by the
names of the parameters and by the option `--second`. *Second* is what a module takes besides the steps:

    forward(x, lengths)            second = "lengths"
    forward(x, attention_mask)     second = "mask", true at valid steps
    forward(x, key_padding_mask)   unclear by its name: the user says --second mask or --second padding-mask

The *header* of a module is the text `Model.forward(x, lengths)`, with which messages begin.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lengthwise_export.errors import ConfigurationError, UncheckableError
from lengthwise_export.layouts import RIGHT, ROLE_OF, PaddedBatch, StepLayout, role_of
from lengthwise_export.masks import step_mask
from lengthwise_export.onnx_graphs.beside import LENGTHS, STATIC, StepInput, completed
from lengthwise_export.options import BESIDE_HINT, Second
from lengthwise_export.tracing.beside_arguments import (
    BesideParameters,
    StaticArgument,
    is_optional,
    may_be_static,
    meaning_of,
    sequences_beside,
    statics_among,
)
from lengthwise_export.tracing.process_wide import PROCESS_WIDE

Role = str
"""What an argument is for: `steps`, `lengths`, `mask` (true at valid steps) or `padding-mask` (true at padding).

`positions`, `segments`, `borders` and `max-length` are for packed rows, see `ArrangedSteps`. The roles of a further
sequence begin with its name, as `title steps`, and those of static values with `static`.
"""

_ROLES: Final[Mapping[Second, tuple[Role, ...]]] = {
    "lengths": ("lengths",),
    "mask": ("mask",),
    "padding-mask": ("padding-mask",),
    "both": ("lengths", "mask"),
    "none": (),
}
"""The roles of the arguments after the steps, by what a module takes besides the steps."""


class _ArgumentForm(NamedTuple):
    """Another form of the lengths or the mask, which a module may expect instead."""

    role: Role  # `lengths`, or `mask` for a mask and a padding mask
    convert: Callable[[Tensor, int], Tensor]  # makes this form from the usual argument and the width of the batch
    text: str  # the form in words, for messages
    code: str  # what a user writes in `forward` to convert the usual argument


_BUT: Final = "but it gets a bool mask [rows, width]"

# A module is called with them only to explain an error, or a leak
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

    # What it takes besides the steps: int64 `lengths [rows]`; a bool mask `[rows, width]`, true at valid steps (`mask`)
    # or at padding (`padding-mask`); `both` lengths and a mask that is true at valid steps; or `none` of these
    second: Second = "lengths"
    # The role of each argument, and its name if it is passed by keyword (None: by position). If empty, the steps, then
    # the arguments of `second`, all by position
    arguments: tuple[tuple[Role, str | None], ...] = ()
    time_first: bool = False  # Steps and per-step answers are `[width, rows, ...]`; a mask is still `[rows, width]`
    channels_first: bool = False  # Steps are `[rows, features, width]`
    features_axis: bool = True  # False if steps of one feature are `[rows, width]`
    classes_first: bool = False  # Per-step answers are `[rows, classes, width]`
    form: _ArgumentForm | None = None  # The form of the lengths or the mask; None for the usual one
    layout: StepLayout = RIGHT  # Where each sequence is in the steps
    statics: tuple[StaticArgument, ...] = ()  # The arguments with static values, in the order of the values
    sequences: tuple[str, ...] = ()  # The names of all sequences, if it takes more than one

    def arguments_for(self, batch: PaddedBatch, step: StepInput) -> dict[Role, Any]:
        """The arguments of a call for a batch, by role: the steps are a copy, in the layout that the module takes.

        They include arguments that the module does not take, such as positions: `call` picks those that it takes.
        `step` says what a step is, and what stands beside the sequence.
        """
        batch = completed(batch, step)
        arranged, lengths = self.layout.arrange(batch), torch.tensor(batch.lengths).long()
        arguments: dict[Role, Any] = {role: torch.tensor(value) for role, value in arranged.by_role().items()}
        beside = {name: torch.tensor(values) for name, values in batch.beside.items()}
        steps, valid = torch.tensor(arranged.steps), torch.tensor(arranged.valid)
        padded_arguments = self.arguments_of(steps, lengths, valid, beside)
        # In a packed row, only the steps have the axes and the form that `arguments_of` gives
        arguments |= {"steps": padded_arguments["steps"]} if self.layout.packed else padded_arguments
        if not self.layout.has_rows_axis:
            arguments = {role: value[0] if value.dim() > 1 else value for role, value in arguments.items()}
        return arguments | {"max-length": int(arguments["max-length"])}

    def arguments_of(
        self,
        steps: Tensor,
        lengths: Tensor | None,
        valid: Tensor | None = None,
        beside: Mapping[str, Tensor] | None = None,
    ) -> dict[Role, Tensor]:
        """The steps, the arguments of `second` and what stands beside them, by role, with the axes of the module.

        Args:
            steps: `[rows, width, features]` float32, or `[rows, width]` token ids.
            lengths: `[rows]`; None to call the module with the steps alone.
            valid: `[rows, width]`, true at valid steps; by default the first `lengths` steps of each row are valid.
            beside: What stands beside the steps, by the names of the graph's inputs; what is not there is left out.
        """
        arguments, beside = self._of_sequence(steps, lengths, valid), beside or {}
        for name in (name for name in self.sequences[1:] if name in beside):
            own_lengths = None if lengths is None else beside[LENGTHS.format(name)].long()
            of_sequence = self._of_sequence(beside[name], own_lengths, None)
            arguments |= {f"{name} {role}": argument for role, argument in of_sequence.items()}
        if STATIC in beside:
            counts = [static.count for static in self.statics]
            # Those of one argument are no part: to divide them would be an operator of the graph
            columns = torch.split(beside[STATIC], counts, dim=1) if len(counts) > 1 else [beside[STATIC]]
            arguments |= {static.role: static.of(values) for static, values in zip(self.statics, columns, strict=True)}
        return arguments

    def _of_sequence(self, steps: Tensor, lengths: Tensor | None, valid: Tensor | None) -> dict[Role, Tensor]:
        """The arguments of one sequence, by role: the steps, and those of `second`; see `arguments_of`."""
        width = steps.shape[1]
        if not self.features_axis:
            steps = steps.squeeze(-1)
        if self.time_first or self.channels_first:
            steps = steps.transpose(0, 1) if self.time_first else steps.mT
        if lengths is None:
            return {"steps": steps}
        valid = step_mask(lengths, width) if valid is None else valid
        usual_forms: dict[Role, Tensor] = {"lengths": lengths, "mask": valid, "padding-mask": ~valid}
        arguments: dict[Role, Tensor] = {"steps": steps}
        for role in _ROLES[self.second]:
            arguments[role] = usual_forms[role]
            if self.form is not None and self.form.role == role.removeprefix("padding-"):
                arguments[role] = self.form.convert(usual_forms[role], width)
        return arguments

    def call(self, module: nn.Module, tensors: Mapping[Role, Any]) -> Any:
        """Calls a module with those of the `tensors`, by role, that it takes; returns what the module returns."""
        arguments = self.arguments or _usual(self.second)
        positional = [tensors[role] for role, name in arguments if name is None]
        return module(*positional, **{name: tensors[role] for role, name in arguments if name is not None})

    def names(self, module: nn.Module) -> dict[Role, str]:
        """The names of the module's parameters by the role of the argument that each gets.

        Empty if `forward` has fewer named parameters than the call has arguments, as with `*args`.
        """
        arguments = self.arguments or _usual(self.second)
        parameters = list(inspect.signature(module.forward).parameters.values())
        positional = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
        if len(positional) < len(arguments):
            return {}
        return {role: name or positional[index] for index, (role, name) in enumerate(arguments)}

    def with_positions(self, module: nn.Module) -> CallSignature | None:
        """This signature, with the positions of the steps as a further argument.

        None if `forward` has no parameter for positions, or gets them already.
        """
        arguments = self.arguments or _usual(self.second)
        name = next(
            (name for name in inspect.signature(module.forward).parameters if role_of(name) == "positions"), None
        )
        if name is None or any(role == "positions" for role, _ in arguments):
            return None
        return replace(self, arguments=(*arguments, ("positions", name)))

    def rows_first(self, logits: Tensor) -> Tensor:
        """Transposes per-step logits to `[rows, width, classes]`; logits `[rows, classes]` stay unchanged."""
        if logits.dim() != 3:
            return logits
        return logits.transpose(0, 1) if self.time_first else logits.mT if self.classes_first else logits

    def alternatives(self) -> Iterator[tuple[CallSignature, str]]:
        """Yields signatures to try if this one fails: other orders of axes, the other mask, other forms.

        Each comes with advice for the user, which ends the sentence "the model runs ...". A signature with a `form` is
        such a trial itself, and has no alternatives.
        """
        if self.form is not None:
            return
        # Other orders of the axes of the steps
        plain = replace(self, time_first=False, channels_first=False, classes_first=False, features_axis=True)
        option = "--time-first" if self.time_first else "--channels-first"
        for signature, axes, change in (
            (replace(plain, channels_first=True), "[rows, features, width]", "pass --channels-first"),
            (replace(plain, time_first=True), "[width, rows, features]", "pass --time-first"),
            (plain, "[rows, width, features]", f"leave {option} out"),
        ):
            if (signature.time_first, signature.channels_first) != (self.time_first, self.channels_first):
                yield signature, f"with steps as {axes}: if that is right, {change}"
        # A mask that is true where the usual one is false
        if self.second in ("mask", "padding-mask"):
            mask: Literal["mask", "padding-mask"] = "padding-mask" if self.second == "mask" else "mask"
            names = tuple((role.replace(self.second, mask), name) for role, name in self.arguments)
            where = "padding" if mask == "padding-mask" else "valid steps"
            hint = f"with a mask that is true at {where}: if that is right, pass --second {mask}"
            yield replace(self, second=mask, arguments=names), hint
        # Lengths or a mask in another form
        roles = {role.removeprefix("padding-") for role in _ROLES[self.second]}
        yield from (
            (replace(self, form=form), f"with {form.text}: begin forward with {form.role} = {form.code}")
            for form in _FORMS
            if form.role in roles
        )


def _usual(second: Second) -> tuple[tuple[Role, str | None], ...]:
    """The arguments of `CallSignature` by default: the steps, then those of `second`, all by position."""
    return (("steps", None), *((role, None) for role in _ROLES[second]))


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Switches off, during the block, torch's fast path of attention layers.

    Its nested tensors cannot be traced, and hold no padding to compare.
    """
    with PROCESS_WIDE:
        was_enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(was_enabled)


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
    static: Sequence[str] = (),
) -> CallSignature:
    """Finds how a module is called: by the user's options, and else by the names of the parameters of its `forward`.

    Args:
        module: The user's module.
        second: What it takes besides the steps; None to find it by the names.
        time_first: Whether steps are `[width, rows, ...]`.
        channels_first: Whether steps are `[rows, features, width]`.
        numbers: Whether steps are numbers, and not token ids: then `inputs_embeds` gets them, and not `input_ids`.
        blind: Whether the module may take the steps alone, because it is to be mended. If it takes lengths or a mask,
            it gets them all the same, unless `second` is `none`.
        positions: Whether a module that requires the positions of the steps gets them, counted from the mask.
        static: The names of arguments that hold static values; others are found by their names. How many values each
            holds is not known yet.

    Raises:
        ConfigurationError: The options exclude each other, or the module has no `forward`.
    """
    if time_first and channels_first:
        raise ConfigurationError("--time-first and --channels-first: steps are in one order of axes or the other")
    if type(module).forward is nn.Module.forward:
        raise ConfigurationError(f"{type(module).__name__} has no forward{part_instead(module)}")
    signature = _read_arguments(module, second, numbers=numbers, blind=blind, positions=positions, static=static)
    arguments = () if signature.arguments == _usual(signature.second) else signature.arguments
    return replace(signature, arguments=arguments, time_first=time_first, channels_first=channels_first)


def _forward_of(module: nn.Module) -> tuple[list[Parameter], list[Parameter], str]:
    """Reads the parameters of a module's `forward`.

    Returns:
        The parameters without `*args` and `**kwargs`; these two, as far as `forward` has them; and the header of the
        module, for messages.
    """
    every = list(inspect.signature(module.forward).parameters.values())
    variadic = [parameter for parameter in every if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
    header = f"{type(module).__name__}.forward({', '.join(parameter.name for parameter in every)})"
    return [parameter for parameter in every if parameter not in variadic], variadic, header


def _read_arguments(
    module: nn.Module,
    second: Second | None,
    *,
    numbers: bool,
    blind: bool,
    positions: bool,
    static: Sequence[str],
) -> CallSignature:
    """Finds what a module's arguments are, from the options of `read_signature`; the axes are left as usual.

    What stands beside the sequence is found first (`beside_arguments`). Of the others the first case that applies
    counts:

    1. With `blind`: the steps alone, if `second` is `none`, or if `forward` requires nothing else and no name of a
       parameter is that of lengths or a mask.
    2. `forward(x, *args)`: what the option `second` says, by position.
    3. Lengths, a mask or both: by the option `second`, or else by the names of the parameters.

    Raises:
        ConfigurationError: `second` is `none` without `blind`, or neither it nor the names say which parameter is what.
        UncheckableError: `forward` takes neither lengths nor a mask, or requires a further argument.
    """
    parameters, variadic, header = _forward_of(module)
    # The parameter of the steps, those of positions, and the others, among which are lengths and mask
    statics = statics_among(parameters, static, header)
    steps = _steps_among([parameter for parameter in parameters if parameter not in statics], numbers=numbers)
    position_roles = _position_roles(parameters) if positions else {}
    known = {*position_roles, *(parameter.name for parameter in (steps, *statics) if parameter is not None)}
    others = [parameter for parameter in parameters if parameter.name not in known]
    beside = BesideParameters(statics, sequences_beside(others, steps))
    others = [parameter for parameter in others if parameter.name not in beside.names]
    # 1. The steps alone
    if second == "none" and not blind:
        raise ConfigurationError(
            f"--second none: {header} then cannot know where a sequence ends: also pass --mend (check: --suggest)"
        )
    takes_any_positional = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in variadic)
    requires_steps_only = second is None and all(
        is_optional(parameter) and meaning_of(parameter.name) is None for parameter in others
    )
    if blind and (second == "none" or requires_steps_only) and (steps or takes_any_positional):
        beside = _with_more_statics(beside, others, header)
        return _signature(parameters, {steps.name: "steps"} if steps else {}, beside)
    # 2. `forward(x, *args)`
    if second is not None and not others and takes_any_positional:
        return CallSignature(second)
    if steps is None or not others:
        raise UncheckableError(
            _why_without_ends(module, header, is_variadic=bool(variadic), has_steps=steps is not None)
        )
    # 3. Lengths, a mask or both
    by_role = _by_option(others, second, header) if second is not None else _by_name(others, header)
    hint = " (--second both passes lengths and a mask)" if second not in (None, "both") else ""
    unpassed = [parameter for parameter in others if parameter not in by_role.values()]
    beside = _with_more_statics(beside, unpassed, header, hint)
    second_roles = {parameter.name: role for role, parameter in by_role.items()}
    return _signature(parameters, second_roles | {steps.name: "steps"} | position_roles, beside)


def _position_roles(parameters: Sequence[Parameter]) -> dict[str, Role]:
    """The role of each required parameter that holds the positions of the steps, by its name."""
    required = (parameter.name for parameter in parameters if not is_optional(parameter))
    return {name: "positions" for name in required if role_of(name) == "positions"}


def _why_without_ends(module: nn.Module, header: str, *, is_variadic: bool, has_steps: bool) -> str:
    """The message for a module that takes neither lengths nor a mask; `header` begins it."""
    parts = "" if has_steps or not [*module.children()] else part_instead(module)
    return (
        f"{header} takes neither lengths nor a mask, so it cannot know where a sequence ends: add `lengths` "
        "([rows], int64) or `mask` ([rows, width], true at valid steps) as a second argument, or pass --mend "
        "(check: --suggest)"
        + ("; if it takes one through *args, say which with --second" if is_variadic else "")
        + (f"; if it only holds the model{parts}" if parts else "")
    )


def _signature(parameters: Sequence[Parameter], roles: dict[str, Role], beside: BesideParameters) -> CallSignature:
    """The signature of these parameters.

    Args:
        parameters: The parameters of `forward`.
        roles: The roles of the arguments of the first sequence, by the name of the parameter.
        beside: The parameters beside the first sequence.
    """
    of_second = {*roles.values()} - {"steps", "positions"}
    second = next(option for option, roles_of_option in _ROLES.items() if {*roles_of_option} == of_second)
    statics = tuple(StaticArgument(parameter.name) for parameter in parameters if parameter in beside.statics)
    roles |= {static.name: static.role for static in statics}
    for steps, end in beside.sequences:
        roles |= {steps.name: f"{steps.name} steps", end.name: f"{steps.name} {second}"}
    first = [name for name, role in roles.items() if role == "steps"] if beside.sequences else []
    return CallSignature(
        second,
        tuple(_arguments_in_order(parameters, roles)),
        statics=statics,
        sequences=(*first, *(steps.name for steps, _ in beside.sequences)),
    )


def _with_more_statics(
    beside: BesideParameters, unpassed: Sequence[Parameter], header: str, hint: str = ""
) -> BesideParameters:
    """Takes required parameters that would get no argument for static values, unless their names say what they are.

    Raises:
        UncheckableError: One is something else; `header` begins the message, and `hint` ends it.
    """  # noqa: DOC502 - what it calls raises it
    more = [parameter for parameter in unpassed if not is_optional(parameter) and may_be_static(parameter)]
    _require_no_more([parameter for parameter in unpassed if parameter not in more], header, hint)
    return BesideParameters((*beside.statics, *more), beside.sequences)


def read_packed_signature(
    module: nn.Module, layout: StepLayout, *, numbers: bool, channels_first: bool = False
) -> CallSignature:
    """Finds how a module is called with sequences that are packed in one row, in the layout `layout`.

    With `numbers`, steps are numbers and not token ids; with `channels_first` they are `[1, features, steps]`.

    Raises:
        ConfigurationError: No argument tells the borders of the sequences, by its name or by the option.
        UncheckableError: `forward` requires an argument of another kind.
    """
    parameters, _, header = _forward_of(module)
    steps = _steps_among(parameters, numbers=numbers)
    if layout.packed is None or steps is None:
        raise UncheckableError(f"{header} takes no steps")
    # The roles of the parameters, by their names. The option may name the one that tells the borders of the sequences
    border_role = ROLE_OF[layout.packed]
    others = [parameter for parameter in parameters if parameter is not steps]
    roles: dict[str, Role] = {
        parameter.name: role for parameter in others if (role := role_of(parameter.name)) is not None
    }
    if (border_name := layout.packed_input) is not None:
        if border_name not in {parameter.name for parameter in others}:
            raise ConfigurationError(f"--packed-input {border_name}: {header} has no such argument beside the steps")
        roles = {name: role for name, role in roles.items() if role != border_role} | {border_name: border_role}
    if border_role not in roles.values():
        raise ConfigurationError(
            f"{header} takes no {layout.packed}, by the names of its arguments: name the argument with --packed-input"
        )
    # Pass the borders, with the largest length that flash-attention takes beside them; others only if they are required
    passed_if_optional: set[Role] = {border_role, "max-length"} if border_role == "borders" else {border_role}
    passed_roles = {
        parameter.name: roles[parameter.name]
        for parameter in others
        if parameter.name in roles and (roles[parameter.name] in passed_if_optional or not is_optional(parameter))
    }
    _require_no_more([parameter for parameter in others if parameter.name not in passed_roles], header)
    arguments = tuple(_arguments_in_order(parameters, passed_roles | {steps.name: "steps"}))
    # `second` only has to differ from `none` here, which means that the module cannot know where a sequence ends
    return CallSignature(second="mask", arguments=arguments, channels_first=channels_first, layout=layout)


def part_instead(module: nn.Module) -> str:
    """The end of an error about a module that only wraps the model: names up to three submodules to return instead.

    Empty if the module has no submodules.
    """
    parts = [f"model.{name} (a {type(part).__name__})" for name, part in module.named_children()]
    return f": return the part that answers from the factory, such as {' or '.join(parts[:3])}" if parts else ""


def _require_no_more(unpassed: Sequence[Parameter], header: str, hint: str = "") -> None:
    """Makes sure that the parameters that get no argument have default values.

    Raises:
        UncheckableError: One has none; `header` begins the message, and `hint` ends it.
    """
    if names := [parameter.name for parameter in unpassed if not is_optional(parameter)]:
        raise UncheckableError(
            f"{header} also requires {', '.join(names)}: give these default values, or wrap the module in another"
            f"{hint}; {BESIDE_HINT}"
        )


def _steps_among(parameters: Sequence[Parameter], *, numbers: bool) -> Parameter | None:
    """The parameter that gets the steps; None if there are no parameters.

    - `inputs_embeds`, if steps are `numbers` and there is such a parameter.
    - If the first parameter is a mask or lengths by its name: the first required one whose name is of another kind.
    - Otherwise the first parameter.
    """
    embeds = next((parameter for parameter in parameters if parameter.name == "inputs_embeds"), None)
    if (numbers and embeds is not None) or not parameters:
        return embeds
    first = parameters[0]
    required = [
        parameter for parameter in parameters[1:] if meaning_of(parameter.name) is None and not is_optional(parameter)
    ]
    is_second = re.fullmatch(r"(.*_)?(masks?|lengths?|lens?|seqlens?)", first.name.lower()) is not None
    return required[0] if is_second and required else first


def _by_option(parameters: Sequence[Parameter], second: Second, header: str) -> dict[Role, Parameter]:
    """The parameter for each role that the option `--second` asks for.

    It is the one whose name means the role; else one whose name may mean it, or means nothing; else any. Of several
    such parameters, required ones come first.

    Raises:
        ConfigurationError: `second` is `both`, and the names do not show lengths and a mask.
    """
    by_meaning: dict[str | None, list[Parameter]] = {}
    for parameter in parameters:
        by_meaning.setdefault(meaning_of(parameter.name), []).append(parameter)
    if second == "both" and not ("lengths" in by_meaning and "mask" in by_meaning):
        raise ConfigurationError(
            f"{header}: --second both needs an argument with `len` in its name and one with `mask` but without "
            "`pad`: rename them, or wrap the module in another that passes them on"
        )
    # For each role, the meanings of a name that may have it, the likeliest first; None is a name that says nothing
    meanings_of_role: Mapping[Role, tuple[str | None, ...]] = {
        "lengths": ("lengths", None),
        "mask": ("mask", "either mask", None),
        "padding-mask": ("either mask", "mask", None),
    }
    likeliest = {
        role: next((by_meaning[meaning] for meaning in meanings_of_role[role] if meaning in by_meaning), parameters)
        for role in _ROLES[second]
    }
    return {role: _required_first(candidates) for role, candidates in likeliest.items()}


def _by_name(parameters: Sequence[Parameter], header: str) -> dict[Role, Parameter]:
    """The parameters whose names say that they are lengths or a mask, by role: all that are required.

    If none of them is required, it is one that is optional.

    Raises:
        ConfigurationError: No name says it; or a name has `pad` in it, which does not say whether its mask is true at
            padding or at valid steps. The message asks for `--second`.
    """
    candidates = [parameter for parameter in parameters if meaning_of(parameter.name) is not None]
    optional = candidates[:1]
    # Beside an attention mask, it is the padding mask that marks where sequences end: it is chosen, and refused below
    if optional and meaning_of(optional[0].name) == "mask":
        unclear_masks = [parameter for parameter in candidates if meaning_of(parameter.name) == "either mask"]
        optional = unclear_masks[:1] or optional
    by_role: dict[Role, Parameter] = {}
    for parameter in [parameter for parameter in candidates if not is_optional(parameter)] or optional:
        name, meaning = parameter.name, meaning_of(parameter.name)
        if meaning == "either mask":
            raise ConfigurationError(_ask_for_second(header, name, "may be true at padding or at valid steps;"))
        if meaning == "lengths" and re.search(r"rel|ratio|frac|share|percent|portion|norm", name.lower()):
            raise ConfigurationError(
                f"{header}: {name} looks like lengths as a share of the longest. A module gets lengths in steps: "
                "divide by x.size(1) in forward, or pass --second lengths if it takes steps"
            )
        by_role.setdefault("lengths" if meaning == "lengths" else "mask", parameter)
    if not by_role:
        unclear = _required_first(parameters)
        name = unclear.name
        default = "it keeps its default value" if is_optional(unclear) else f"give it a default value ({name}=None)"
        raise ConfigurationError(
            _ask_for_second(
                header,
                name,
                "is neither lengths nor a mask by its name; if it is one of them,",
                f". If it is something else, such as a state, labels or a switch, the model does not know where a "
                f"sequence ends: {default}, and --second none --mend makes the graph take lengths (check: --second "
                "none --suggest); or add `lengths` or `mask` to forward",
            )
        )
    return by_role


def _ask_for_second(header: str, name: str, why: str, otherwise: str = "") -> str:
    """The message that asks for `--second`, where the `name` of a parameter does not say what the parameter is.

    `why` follows the name in the message, and `otherwise` ends it.
    """
    return (
        f"{header}: {name} {why} say --second lengths, --second mask (true at valid steps) or --second "
        f"padding-mask (true at padding){otherwise}"
    )


def _required_first(parameters: Sequence[Parameter]) -> Parameter:
    """The first parameter without a default value; if all have one, the first parameter."""
    return next((parameter for parameter in parameters if not is_optional(parameter)), parameters[0])


def _arguments_in_order(
    parameters: Sequence[Parameter], roles: Mapping[str, Role]
) -> Iterator[tuple[Role, str | None]]:
    """Yields the role of each argument in the order of the parameters, and its name (None if passed by position).

    After a parameter that gets no argument, all further arguments are passed by keyword.

    Args:
        parameters: The parameters of `forward`.
        roles: The roles of the arguments, by the name of the parameter.
    """
    is_positional = True
    for parameter in parameters:
        is_positional = is_positional and parameter.kind is not parameter.KEYWORD_ONLY and parameter.name in roles
        if parameter.name in roles:
            yield roles[parameter.name], None if is_positional else parameter.name
