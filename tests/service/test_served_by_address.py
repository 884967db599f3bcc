"""A service of models at an address: fetched once at the start, again at a reload, and as it was where that fails."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from click.testing import CliRunner

import lengthwise
from lengthwise import files
from lengthwise.commands.cli import main
from lengthwise.commands.command import INTERRUPTED
from tests.support import model_directories
from tests.support.server_process import ServerProcess, started
from tests.support.stores import Answer, StandIn, Web, archive_of, running
from tests.support.waiting import wait_until
from tests.support.workers import GOOD, Workers

pytest.importorskip("obstore")
pytestmark = pytest.mark.process

SIGNED = "?X-Amz-Signature=secret"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    answers = Web()
    model_directories.place(tmp_path / "repository", timed=True)
    answers.files["models.tar"] = archive_of(tmp_path / "repository", tmp_path / "models.tar")
    with running(StandIn(answers)) as server:
        answers.server = server
        yield answers


def publish(web: Web, tmp_path: Path, version: int) -> None:
    """Adds a version to what the web server has."""
    model_directories.place(tmp_path / "repository", version=version, timed=True)
    web.files["models.tar"] = archive_of(tmp_path / "repository", tmp_path / "models.tar")


def address(web: Web) -> str:
    return f"{web.server.url}/models.tar{SIGNED}"


def version(server: ServerProcess) -> str:
    return str(server.predict(GOOD).json()["version"])


@pytest.mark.long
def test_a_reload_fetches_a_new_version_and_one_that_fails_leaves_what_is_served(web: Web, tmp_path: Path) -> None:
    with started(address(web), "--cache", str(tmp_path / "cache")) as server:
        assert version(server) == "1"
        assert web.server.paths == ["/models.tar"]
        publish(web, tmp_path, 2)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: version(server) == "2", lambda: server.text)
        for fault, says in (
            (Answer(404), "the store answers 404 Not Found: nothing is there that you may see; the served models stay"),
            (Answer(body=b"no archive"), "cannot be read as a tar archive: .*; the served models stay"),
            (Answer(503), "the store answers 503 Service Unavailable; the copy of"),
        ):
            web.faults["models.tar"] = fault
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(says)
            assert version(server) == "2"
        assert "secret" not in server.get("/healthz").text
    assert "secret" not in server.text
    assert "the list of processes shows the address with its query; put it into LENGTHWISE_MODELS" in server.text


@pytest.mark.long
def test_a_new_version_whose_bytes_are_others_is_not_served(web: Web, tmp_path: Path) -> None:
    with started(address(web), "--cache", str(tmp_path / "cache")) as server:
        model_directories.place(tmp_path / "repository", version=2).joinpath("model.onnx").write_bytes(b"other")
        web.files["models.tar"] = archive_of(tmp_path / "repository", tmp_path / "models.tar")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(r"vowels/2: model\.onnx .*; the served models stay")
        assert version(server) == "1"


@pytest.mark.long
def test_an_admin_call_fetches_and_is_503_where_that_fails(web: Web, tmp_path: Path) -> None:
    load = "/v2/repository/models/vowels/load"
    with started(address(web), "--cache", str(tmp_path / "cache"), "--admin-calls") as server:
        publish(web, tmp_path, 2)
        assert server.client.post(load).status_code == 200
        assert version(server) == "2"
        web.faults["models.tar"] = Answer(404)
        refused = server.client.post(load)
        assert refused.status_code == 503
        assert "127.0.0.1" not in refused.text
        assert version(server) == "2"


@pytest.mark.long
def test_of_several_workers_the_parent_fetches_for_all(web: Web, tmp_path: Path) -> None:
    with started(address(web), "--cache", str(tmp_path / "cache"), "--workers", "2", "--admin-calls") as server:
        workers = Workers(server)
        workers.ready()
        assert web.server.paths == ["/models.tar"]
        publish(web, tmp_path, 2)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.text.count("vowels/2 is ready") == 2, lambda: server.text)
        assert web.server.paths == ["/models.tar"] * 2
        web.faults["models.tar"] = Answer(404)
        os.kill(gone := workers()[0]["pid"], signal.SIGKILL)
        workers.replaced(gone)
        assert {version(server) for _ in range(8)} == {"2"}
        refused = server.client.post("/v2/repository/models/vowels/load")
        assert (refused.status_code, "secret" in refused.text) == (503, False)
        assert {version(server) for _ in range(8)} == {"2"}
    assert "secret" not in server.text


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Answer(404), "the store answers 404"),
        (Answer(503), "the store answers 503"),
        (Answer(body=b"x" * 100, cut=50), "no answer of the store"),
    ],
)
def test_a_service_that_has_nothing_to_serve_says_why_and_ends(
    web: Web, tmp_path: Path, fault: Answer, says: str
) -> None:
    web.faults["models.tar"] = fault
    server = ServerProcess(address(web), "--cache", str(tmp_path / "cache"))
    try:
        assert server.end() == 2
        assert says in server.text
        assert "Traceback" not in server.text
        assert "secret" not in server.text
    finally:
        server.kill()


@pytest.mark.long
def test_a_service_that_waits_for_a_store_at_the_start_ends_by_a_signal(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        nowhere = f"http://127.0.0.1:{silent.getsockname()[1]}/models.tar"
        server = ServerProcess(nowhere, "--cache", str(tmp_path / "cache"))
        try:
            connection, _ = silent.accept()  # which gets no answer
            with connection:
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(20) == INTERRUPTED
        finally:
            server.kill()


@pytest.mark.long
def test_offline_a_service_starts_from_the_cache_and_asks_nobody(web: Web, tmp_path: Path) -> None:
    options = (address(web), "--cache", str(tmp_path / "cache"))
    with started(*options):
        pass
    web.server.calls.clear()
    with started(*options, "--offline") as server:
        server.process.send_signal(signal.SIGHUP)
        assert version(server) == "1"
    assert web.server.calls == []


@pytest.mark.long
def test_an_application_of_ones_own_serves_an_address(web: Web, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    settings = lengthwise.Settings(models=address(web), cache=tmp_path / "cache", workers=1)
    with TestClient(lengthwise.make_app(settings)) as client:
        assert client.post("/predict", json=GOOD).json()["version"] == "1"
    assert web.server.paths == ["/models.tar"]


def test_load_check_and_score_take_an_address(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENGTHWISE_CACHE", str(tmp_path / "cache"))
    model = lengthwise.load(address(web))
    assert (model.name, model.version) == ("vowels", 1)
    records = tmp_path / "records.jsonl"
    records.write_text('{"id": "a", "steps": ' + str([[0.5] * 12] * 3) + "}\n")
    done = CliRunner().invoke(main, ["score", str(records), str(tmp_path / "out.jsonl"), "--model", address(web)])
    assert done.exit_code == 0, done.output
    assert '"id":"a"' in (tmp_path / "out.jsonl").read_text()
    done = CliRunner().invoke(main, ["check", address(web), "--json"])
    assert done.exit_code == 0, done.output


def test_a_model_of_mlflow_may_be_named_by_an_address(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lengthwise.mlflow

    monkeypatch.setenv("LENGTHWISE_CACHE", str(tmp_path / "cache"))
    logged = list[str]()
    pyfunc = SimpleNamespace(save_model=lambda data_path, **_: logged.extend(os.listdir(data_path)))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(pyfunc=pyfunc))
    monkeypatch.setitem(sys.modules, "mlflow.pyfunc", pyfunc)
    lengthwise.mlflow.save_model(address(web), tmp_path / "model")
    assert logged == ["1"]


def test_an_address_with_several_models_is_refused_where_one_is_wanted(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENGTHWISE_CACHE", str(tmp_path / "cache"))
    model_directories.place(tmp_path / "repository", "consonants")
    web.files["models.tar"] = archive_of(tmp_path / "repository", tmp_path / "models.tar")
    with pytest.raises(lengthwise.errors.ConfigurationError, match="holds the models consonants, vowels") as refused:
        lengthwise.load(address(web))
    assert "secret" not in str(refused.value)


@pytest.mark.long
def test_bench_starts_a_service_of_an_address(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENGTHWISE_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(main, ["bench", f"{web.server.url}/models.tar", "--request-count", "3", "--json"])
    assert done.exit_code == 0, done.output


@pytest.mark.long
def test_a_fixed_address_in_the_cache_needs_no_library_of_a_store(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = f"{web.server.url}/models.tar#sha256={files.digest(tmp_path / 'models.tar')[7:]}"
    program = (
        "import sys, lengthwise; lengthwise.load(sys.argv[1]); "
        "print({'obstore', 'huggingface_hub', 'httpx2'}.intersection(sys.modules))"
    )
    environment = {**os.environ, "LENGTHWISE_CACHE": str(tmp_path / "cache")}

    def imported() -> str:
        command = [sys.executable, "-c", program, fixed]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert imported() == "{'obstore'}"
    assert imported() == "set()"


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("command", ["serve", "score"])
def test_a_wrong_address_ends_a_command_with_one_line(tmp_path: Path, command: str) -> None:
    wrong = "https://user:secret@example.com/m.tar"
    records = tmp_path / "records.jsonl"
    records.write_text("{}\n")
    arguments = [wrong] if command == "serve" else [str(records), str(tmp_path / "out.jsonl"), "--model", wrong]
    done = subprocess.run(
        [sys.executable, "-m", "lengthwise", command, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "credentials never stand in an address" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.long
def test_a_variable_may_name_an_address(web: Web, tmp_path: Path) -> None:
    with started(LENGTHWISE_MODELS=address(web), LENGTHWISE_CACHE=str(tmp_path / "cache")) as server:
        assert httpx2.get(f"{server.url}/readyz").status_code == 200
    assert "the list of processes" not in server.text


@pytest.mark.parametrize("option", ["--cache", "--offline"])
@pytest.mark.parametrize("command", ["score", "bench", "check"])
def test_another_command_says_which_variable_it_reads_for_an_option_of_serve(command: str, option: str) -> None:
    done = CliRunner().invoke(main, [command, option])
    assert done.exit_code == 2
    assert f"{option} is an option of serve; every command reads the variable LENGTHWISE_" in done.output
