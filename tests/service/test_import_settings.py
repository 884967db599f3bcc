"""`lengthwise import`: what settings of MLServer and TorchServe become, and the commands that follow."""

import json
import os
import shlex
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from lengthwise.commands import import_settings
from lengthwise.commands.cli import main

CONFIG = """\
# comments, and both separators
inference_address=https://0.0.0.0:8085
metrics_address: http://127.0.0.1:8082
certificate_file = certs.pem
default_response_timeout=30
strange=1
models={\\
  "sensor": {\\
    "1.0": {"marName": "sensor.mar", "batchSize": 8, "responseTimeout": 120}\\
  }\\
}
"""


def imported(*files: Path) -> Result:
    return CliRunner().invoke(main, ["import", *map(str, files)], env={"COLUMNS": "300"})


def commands(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [line for line in result.output.splitlines() if line.startswith(("lengthwise ", "unzip "))]


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def archive(path: Path, serialized: str) -> None:
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"serializedFile": serialized}}))


def test_the_properties_of_torchserve_become_options_and_say_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    path.write_text(CONFIG)
    result = imported(path)
    assert commands(result)[-1] == (
        "lengthwise serve models --host 0.0.0.0 --port 8085 --admin-port 8082 --tls-cert-file certs.pem "
        "--default-timeout-ms 120000"
    )
    shown = {line.split()[0]: line for line in result.output.splitlines() if line.strip()}
    assert "not known here" in shown["strange"]
    assert "--max-batch-rows" in shown["batchSize"]


@pytest.mark.parametrize(
    ("serialized", "expected"),
    [
        ("model.onnx", ["unzip -j {}/sensor.mar model.onnx", "lengthwise export model.onnx --labels A,B"]),
        ("model.pt", ["lengthwise export package.module:factory --checkpoint weights.pt --labels A,B"]),
        (None, ["lengthwise export package.module:factory --checkpoint weights.pt --labels A,B"]),
    ],
    ids=["onnx", "torchscript", "no archive"],
)
def test_a_model_archive_is_exported_by_what_it_holds(
    serialized: str | None, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "config.properties").write_text(CONFIG)
    if serialized is not None:
        archive(tmp_path / "sensor.mar", serialized)
    first = [line.format(tmp_path) for line in expected]
    first[-1] += " --out models/sensor"
    assert commands(imported(tmp_path))[:-1] == first


def test_the_settings_of_a_model_of_mlserver_name_its_graph_and_inputs(tmp_path: Path) -> None:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, -1, 12]}, {"name": "seq_len"}, {"name": "Mask"}]
    model = {"name": "vowels", "parameters": {"uri": "./model.onnx", "version": "v1"}, "inputs": inputs}
    path = write(tmp_path / "model-settings.json", model)
    server = {"http_port": 9000, "debug": True, "cors_settings": {"allow_origins": ["https://a", "https://b"]}}
    other = write(tmp_path / "settings.json", server)
    assert commands(imported(path, other)) == [
        f"lengthwise export {tmp_path}/model.onnx --values x --lengths seq_len --mask Mask --labels A,B "
        "--out models/vowels",
        "lengthwise serve models --port 9000 --log-level debug --cors-origins https://a,https://b",
    ]


def test_every_option_of_the_table_exists() -> None:
    serve = main.get_command(click.Context(main), "serve")
    assert serve is not None
    known = {option for each in serve.params for option in each.opts}
    entries = [entry for server in import_settings.SETTINGS.values() for entry in server.values()]
    assert {option for entry in entries for option in entry.get("option", "").split(", ") if option} <= known
    assert {entry["as"] for entry in entries if "as" in entry} <= {*import_settings.CONVERSIONS}


def test_a_printed_command_is_one_that_serve_takes(tmp_path: Path) -> None:
    (tmp_path / "config.properties").write_text(CONFIG)
    _, name, *words = shlex.split(commands(imported(tmp_path))[-1])
    serve = main.get_command(click.Context(main), name)
    assert serve is not None
    assert serve.make_context(name, words).params["port"] == "8085"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("mymodels.py", b"", "config.properties: settings are read here, a model by lengthwise export"),
        ("settings.json", b"{", "is not JSON"),
        ("settings.json", b"[1]", "must hold an object, got list"),
        ("model-settings.json", b'{"parameters": 3}', "parameters must be an object, got int"),
        ("config.properties", b"models={", "models is not JSON"),
        ("config.properties", b"models=[]", "models must hold an object, got list"),
        ("config.properties", b"\xff\xfe", "is not text in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    result = imported(tmp_path / name)
    assert result.exit_code == 2
    assert says in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    ["inference_address=unix:/tmp/socket", "default_response_timeout=soon", "metrics_address=http://a:port"],
)
def test_a_wrong_value_is_said_and_the_rest_is_read(line: str, tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    path.write_text(f"{line}\nmax_request_size=100000\n")
    result = imported(path)
    assert "not a value of this setting" in result.output
    assert commands(result) == ["lengthwise serve models --max-body-bytes 100000"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("settings.json", '{"host": null, "http_port": [1], "grpc_port": {}, "metrics_port": 1.5}'),
        ("settings.json", '{"cors_settings": {"allow_origins": [1]}}'),
        ("settings.json", '{"cors_settings": {}}'),
        ("config.properties", "default_response_timeout=nan\n"),
        ("config.properties", "default_response_timeout=1e400\n"),
    ],
)
def test_a_value_of_another_kind_becomes_no_option(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    result = imported(tmp_path / name)
    assert "not a value of this setting" in result.output
    assert commands(result) == ["lengthwise serve models"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("settings.json", f'{{"http_port": {port}}}') for port in ("99999999", "-1", "0", '"abc"', "true", '""')),
        ("settings.json", '{"cors_settings": {"allow_origins": ["ftp://x"]}}'),
        ("settings.json", '{"parallel_workers": 1000}'),
        *(("config.properties", f"default_response_timeout={seconds}\n") for seconds in ("-5", "0", "999999999999")),
        *(("config.properties", f"max_request_size={size}\n") for size in ("-1", "0", "abc", "")),
        ("config.properties", "inference_address=https://0.0.0.0:0\n"),
    ],
)
def test_a_value_that_the_option_does_not_take_becomes_no_option(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    result = imported(tmp_path / name)
    assert "not a value of this setting" in result.output
    assert commands(result) == ["lengthwise serve models"]


def test_metrics_at_the_port_of_calls_become_no_port_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "config.properties").write_text(
        "metrics_address=http://0.0.0.0:8080\ninference_address=http://0.0.0.0:8080\n"
    )
    result = imported(tmp_path)
    assert commands(result) == ["lengthwise serve models --host 0.0.0.0 --port 8080"]
    assert "/metrics is at --port, too" in result.output


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("file:///srv/model.onnx", "/srv/model.onnx"),
        ("s3://bucket/a/model.onnx", "model.onnx"),
        ("https://user:secret@example.com/model.onnx", "model.onnx"),
        ("a#b?.onnx", "{}/a#b?.onnx"),
        ("u" * 5000 + ".onnx", "{}/" + "u" * 5000 + ".onnx"),
    ],
)
def test_a_graph_at_an_address_is_exported_once_it_is_here(uri: str, file: str, tmp_path: Path) -> None:
    result = imported(write(tmp_path / "model-settings.json", {"name": "vowels", "parameters": {"uri": uri}}))
    assert shlex.split(commands(result)[0])[2] == file.format(tmp_path)


@pytest.mark.parametrize(
    "model", [{"inputs": 5}, {"inputs": {"a": 1}}, {"parameters": {"uri": 5}}, {"parameters": {"uri": ["a"]}}]
)
def test_odd_values_of_a_model_leave_its_command(model: dict[str, Any], tmp_path: Path) -> None:
    result = imported(write(tmp_path / "model-settings.json", {"name": "vowels", **model}))
    assert commands(result)[0].endswith("--labels A,B --out models/vowels")


@pytest.mark.parametrize(("value", "level"), [("false", "info"), ("true", "debug"), (0, "info"), (True, "debug")])
def test_a_switch_may_be_a_text(value: object, level: str, tmp_path: Path) -> None:
    path = write(tmp_path / "settings.json", {"debug": value})
    assert commands(imported(path)) == [f"lengthwise serve models --log-level {level}"]


@pytest.mark.parametrize("name", ["../../x", "a/b", "a\nrm -rf /", "-x", "..", {"a": 1}])
def test_a_name_that_would_be_no_name_of_a_model_is_left_to_choose(name: object, tmp_path: Path) -> None:
    result = imported(write(tmp_path / "model-settings.json", {"name": name}))
    assert commands(result)[0].endswith(" --out models/NAME")


@pytest.mark.parametrize(
    "line",
    [
        "inference_addr\\u0065ss=http\\://0.0.0.0\\:8085",
        "inference_address http://0.0.0.0:8085",
        "\ufeffinference_address\t=\thttp://0.0.0.0:8085",
        "strange=a\\\\\ninference_address:http://0.0.0.0:8085",
    ],
    ids=["escapes", "blanks", "a mark of UTF-8", "a backslash at the end"],
)
def test_properties_are_read_as_java_reads_them(line: str, tmp_path: Path) -> None:
    (tmp_path / "config.properties").write_text(line, "utf-8")
    assert commands(imported(tmp_path)) == ["lengthwise serve models --host 0.0.0.0 --port 8085"]


def test_nothing_in_a_file_moves_the_cursor_of_a_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "settings.json", {"host": "\x1b[31mred\r\n", "k\x1b]0;title\x07": 1})
    output = imported(path).output
    assert "\x1b" not in output
    assert "\r" not in output
    assert "lengthwise serve models --host '\ufffd[31mred\ufffd\ufffd'" in output


def test_a_document_of_very_deep_lists_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"x": ' + "[" * 500 + "]" * 500 + "}")
    result = imported(tmp_path)
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "settings.json")
    result = imported(tmp_path)
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1)


@pytest.mark.parametrize("kind", ["encrypted", "unknown compression", "bomb"])
def test_an_archive_that_cannot_be_read_is_exported_from_its_source(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.properties").write_text(CONFIG)
    path = tmp_path / "sensor.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as members:
        described = b'{"model": {"serializedFile": "model.onnx"}}'
        members.writestr("MAR-INF/MANIFEST.json", described + b" " * (2**25 if kind == "bomb" else 0))
    content = bytearray(path.read_bytes())
    listed = content.rindex(b"PK\1\2")
    if kind == "encrypted":
        content[6] = content[listed + 8] = 1
    elif kind == "unknown compression":
        content[8] = content[listed + 10] = 97
    path.write_bytes(content)
    tracemalloc.start()
    try:
        assert "--checkpoint weights.pt" in commands(imported(tmp_path))[0] or kind == "bomb"
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_values_are_shown_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "settings.json", {"root_path": "[bold]x[/nothing]", "parallel_workers": None})
    assert "[bold]x[/nothing]" in imported(path).output
