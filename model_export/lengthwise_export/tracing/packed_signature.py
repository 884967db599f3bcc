"""How a module is called with sequences that are packed in one row: which argument tells it the borders."""

from __future__ import annotations

import inspect

from torch import nn

from lengthwise.errors import ConfigurationError
from lengthwise_export.errors import UncheckableError
from lengthwise_export.layouts import ROLE_OF, StepLayout, role_of
from lengthwise_export.tracing.call_signature import (
    CallSignature,
    Role,
    arguments_in_order,
    require_no_more,
    steps_among,
)


def read_packed_signature(
    module: nn.Module, layout: StepLayout, *, numbers: bool, channels_first: bool = False
) -> CallSignature:
    """How a module takes rows that are packed as `layout` says.

    Raises:
        ConfigurationError: No argument tells the borders, by its name or by the option.
        UncheckableError: `forward` requires an argument of another kind.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    shown = f"{type(module).__name__}.forward({', '.join(each.name for each in parameters)})"
    steps = steps_among(named, numbers=numbers)
    if layout.packed is None or steps is None:
        raise UncheckableError(f"{shown} takes no steps")
    wanted = ROLE_OF[layout.packed]
    others = [each for each in named if each is not steps]
    roles: dict[str, Role] = {each.name: role for each in others if (role := role_of(each.name)) is not None}
    if (own := layout.packed_input) is not None:
        if own not in {each.name for each in others}:
            raise ConfigurationError(f"--packed-input {own}: {shown} has no such argument beside the steps")
        roles = {name: role for name, role in roles.items() if role != wanted} | {own: wanted}
    if wanted not in roles.values():
        raise ConfigurationError(
            f"{shown} takes no {layout.packed}, by the names of its arguments: name the argument with --packed-input"
        )
    always: set[Role] = {wanted, "max-length"} if wanted == "borders" else {wanted}
    passed = {
        each.name: roles[each.name]
        for each in others
        if each.name in roles and (roles[each.name] in always or each.default is each.empty)
    }
    require_no_more([each for each in others if each.name not in passed], shown)
    arguments = tuple(arguments_in_order(named, passed | {steps.name: "steps"}))
    return CallSignature(second="mask", arguments=arguments, channels_first=channels_first, layout=layout)
