"""The options of a command, declared once: its flags, its Python keywords and their checks come from one model.

    max_length: int = Field(default=1024, ge=1, description="Longest sequence tried.")

`@flags(CheckOptions)` gives a command the flag `--max-length`, `@keywords(CheckOptions)` a function the keyword
`max_length`. Both call the function with a `CheckOptions` as `options`; which were set is in its `model_fields_set`.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from lengthwise.errors import ConfigurationError
from lengthwise.wrong_values import nearest, sentence, types_in

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field looks on the command line, in the metadata of its type, where it is not as its name and type say."""

    name: str | None = None
    metavar: str | None = None
    read: Callable[[Any], Any] | None = None  # makes the value of the text, or of all texts
    several: bool = False  # may stand several times
    in_python_only: bool = False


PYTHON_ONLY: Final = Flag(in_python_only=True)

_OF_CLICK: Final[Mapping[Any, click.ParamType[Any]]] = {
    str: click.STRING,
    int: click.INT,
    float: click.FLOAT,
    Path: click.Path(path_type=Path),
}


class WrongOptions(ConfigurationError):
    """Options that are unknown, of the wrong type or out of bounds; `named` is the form of a name in the message."""

    def __init__(self, error: ValidationError, named: Callable[[str], str] = str) -> None:
        super().__init__(_messages(error, named))
        self.error = error


class Options(BaseModel):
    """A table of options, checked when it is made, in Python and from flags alike; raises WrongOptions."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**{name: _plain(value) for name, value in values.items() if value is not None})
        except ValidationError as error:
            raise WrongOptions(error) from error


def flags(model: type[Options], argument: str = "options") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command a flag for each field of a model; it receives them as one object, the `argument`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**values: Any) -> Any:
            chosen = {name: values.pop(name) for name in model.model_fields if name in values}
            try:
                options = model(**chosen)
            except WrongOptions as error:
                raise WrongOptions(error.error, lambda name: _flag(model, name)) from error
            return command(**{argument: options}, **values)

        return add_flags(model.model_fields)(run)

    return decorate


def keywords(model: type[Options]) -> Callable[[Function], Function]:
    """Gives a function a keyword for each field of a model, in its signature and `Args:`, and `options` for all."""

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        first = [one for one in own.parameters.values() if one.name != "options"]
        of_fields = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
            for name, field in model.model_fields.items()
        ]
        whole = inspect.Parameter("options", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=model | None)
        signature = own.replace(parameters=[*first, *of_fields, whole])

        @functools.wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            for name in named.keys() - signature.parameters:
                near = nearest(name, signature.parameters)
                raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{near}")
            bound = signature.bind(*arguments, **named).arguments
            of_call = {one.name: bound.pop(one.name) for one in first if one.name in bound}
            options = bound.pop("options", None)
            if options is None or bound:
                before = {} if options is None else {name: getattr(options, name) for name in options.model_fields_set}
                options = model(**{**before, **bound})
            return function(**of_call, options=options)

        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__doc__ = _documented(inspect.getdoc(function) or "", model)
        return called  # type: ignore[return-value]

    return decorate


def add_flags(
    fields: Mapping[str, FieldInfo], *, as_texts: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds an option of click for each field, None if not set; `as_texts` if values have other sources, too."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed([*fields]):
            flag = _of(fields[name])
            if not flag.in_python_only:
                command = _option(name, fields[name], flag, as_texts=as_texts)(command)
        return command

    return add


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """The values of `NAME=VALUE` by their names.

    Raises:
        ValueError: A text has another form.
    """
    for text in texts:
        if not text.partition("=")[0] or "=" not in text:
            raise ValueError(f"must be NAME=VALUE, got {text!r}")
    return {text.partition("=")[0]: text.partition("=")[2] for text in texts}


def _option(name: str, field: FieldInfo, flag: Flag, *, as_texts: bool) -> Callable[[Any], Any]:
    """The option of click for a field: a switch of a bool, a choice of a Literal, else a value of its type."""
    kinds = types_in(field.annotation)
    choices = [kind for kind in kinds if isinstance(kind, str)]
    common: dict[str, Any] = {"help": _help(field), "default": None}
    dashed = flag.name or "--" + name.replace("_", "-")
    if bool in kinds:
        no = "--no-" + name.replace("_", "-")
        if as_texts or field.default is None:
            return click.option(f"{dashed}/{no}", name, **common)
        return click.option(no if field.default else dashed, name, is_flag=True, flag_value=not field.default, **common)
    if choices:
        kind: dict[str, Any] = {"metavar": "|".join(choices)} if as_texts else {"type": click.Choice(choices)}
    elif as_texts:
        kind = {"metavar": name.rsplit("_", 1)[-1].upper()}
    else:
        kind = {"type": next((_OF_CLICK[each] for each in kinds if each in _OF_CLICK), click.STRING)}
    if flag.read is not None or flag.several:
        kind = {"multiple": flag.several, "callback": functools.partial(_read, flag)}
    return click.option(dashed, name, metavar=flag.metavar or kind.pop("metavar", None), **kind, **common)


def _read(flag: Flag, _context: click.Context, option: click.Parameter, value: Any) -> Any:
    if not value or flag.read is None:
        return value or None
    try:
        return flag.read(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=option) from error


def _of(field: FieldInfo) -> Flag:
    return next((each for each in field.metadata if isinstance(each, Flag)), Flag())


def _flag(model: type[Options], name: str) -> str:
    own = _of(model.model_fields[name]).name if name in model.model_fields else None
    return own or "--" + name.replace("_", "-")


def _help(field: FieldInfo) -> str:
    unsaid = field.default in (PydanticUndefined, None, (), {}) or isinstance(field.default, bool)
    return f"{field.description}" + ("" if unsaid else f"  [default: {field.default}]")


def _documented(text: str, model: type[Options]) -> str:
    """A docstring with the options at the end of its section `Args:`."""
    meanings = {name: field.description for name, field in model.model_fields.items()}
    meanings["options"] = f"All of these in one `{model.__name__}`; a keyword beside it replaces its value."
    indented = textwrap.TextWrapper(120, initial_indent="    ", subsequent_indent="        ")
    lines = [indented.fill(f"{name}: {meaning}") for name, meaning in meanings.items()]
    before, returns, after = text.partition("\n\nReturns:")
    return "\n".join([before, *lines]) + returns + after


def _messages(error: ValidationError, named: Callable[[str], str]) -> str:
    """One message for all wrong options; of an option with several types, the error of the first type."""
    first: dict[str, ErrorDetails] = {}
    for item in error.errors():
        first.setdefault(str(item["loc"][0]) if item["loc"] else "", item)
    parts = []
    for name, item in first.items():
        if item["type"] == "extra_forbidden":
            parts.append(f"there is no option {named(name)}")
        elif not name:
            parts.append(sentence(item))
        else:
            parts.append(f"{named(name)} {sentence(item)}, got {item['input']!r:.80}")
    return "; ".join(parts)


def _plain(value: Any) -> Any:
    """A number of NumPy, as a grid of scikit-learn holds them, as a number of Python; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
