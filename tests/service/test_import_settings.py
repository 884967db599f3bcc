"""`lengthwise import`: what settings of MLServer and TorchServe become, and the commands that follow."""

import json
import shlex
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
        ("config.yaml", b"", "there is no model-settings.json"),
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


def test_values_are_shown_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "settings.json", {"root_path": "[bold]x[/nothing]", "parallel_workers": None})
    assert "[bold]x[/nothing]" in imported(path).output
