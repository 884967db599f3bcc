"""`lengthwise import`: what the settings of MLServer and TorchServe become here, and the commands that follow.

What a setting becomes is data, `foreign_settings.toml`; here the files are read and values converted.
"""

from __future__ import annotations

import re
import shlex
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from os.path import isfile
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

import click
import orjson
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lengthwise.commands.command import Command
from lengthwise.errors import ConfigurationError
from lengthwise.files import read
from lengthwise.settings import Settings

SETTINGS: Final = tomllib.loads(Path(__file__).with_name("foreign_settings.toml").read_text("utf-8"))
_FILES: Final = {"model-settings.json": "mlserver", "settings.json": "mlserver", "config.properties": "torchserve"}
_UNKNOWN: Final = {"note": "not known here: look for it in docs/coming-from.md, or in lengthwise serve --help"}
_PROPERTY: Final = re.compile(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)")  # a key, a separator or blanks, and a value
_ESCAPE: Final = re.compile(r"\\(u([0-9a-fA-F]{4})|.)")
_LENGTHS: Final = re.compile(r".*(len|sizes?$|counts?$).*", re.I)
_SOURCE: Final = "package.module:factory --checkpoint weights.pt"  # TorchScript is not read: its source is exported


class Setting(NamedTuple):
    """A setting, and the options that it becomes, or why it becomes none."""

    key: str
    value: Any
    options: tuple[tuple[str, str], ...]
    note: str


class ForeignModel(NamedTuple):
    """A model of another server: its file, if that is known, and its inputs by name."""

    name: str
    file: str | None
    inputs: tuple[str, ...] = ()


def _host_and_port(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    if parts.hostname is None or parts.port is None:  # a socket of a file, or a host alone
        raise ValueError
    return parts.hostname, str(parts.port)


def _text_or_number(value: Any) -> list[str]:
    if type(value) not in (int, str):  # a bool is an int, too
        raise TypeError
    return [str(value)]


CONVERSIONS: Final[Mapping[str, Callable[[Any], list[str]]]] = {
    "as it is": _text_or_number,
    "address": lambda value: [*_host_and_port(value)],
    "port": lambda value: [_host_and_port(value)[1]],
    "seconds": lambda value: [str(round(float(value) * 1000))],
    "origins": lambda value: [",".join(value if isinstance(value := value.get("allow_origins"), list) else [value])],
    "debug": lambda value: ["debug" if str(value).lower() == "true" else "info"],
    "structured": lambda value: ["json" if str(value).lower() == "true" else "text"],
}  # a value of another server -> the value of each option


def _setting(server: str, key: str, value: Any) -> Setting:
    entry = SETTINGS[server].get(key, _UNKNOWN)
    if "option" not in entry:
        return Setting(key, value, (), entry["note"])
    try:
        values = CONVERSIONS[entry.get("as", "as it is")](value)
        options = tuple(zip(entry["option"].split(", "), values, strict=True))
        for option, text in options:
            field = Settings.model_fields[option.removeprefix("--").replace("-", "_")]
            TypeAdapter(Annotated[field.annotation, field]).validate_python(text)  # type: ignore[arg-type]  # of a type that is known at run time only
    except (AttributeError, TypeError, ValueError, OverflowError):
        return Setting(key, value, (), f"not a value of this setting; {entry['option']} would take it")
    return Setting(key, value, options, "")


def _properties(text: str) -> dict[str, str]:
    """The properties of a Java file: a line each, unless a backslash continues it; `#` and `!` begin comments."""
    lines = re.sub(r"(?<!\\)((?:\\\\)*)\\\r?\n[ \t]*", r"\1", text).splitlines()
    pairs = (_PROPERTY.match(line.strip()) for line in lines if not re.match(r"\s*([#!]|$)", line))
    return {_unescaped(pair[1]): _unescaped(pair[2]) for pair in pairs if pair}


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(
        lambda one: chr(int(one[2], 16)) if one[2] else {"n": "\n", "t": "\t"}.get(one[1], one[1]),
        text,
    )


def _json(text: str, source: str) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
        orjson.dumps(document)  # it reads deeper than it writes
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise ConfigurationError(f"{source} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{source} must hold an object, got {type(document).__name__}")
    return document


def _of_mlserver(document: dict[str, Any], path: Path) -> tuple[list[Setting], list[ForeignModel]]:
    parameters = document.pop("parameters", None) or {}
    if not isinstance(parameters, dict):
        raise ConfigurationError(f"{path}: parameters must be an object, got {type(parameters).__name__}")
    settings = [_setting("mlserver", key, value) for key, value in (document | parameters).items()]
    if path.name != "model-settings.json":
        return settings, []
    inputs = document.get("inputs")
    names = tuple(str(one.get("name")) for one in inputs if isinstance(one, dict)) if isinstance(inputs, list) else ()
    scheme, _, uri = str(parameters.get("uri") or "").rpartition("://")
    file = str(path.parent / uri) if scheme in ("", "file") else Path(uri).name  # which is downloaded first
    return settings, [ForeignModel(str(document.get("name") or path.parent.resolve().name), file, names)]


def _of_torchserve(document: dict[str, str], path: Path) -> tuple[list[Setting], list[ForeignModel]]:
    settings, models = [_setting("torchserve", key, value) for key, value in document.items() if key != "models"], []
    store = path.parent / document.get("model_store", ".")
    for name, versions in _json(document.get("models") or "{}", f"{path}: models").items():
        for how in versions.values() if isinstance(versions, dict) else ():
            if isinstance(how, dict):
                settings += [_setting("torchserve", key, value) for key, value in how.items()]
                models.append(ForeignModel(name, _serialized(store / str(how.get("marName")))))
    return settings, models


def _serialized(archive: Path) -> str | None:
    """The file of weights in a model archive, as `ARCHIVE/FILE`; None where the archive cannot be read."""
    try:
        with zipfile.ZipFile(archive) as members:
            described = orjson.loads(members.open("MAR-INF/MANIFEST.json").read(2**20))  # of what may be a bomb
        return f"{archive}/{described['model']['serializedFile']}"
    except Exception:  # zipfile has an error of its own for each kind of damage, and so has each compression
        return None


def _commands(models: list[ForeignModel], options: Mapping[str, str]) -> Iterator[str]:
    """The commands that serve these models with these options."""
    from lengthwise.runtime.manifest import is_name  # help does without what it imports

    for model in models:
        file, roles = model.file or "", _roles(model.inputs)
        if file.endswith(".onnx") and not isfile(file) and isfile(Path(file).parent):  # in an archive
            yield shlex.join(["unzip", "-j", str(Path(file).parent), Path(file).name])
            file = Path(file).name
        target = shlex.quote(file) if file.endswith(".onnx") else _SOURCE
        name = model.name if is_name(model.name) else "NAME"
        named = "".join(f" {role} {shlex.quote(each)}" for role, each in roles.items() if file.endswith(".onnx"))
        yield f"lengthwise export {target}{named} --labels A,B --out models/{name}"
    yield shlex.join(["lengthwise", "serve", "models", *(word for pair in options.items() for word in pair)])


def _roles(inputs: tuple[str, ...]) -> dict[str, str]:
    """The option of `export` for each input, by its name: a mask, lengths, else the steps."""
    options = [
        "--mask" if "mask" in name.lower() else "--lengths" if _LENGTHS.fullmatch(name) else "--values"
        for name in inputs
    ]
    return dict(zip(options, inputs, strict=True)) if len({*options}) == len(options) else {}


@click.command(
    "import",
    cls=Command,
    epilog="Nothing is written. What --labels are, and which file of Python makes a module, no settings say: put them "
    "into the commands that are printed.",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(exists=True, path_type=Path))
def import_settings(files: tuple[Path, ...]) -> None:
    """Reads settings of MLServer or TorchServe: what each becomes here, and the commands to run.

    FILE is a model-settings.json or settings.json of MLServer, a config.properties of TorchServe, or a folder of them.

    \b
    Example:
      lengthwise import model-settings.json settings.json
      lengthwise import config.properties

    \f

    Raises:
        ConfigurationError: A file has another name, or cannot be read.
    """  # noqa: D301 - click wants a real backspace
    settings: list[Setting] = []
    models: list[ForeignModel] = []
    for path in _paths(files):
        try:
            text = read(path, 2**24).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path} is not text in UTF-8") from error
        is_mlserver = _FILES[path.name] == "mlserver"
        parts = _of_mlserver(_json(text, str(path)), path) if is_mlserver else _of_torchserve(_properties(text), path)
        settings, models = settings + parts[0], models + parts[1]
    port = dict(pair for setting in settings for pair in setting.options).get("--port")
    settings = [
        setting._replace(options=(), note="/metrics is at --port, too")
        if setting.options == (("--admin-port", port),)
        else setting
        for setting in settings
    ]
    value = Column("value", max_width=40, no_wrap=True, overflow="ellipsis")
    table = Table("setting", value, "becomes", box=None, pad_edge=False)
    for setting in settings:
        shown = setting.value if isinstance(setting.value, str) else orjson.dumps(setting.value).decode()
        becomes = " ".join(map(" ".join, setting.options)) or f"no option: {setting.note}"
        table.add_row(*map(_text, (setting.key, shown, becomes)))
    console = Console(highlight=False, soft_wrap=False)
    console.print(table, "", sep="\n", markup=False)
    for command in _commands(models, dict(pair for setting in settings for pair in setting.options)):
        console.print(_text(command), soft_wrap=True)


def _paths(files: tuple[Path, ...]) -> Iterator[Path]:
    for path in files:
        inside = sorted(each for name in _FILES for each in path.rglob(name)) if path.is_dir() else [path]
        if not inside or inside[0].name not in _FILES:
            raise ConfigurationError(f"{path}: there is no {', '.join(_FILES)}")
        yield from inside


def _text(text: str) -> Text:
    """A text for a terminal, without what moves its cursor or changes its colours."""
    return Text("".join(each if each.isprintable() else "\ufffd" for each in text))
