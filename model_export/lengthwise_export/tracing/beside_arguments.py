"""The parameters of a module's `forward` that stand beside the first sequence: static values, and further sequences.

    forward(x, lengths, static)                          static values `[rows, n]`
    forward(x, lengths, age, sex)                        static values, one each
    forward(title, title_lengths, body, body_lengths)    a further sequence, `body`, with lengths of its own
    forward(x1, x2, len1, len2)                          the same

Further sequences are found by the names of their lengths or masks; static values by their names, by the option
`--static`, or because nothing else is left that they could be. How many values an argument holds is found by trial.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Final, Literal

from torch import Tensor

from lengthwise_export.errors import ConfigurationError
from lengthwise_export.layouts import role_of
from lengthwise_export.onnx_graphs.beside import is_static_name, paired

_NO_STATIC_NAMES: Final = re.compile(r"y|labels?|targets?|h|hidden|[hc]_?[0nx]|(hidden_?)?states?|cache|token_type_ids")
"""Names of required arguments that are known to be something else."""


@dataclass(frozen=True, slots=True)
class StaticArgument:
    """An argument that holds static values, `[rows, count]` float32 unless it says otherwise."""

    name: str  # of the parameter
    count: int = 1  # how many values it holds
    is_column: bool = False  # Whether it is `[rows]`, of one value
    is_code: bool = False  # Whether it is int64: the index of a category

    @property
    def role(self) -> str:
        """The role of the argument."""
        return f"static {self.name}"

    def of(self, values: Tensor) -> Tensor:
        """The argument for its values `[rows, count]` float32."""
        values = values[:, 0] if self.is_column else values
        return values.long() if self.is_code else values


@dataclass(frozen=True, slots=True)
class BesideParameters:
    """The parameters of `forward` that stand beside the first sequence."""

    statics: tuple[Parameter, ...] = ()
    sequences: tuple[tuple[Parameter, Parameter], ...] = ()  # the steps of each further one, and its lengths or mask

    @property
    def names(self) -> set[str]:
        """The names of all of them."""
        return {parameter.name for parameter in (*self.statics, *(one for pair in self.sequences for one in pair))}


def is_optional(parameter: Parameter) -> bool:
    """Whether a parameter has a default value."""
    return parameter.default is not parameter.empty


def meaning_of(name: str) -> Literal["lengths", "mask", "either mask"] | None:
    """What an argument is by its name; None if the name does not say it.

    A name with `pad` is of `either mask`: one that is true at valid steps, or one that is true at padding.
    """
    lower = name.lower()
    if "pad" in lower:
        return "either mask"
    if "len" in lower:
        return "lengths"
    return "mask" if "mask" in lower else None


def statics_among(parameters: Sequence[Parameter], static: Sequence[str], header: str) -> tuple[Parameter, ...]:
    """The parameters with static values: those of the option `--static`, and required ones by their names.

    By its name, none is taken if nothing else could hold the steps then.

    Raises:
        ConfigurationError: The option names an argument that there is not; `header` begins the message.
    """
    if unknown := sorted({*static} - {parameter.name for parameter in parameters}):
        raise ConfigurationError(f"--static {', '.join(unknown)}: {header} has no such argument")
    named = [parameter for parameter in parameters if parameter.name in static]
    likely = [one for one in parameters if not is_optional(one) and (one in named or is_static_name(one.name))]
    has_steps = any(meaning_of(one.name) is None and one not in likely for one in parameters)
    return tuple(one for one in parameters if one in named or (has_steps and one in likely))


def sequences_beside(others: Sequence[Parameter], steps: Parameter | None) -> tuple[tuple[Parameter, Parameter], ...]:
    """The parameters of further sequences, found by the names of their lengths or masks, of which there are several.

    Args:
        others: All parameters but that of the first sequence's steps and those with static values.
        steps: The parameter of the steps; None if there is none.
    """
    required = [parameter for parameter in others if not is_optional(parameter)]
    values = [parameter for parameter in required if may_be_static(parameter)]
    for meaning in ("lengths", "mask", "either mask"):
        ends = [parameter for parameter in required if meaning_of(parameter.name) == meaning]
        if steps is not None and len(ends) > 1 and values:
            by_name = {parameter.name: parameter for parameter in (steps, *values, *ends)}
            pairs = paired([steps.name, *(one.name for one in values)], [end.name for end in ends])
            return tuple((by_name[name], by_name[end]) for name, end in pairs.items() if name != steps.name)
    return ()


def may_be_static(parameter: Parameter) -> bool:
    """Whether nothing in the name of a parameter says that it holds no static values."""
    name = parameter.name.lower()
    return meaning_of(name) is None and role_of(name) is None and _NO_STATIC_NAMES.fullmatch(name) is None
