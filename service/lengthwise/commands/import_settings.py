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
_LENGTHS: Final = re.compile(r".*(len|sizes?$|counts?$).*", re.I)  # names of inputs that are lengths
_SOURCE: Final = "package.module:factory --checkpoint weights.pt"  # TorchScript is not read: its source is exported


class Setting(NamedTuple):
    """A setting of another server, with the options that it becomes here, or a note why it becomes none."""

    key: str
    value: Any
    options: tuple[tuple[str, str], ...]  # flags of `lengthwise serve` with their values; () if there is none
    note: str  # '' if there is an option


class ForeignModel(NamedTuple):
    """A model of another server."""

    name: str
    file: str | None  # of its weights; None if that is not known
    inputs: tuple[str, ...] = ()  # their names


def _host_and_port(address: str) -> tuple[str, str]:
    """The host and the port of an address, as texts.

    Raises:
        ValueError: The address lacks one of them, as the path of a socket does.
    """
    parts = urlsplit(address)
    if parts.hostname is None or parts.port is None:
        raise ValueError
    return parts.hostname, str(parts.port)


def _text_or_number(value: Any) -> list[str]:
    """Converts a text or a whole number to the value of one option: a list with its text.

    Raises:
        TypeError: The value is something else.
    """
    if type(value) not in (int, str):  # a bool is an int, too
        raise TypeError
    return [str(value)]


def _origins(cors: Any) -> list[str]:
    """Converts a table of settings for web pages, whose `allow_origins` is one origin or a list of them."""
    origins = cors.get("allow_origins")
    return [",".join(origins if isinstance(origins, list) else [origins])]


CONVERSIONS: Final[Mapping[str, Callable[[Any], list[str]]]] = {
    "as it is": _text_or_number,
    "address": lambda value: [*_host_and_port(value)],
    "port": lambda value: [_host_and_port(value)[1]],
    "seconds": lambda value: [str(round(float(value) * 1000))],
    "origins": _origins,
    "debug": lambda value: ["debug" if str(value).lower() == "true" else "info"],
    "structured": lambda value: ["json" if str(value).lower() == "true" else "text"],
}  # a value of another server -> the value of each option


def _convert_setting(server: str, key: str, value: Any) -> Setting:
    """Converts a setting of another server to options of `lengthwise serve`, by its entry in `foreign_settings.toml`.

    An entry has an option (or several, `--host, --port`) and `as`, the name of a conversion of the value; or a note.
    A value that the options do not take becomes a note, too.
    """
    entry = SETTINGS[server].get(key, _UNKNOWN)
    if "option" not in entry:
        return Setting(key, value, (), entry["note"])
    try:
        values = CONVERSIONS[entry.get("as", "as it is")](value)  # one for each option
        options = tuple(zip(entry["option"].split(", "), values, strict=True))
        for option, text in options:
            field = Settings.model_fields[option.removeprefix("--").replace("-", "_")]
            TypeAdapter(Annotated[field.annotation, field]).validate_python(text)  # type: ignore[arg-type]  # of a type that is known at run time only
    except (AttributeError, TypeError, ValueError, OverflowError):
        return Setting(key, value, (), f"not a value of this setting; {entry['option']} would take it")
    return Setting(key, value, options, "")


def _properties(text: str) -> dict[str, str]:
    """Parses a file of Java properties: a line each, unless a backslash continues it; `#` and `!` begin comments."""
    # Joins a line that ends in an odd number of backslashes to the next one: an even number are escaped backslashes.
    lines = re.sub(r"(?<!\\)((?:\\\\)*)\\\r?\n[ \t]*", r"\1", text).splitlines()
    pairs = (_PROPERTY.match(line.strip()) for line in lines if not re.match(r"\s*([#!]|$)", line))
    return {_unescaped(pair[1]): _unescaped(pair[2]) for pair in pairs if pair}


def _unescaped(text: str) -> str:
    """A key or value of Java properties without its escapes."""
    return _ESCAPE.sub(
        lambda escape: chr(int(escape[2], 16)) if escape[2] else {"n": "\n", "t": "\t"}.get(escape[1], escape[1]),
        text,
    )


def _parse_object(text: str, source: str) -> dict[str, Any]:
    """Parses a JSON object. `source` names the text in an error.

    Raises:
        ConfigurationError: The text is not JSON, or another value than an object.
    """
    try:
        document = orjson.loads(text)
        orjson.dumps(document)  # it reads deeper than it writes
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise ConfigurationError(f"{source} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{source} must hold an object, got {type(document).__name__}")
    return document


def _read_mlserver(document: dict[str, Any], path: Path) -> tuple[list[Setting], list[ForeignModel]]:
    """Converts the settings in a file of MLServer.

    Returns the settings; and the model, if the file is a `model-settings.json`. Removes `parameters` from `document`.

    Raises:
        ConfigurationError: `parameters` is another value than an object.
    """
    parameters = document.pop("parameters", None) or {}
    if not isinstance(parameters, dict):
        raise ConfigurationError(f"{path}: parameters must be an object, got {type(parameters).__name__}")
    settings = [_convert_setting("mlserver", key, value) for key, value in (document | parameters).items()]
    if path.name != "model-settings.json":
        return settings, []
    inputs = document.get("inputs")
    entries = inputs if isinstance(inputs, list) else []
    names = tuple(str(entry.get("name")) for entry in entries if isinstance(entry, dict))
    # The weights are a file beside the settings, or have to be downloaded to here first.
    scheme, _, uri = str(parameters.get("uri") or "").rpartition("://")
    file = str(path.parent / uri) if scheme in ("", "file") else Path(uri).name
    return settings, [ForeignModel(str(document.get("name") or path.parent.resolve().name), file, names)]


def _read_torchserve(document: dict[str, str], path: Path) -> tuple[list[Setting], list[ForeignModel]]:
    """Converts the settings in a file of TorchServe; also returns its models, one for each version.

    Each version has settings of its own, which are among those returned.
    """
    settings = [_convert_setting("torchserve", key, value) for key, value in document.items() if key != "models"]
    models = []
    store = path.parent / document.get("model_store", ".")
    for name, versions in _parse_object(document.get("models") or "{}", f"{path}: models").items():
        for settings_of_version in versions.values() if isinstance(versions, dict) else ():
            if isinstance(settings_of_version, dict):
                settings += [_convert_setting("torchserve", key, value) for key, value in settings_of_version.items()]
                models.append(ForeignModel(name, _serialized(store / str(settings_of_version.get("marName")))))
    return settings, models


def _serialized(archive: Path) -> str | None:
    """The file of weights in a model archive of TorchServe, as `ARCHIVE/FILE`; None if the archive cannot be read.

    The manifest in the archive says which file it is. At most 1 MiB of it is read: the archive may be a zip bomb.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            manifest = orjson.loads(members.open("MAR-INF/MANIFEST.json").read(2**20))
        return f"{archive}/{manifest['model']['serializedFile']}"
    except Exception:  # zipfile has an error of its own for each kind of damage, and so has each compression
        return None


def _commands(models: list[ForeignModel], options: Mapping[str, str]) -> Iterator[str]:
    """Yields the commands that export these models, and the one that serves them with these options.

    A model of ONNX is exported from its file, which is unzipped first if it is in an archive (`ARCHIVE/FILE`). For any
    other file, the command has a placeholder: it is exported from its source in Python.
    """
    from lengthwise.runtime.manifest import is_name  # help does without what it imports

    for model in models:
        file = model.file or ""
        is_onnx = file.endswith(".onnx")
        if is_onnx and not isfile(file) and isfile(Path(file).parent):
            yield shlex.join(["unzip", "-j", str(Path(file).parent), Path(file).name])
            file = Path(file).name
        target = shlex.quote(file) if is_onnx else _SOURCE
        name = model.name if is_name(model.name) else "NAME"
        names_by_option = _input_options(model.inputs) if is_onnx else {}
        input_options = "".join(f" {option} {shlex.quote(text)}" for option, text in names_by_option.items())
        yield f"lengthwise export {target}{input_options} --labels A,B --out models/{name}"
    yield shlex.join(["lengthwise", "serve", "models", *(word for option in options.items() for word in option)])


def _input_options(inputs: tuple[str, ...]) -> dict[str, str]:
    """The options of `export` for the inputs of a model, by their names: `{"--mask": "attention_mask"}`.

    An input is the mask, the lengths, or the steps (`--values`). Empty if two inputs would be the same option.
    """
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
    for path in _settings_files(files):
        try:
            text = read(path, 2**24).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path} is not text in UTF-8") from error
        settings_of_file, models_of_file = (
            _read_mlserver(_parse_object(text, str(path)), path)
            if _FILES[path.name] == "mlserver"
            else _read_torchserve(_properties(text), path)
        )
        settings += settings_of_file
        models += models_of_file
    # The same port for metrics is no option here: /metrics is at --port, too.
    port = dict(pair for setting in settings for pair in setting.options).get("--port")
    settings = [
        setting._replace(options=(), note="/metrics is at --port, too")
        if setting.options == (("--admin-port", port),)
        else setting
        for setting in settings
    ]
    # The table of settings, and the commands
    table = Table(
        "setting",
        Column("value", max_width=40, no_wrap=True, overflow="ellipsis"),
        "becomes",
        box=None,
        pad_edge=False,
    )
    for setting in settings:
        value_text = setting.value if isinstance(setting.value, str) else orjson.dumps(setting.value).decode()
        becomes = " ".join(map(" ".join, setting.options)) or f"no option: {setting.note}"
        table.add_row(*map(_printable, (setting.key, value_text, becomes)))
    console = Console(highlight=False, soft_wrap=False)
    console.print(table, "", sep="\n", markup=False)
    for command in _commands(models, dict(pair for setting in settings for pair in setting.options)):
        console.print(_printable(command), soft_wrap=True)


def _settings_files(files: tuple[Path, ...]) -> Iterator[Path]:
    """Yields the files of settings: those that are named, and those in the folders.

    Raises:
        ConfigurationError: A file has another name, or a folder has none.
    """
    for path in files:
        candidates = sorted(file for name in _FILES for file in path.rglob(name)) if path.is_dir() else [path]
        if not candidates or candidates[0].name not in _FILES:
            raise ConfigurationError(
                f"{path}: there is no {', '.join(_FILES)}"
                if path.is_dir()
                else f"{path} is not named {', '.join(_FILES)}: settings are read here, a model by lengthwise export"
            )
        yield from candidates


def _printable(text: str) -> Text:
    """A text for a terminal, without what moves its cursor or changes its colours."""
    return Text("".join(character if character.isprintable() else "\ufffd" for character in text))
