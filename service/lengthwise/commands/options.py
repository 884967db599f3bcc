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
    """How a field looks on the command line; in the metadata of its type, if that differs from its name and type."""

    name: str | None = None  # None: `--` and the field's name
    metavar: str | None = None  # what the help shows for the value
    read: Callable[[Any], Any] | None = None  # converts the text (with `several`, the texts) to the value
    several: bool = False  # whether the flag may be repeated
    in_python_only: bool = False  # whether the field has no flag


PYTHON_ONLY: Final = Flag(in_python_only=True)

_OF_CLICK: Final[Mapping[Any, click.ParamType[Any]]] = {
    str: click.STRING,
    int: click.INT,
    float: click.FLOAT,
    Path: click.Path(path_type=Path),
}


class WrongOptions(ConfigurationError):
    """Options that are unknown, of the wrong type or out of bounds. `named` gives the option's form in the message."""

    def __init__(self, error: ValidationError, option_name: Callable[[str], str] = str) -> None:
        super().__init__(_messages(error, option_name))
        self.error = error


class Options(BaseModel):
    """A model of options, validated in the same way from Python and from flags; an option of None has its default."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        """Validates the values; one that is None counts as not set.

        Raises:
            WrongOptions: Some are wrong; the message names all of them.
        """
        try:
            super().__init__(**{name: _python_value(value) for name, value in values.items() if value is not None})
        except ValidationError as error:
            raise WrongOptions(error) from error


def flags(model: type[Options], argument: str = "options") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a decorator for a command: adds a flag for each field of `model`, an `Options`.

    The command is called with one `model`, which has the values of the flags, as its argument `argument`.
    """
    return functools.partial(_with_flags, model, argument)


def _with_flags(model: type[Options], argument: str, command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a flag for each field of `model` to a command; returns the function for click."""

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        """Makes a `model` of the flags' values, and runs the command with it and with its other values.

        Raises:
            WrongOptions: A flag is wrong; the message has the flag, not the name of the field.
        """
        chosen_values = {name: values.pop(name) for name in model.model_fields if name in values}
        try:
            options = model(**chosen_values)
        except WrongOptions as error:
            raise WrongOptions(error.error, lambda name: _flag_name(model, name)) from error
        return command(**{argument: options}, **values)

    return add_flags(model.model_fields)(run)


def keywords(model: type[Options]) -> Callable[[Function], Function]:
    """Makes a decorator for a function with an argument `options`: its caller may pass each field as a keyword.

    The function is then called with one `options`, a `model` of these keywords. A caller may pass `options` as well:
    then the keywords replace the values in it. The signature and the docstring list the keywords.
    """
    return functools.partial(_with_keywords, model)


def _with_keywords(model: type[Options], function: Function) -> Function:
    """Returns a function that takes a keyword for each field of `model`, and passes them to `function` as `options`."""
    old_signature = inspect.signature(function)
    own_parameters = [parameter for parameter in old_signature.parameters.values() if parameter.name != "options"]
    field_parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
        for name, field in model.model_fields.items()
    ]
    options_parameter = inspect.Parameter(
        "options", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=model | None
    )
    signature = old_signature.replace(parameters=[*own_parameters, *field_parameters, options_parameter])

    @functools.wraps(function)
    def called(*arguments: Any, **keyword_values: Any) -> Any:
        """Makes one `options` of the keywords, and calls the function with it and its other arguments.

        Raises:
            TypeError: There is no such keyword; the message names a similar one.
            WrongOptions: A keyword has a wrong value.
        """  # noqa: DOC502 - what it calls raises one of them
        for name in keyword_values.keys() - signature.parameters:
            hint = nearest(name, signature.parameters)
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{hint}")
        values = signature.bind(*arguments, **keyword_values).arguments
        chosen_values = {name: values.pop(name) for name in model.model_fields if name in values}
        options = values.pop("options", None)
        # The keywords replace the values that are set in `options`: a new model validates all of them together.
        if options is None or chosen_values:
            set_values = {} if options is None else {name: getattr(options, name) for name in options.model_fields_set}
            options = model(**{**set_values, **chosen_values})
        return function(**values, options=options)

    called.__signature__ = signature  # type: ignore[attr-defined]
    called.__doc__ = _with_options_documented(inspect.getdoc(function) or "", model)
    return called  # type: ignore[return-value]


def add_flags(
    fields: Mapping[str, FieldInfo], *, as_texts: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a decorator for a command that adds click's option for each field.

    An option that the user does not set has the value None.

    `as_texts`: click checks nothing, and passes each value as the text that the user wrote. `serve` checks it later,
    together with values from variables and the file.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        """Adds the options, and returns the command; the last one is added first, so that the help has their order."""
        for name in reversed([*fields]):
            flag = _flag_of(fields[name])
            if not flag.in_python_only:
                command = _click_option(name, fields[name], flag, as_texts=as_texts)(command)
        return command

    return add


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """The values of texts `NAME=VALUE` by their names.

    Raises:
        ValueError: A text has another form.
    """
    for text in texts:
        if not text.partition("=")[0] or "=" not in text:
            raise ValueError(f"must be NAME=VALUE, got {text!r}")
    return {text.partition("=")[0]: text.partition("=")[2] for text in texts}


def _click_option(name: str, field: FieldInfo, flag: Flag, *, as_texts: bool) -> Callable[[Any], Any]:
    """Makes click's option for a field; returns the decorator that adds it.

    - A bool is a switch: `--name/--no-name` if it has no default or `as_texts` is set; otherwise only the flag that
      changes the default.
    - A Literal is a choice of its words.
    - Any other field is a value of its type; with `as_texts`, any text.
    - A field whose `Flag` has `read`, or may be repeated, gets its value from `_read_texts`.
    """
    field_types = types_in(field.annotation)
    choices = [choice for choice in field_types if isinstance(choice, str)]
    common: dict[str, Any] = {"help": _help(field), "default": None}
    flag_name = flag.name or "--" + name.replace("_", "-")
    if bool in field_types:
        negative_name = "--no-" + name.replace("_", "-")
        if as_texts or field.default is None:
            return click.option(f"{flag_name}/{negative_name}", name, **common)
        return click.option(
            negative_name if field.default else flag_name, name, is_flag=True, flag_value=not field.default, **common
        )
    # How click parses the value, and what the help shows for it
    if choices:
        keywords: dict[str, Any] = {"metavar": "|".join(choices)} if as_texts else {"type": click.Choice(choices)}
    elif as_texts:
        keywords = {"metavar": name.rsplit("_", 1)[-1].upper()}
    else:
        click_types = [_OF_CLICK[field_type] for field_type in field_types if field_type in _OF_CLICK]
        keywords = {"type": click_types[0] if click_types else click.STRING}
    if flag.read is not None or flag.several:
        keywords = {"multiple": flag.several, "callback": functools.partial(_read_texts, flag)}
    return click.option(flag_name, name, metavar=flag.metavar or keywords.pop("metavar", None), **keywords, **common)


def _read_texts(flag: Flag, _context: click.Context, option: click.Parameter, value: Any) -> Any:
    """The callback of click that converts the texts of an option by `flag.read`.

    Returns None if the user did not set the option; the texts as they are if there is no `flag.read`.

    Raises:
        BadParameter: A text has another form.
    """
    if not value or flag.read is None:
        return value or None
    try:
        return flag.read(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=option) from error


def _flag_of(field: FieldInfo) -> Flag:
    """The `Flag` in the metadata of a field; the default one if it has none."""
    return next((item for item in field.metadata if isinstance(item, Flag)), Flag())


def _flag_name(model: type[Options], name: str) -> str:
    """The flag of a field, or the flag that an unknown field would have."""
    flag_name = _flag_of(model.model_fields[name]).name if name in model.model_fields else None
    return flag_name or "--" + name.replace("_", "-")


def _help(field: FieldInfo) -> str:
    """The help of a field, with its default unless that is empty or a bool."""
    has_no_default = field.default in (PydanticUndefined, None, (), {}) or isinstance(field.default, bool)
    return f"{field.description}" + ("" if has_no_default else f"  [default: {field.default}]")


def _with_options_documented(text: str, model: type[Options]) -> str:
    """Adds the options to a docstring, at the end of its section `Args:`.

    That is its last section, or the one before `Returns:`.
    """
    meanings = {name: field.description for name, field in model.model_fields.items()}
    meanings["options"] = f"All of these in one `{model.__name__}`; a keyword beside it replaces its value."
    indented = textwrap.TextWrapper(120, initial_indent="    ", subsequent_indent="        ")
    lines = [indented.fill(f"{name}: {meaning}") for name, meaning in meanings.items()]
    head, returns, tail = text.partition("\n\nReturns:")
    return "\n".join([head, *lines]) + returns + tail


def _messages(error: ValidationError, option_name: Callable[[str], str]) -> str:
    """Joins pydantic's errors to one message for all wrong options.

    If an option may have several types, pydantic has an error for each; the message has the first one. `option_name` is
    called with the name of a field, and returns its form in the message.
    """
    first_errors: dict[str, ErrorDetails] = {}
    for item in error.errors():
        first_errors.setdefault(str(item["loc"][0]) if item["loc"] else "", item)
    parts = []
    for name, item in first_errors.items():
        if item["type"] == "extra_forbidden":
            parts.append(f"there is no option {option_name(name)}")
        elif not name:
            parts.append(sentence(item))
        else:
            parts.append(f"{option_name(name)} {sentence(item)}, got {item['input']!r:.80}")
    return "; ".join(parts)


def _python_value(value: Any) -> Any:
    """Converts a number of NumPy, as in a grid of scikit-learn, to one of Python; returns any other value as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
