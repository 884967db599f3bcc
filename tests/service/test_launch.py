"""Starting a service for a while, and finding the one that is meant."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lengthwise.bench import remote
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.launch import Running, free_port, running, serve_command, served
from lengthwise.bench.remote import get
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import Manifest, StepInput

# Ignores the request to end for long enough to be noticed, when it is told to be stubborn.
SERVER = """
import http.server, os, signal, sys
port, stubborn = int(sys.argv[1]), len(sys.argv) > 2
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("no more", flush=True); os._exit(3)
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *_): pass
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where nobody listens, nor can: a server of another test must not answer in place of the one meant."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_server_is_ready_inside_the_block_and_gone_after_it():
    port = free_port()
    with running([sys.executable, "-c", SERVER, str(port)], port) as server:
        assert get(server.target, "/readyz")[0] == 200
    with pytest.raises(ConfigurationError):
        get(server.target, "/readyz")


def test_a_server_runs_on_the_cores_it_is_given(silent_port: int):
    core = max(os.sched_getaffinity(0))
    said = "import os, sys; sys.exit(f'cores {sorted(os.sched_getaffinity(0))}')"
    command = [sys.executable, "-c", f"import time; time.sleep(0.3); {said}"]
    with pytest.raises(ConfigurationError, match=rf"cores \[{core}\]"), running(command, silent_port, cores=[core]):
        pass


@pytest.mark.parametrize(
    ("program", "refusal", "said"),
    [
        ("import sys; sys.exit('no such option')", None, "ended:\nno such option"),
        ("import time; time.sleep(60)", "serves no model", "serves no model"),
        ("import time; time.sleep(60)", None, "was not ready within"),
    ],
)
def test_a_server_that_will_not_be_ready_is_given_up_with_its_last_words(
    program: str, refusal: str | None, said: str, monkeypatch: pytest.MonkeyPatch, silent_port: int
):
    monkeypatch.setattr(remote, "refusals", lambda _target: refusal)
    if said.startswith("was"):
        monkeypatch.setattr("lengthwise.bench.launch.READY_SECONDS", 0.2)
    with pytest.raises(ConfigurationError, match=said), running([sys.executable, "-c", program], silent_port):
        pass


def test_a_server_that_ends_under_load_is_named_with_its_last_words():
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port)]
    with (
        pytest.raises(ConfigurationError, match="ended with code 3 under load:\nno more"),
        running(command, port) as it,
    ):
        get(it.target, "/die")


def test_a_server_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lengthwise.bench.launch.STOP_SECONDS", 0.1)
    port = free_port()
    with running([sys.executable, "-c", SERVER, str(port), "stubborn"], port) as server:
        pass
    with pytest.raises(ConfigurationError):
        get(server.target, "/readyz")


def test_the_command_of_serve_names_repository_port_and_options():
    command = serve_command(Path("models"), 8123, {"max_batch_rows": "32"})
    expected = "-m lengthwise serve models --host 127.0.0.1 --port 8123 --max-batch-rows 32"
    assert " ".join(command[1:]) == expected
    assert "models" not in serve_command(None, 8123, {})


def test_a_model_directory_is_served_from_its_repository_and_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands: list[list[str]] = []

    @contextmanager
    def pretended(command: list[str], port: int, **_: object) -> Iterator[Running]:
        commands.append(command)
        yield Running(ServerAddress("127.0.0.1", port), 0)

    monkeypatch.setattr("lengthwise.bench.launch.running", pretended)
    directory = tmp_path / "models" / "m" / "3"
    directory.mkdir(parents=True)
    (directory.parent / "10").mkdir()  # no version yet: nothing is in it
    manifest = Manifest(name="m", version=3, input=StepInput(features=1), labels=("a",))
    (directory / "manifest.json").write_text(manifest.to_json())
    with served(str(directory)) as service:
        assert service.fields == {"model": "m", "version": "3"}
    with served(str(directory.parent)) as service:
        assert service.fields == {"model": "m", "version": "3"}
    with served(str(tmp_path / "models"), model="m") as service:
        assert service.fields == {"model": "m"}
    assert [command[4] for command in commands] == [str(tmp_path / "models")] * 3
    assert commands[0][-2:] == commands[1][-2:] == ["--versions", "m/3"]
    assert "--versions" not in commands[2]


def test_a_url_is_taken_as_it_is():
    with served("http://127.0.0.1:8000", model="m") as service:
        assert service.target == ServerAddress("127.0.0.1", 8000)
        assert service.fields == {"model": "m"}


def test_what_is_neither_url_nor_folder_is_refused():
    with pytest.raises(ConfigurationError, match="neither a URL"), served("no/such/folder"):
        pass


@pytest.mark.long
@pytest.mark.process
def test_a_service_that_is_started_has_the_options_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LENGTHWISE_RUNNERS", "many")
    with pytest.raises(ConfigurationError, match=r"LENGTHWISE_RUNNERS.*got 'many'"), served(None):
        pass
