import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lengthwise.commands import cli
from lengthwise.commands.cli import main
from lengthwise.commands.command import Command, end, removed_options
from lengthwise.errors import ConfigurationError, VerificationError

ROOT = Path(__file__).parents[2]


def command(error: BaseException) -> click.Command:
    @click.command(cls=Command)
    def failing() -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (VerificationError("the proof does not hold"), 1, "error: the proof does not hold"),
        (ConfigurationError("no such option"), 2, "error: no such option"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("oh"), 2, "bug in lengthwise"),
        (RuntimeError("can't start new thread"), 2, "error: the system starts no more threads"),
        (click.UsageError("what?"), 2, "what?"),
        (BrokenPipeError(32, "Broken pipe"), 2, "error: Broken pipe"),  # another pipe than the output
    ],
)
def test_an_error_is_a_line_and_an_exit_code(error: BaseException, code: int, said: str) -> None:
    result = CliRunner().invoke(command(error))
    assert result.exit_code == code
    assert said in result.stderr


@pytest.mark.process
@pytest.mark.parametrize("is_read", [True, False])
def test_a_reader_that_has_read_enough_is_no_error(is_read: bool) -> None:
    prints = (
        "import click; from lengthwise.commands.command import Command; say = lambda: print('x' * 70_000, flush=True)"
    )
    command = [sys.executable, "-c", f"{prints}; click.command(cls=Command)(say)()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not is_read:
            process.stdout.close()
        said = process.communicate()[1] if is_read else process.stderr.read() if process.stderr else b""
    assert (process.returncode, said) == (0 if is_read else 141, b"")


def test_where_the_exporter_is_left_out_its_commands_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lengthwise_export.interface.cli", None)
    result = CliRunner().invoke(main, ["export"])
    assert result.exit_code == 2
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "lengthwise[export]" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "2"], "it is one of serve. Did you mean: lengthwise serve --workers 2"),
        (["--port=80", "my models"], "Did you mean: lengthwise serve --port=80 'my models'"),
        (["--max-length", "9"], "it is one of check, export"),
        (["--wurkers", "2"], "No such option '--wurkers'."),
    ],
)
def test_an_option_without_its_command_names_the_command(words: list[str], said: str) -> None:
    result = CliRunner().invoke(main, words, prog_name="lengthwise")
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(("command", "option"), sorted(removed_options()))
def test_an_option_that_is_gone_says_what_to_use_now(command: str, option: str) -> None:
    result = CliRunner().invoke(main, [command, option, "1"], prog_name="lengthwise")
    assert result.exit_code == 2
    assert f"The option {option} is gone; {removed_options()[command, option]}" in result.stderr


@pytest.mark.parametrize("command", cli.REMOVED)
def test_a_command_that_is_gone_says_what_to_use_now(command: str) -> None:
    result = CliRunner().invoke(main, [command, "runs/a", "runs/b"], prog_name="lengthwise")
    assert result.exit_code == 2
    assert f"The command {command!r} is gone; {cli.REMOVED[command]}" in result.stderr


def test_without_the_exporter_an_option_names_the_commands_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lengthwise_export" else find_spec(name)
    )
    result = CliRunner().invoke(main, ["--json"], prog_name="lengthwise")
    assert "it is one of score, bench, alias" in result.stderr


def test_a_folder_in_the_place_of_a_command_is_what_serve_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my models").mkdir()
    result = CliRunner().invoke(main, ["my models", "--port", "80"])
    assert result.exit_code == 2
    assert "To serve this folder: lengthwise serve 'my models'" in result.stderr


@pytest.mark.parametrize("code", [0, None, 1])
def test_code_that_quits_in_between_gives_no_verdict(code: int | None) -> None:
    result = CliRunner().invoke(command(SystemExit(code)))
    assert result.exit_code == 2
    line = command.__code__.co_firstlineno + 3
    assert f"test_command.py:{line} quit with SystemExit({code})" in result.stderr


def test_an_end_of_its_own_keeps_its_exit_code() -> None:
    @click.command(cls=Command)
    def ending() -> None:
        end("the graph is bad", 1)

    result = CliRunner().invoke(ending)
    assert (result.exit_code, result.stderr) == (1, "error: the graph is bad\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("is_ignored", [False, True])  # as nohup ignores SIGHUP
def test_a_terminated_command_ends_as_an_interrupted_one(number: signal.Signals, is_ignored: bool) -> None:
    @click.command(cls=Command)
    def terminated() -> None:
        signal.raise_signal(number)

    handler = signal.SIG_IGN if is_ignored else lambda *_: None  # the signal must not end the tests
    before = signal.signal(number, handler)
    try:
        assert CliRunner().invoke(terminated).exit_code == (0 if is_ignored else 130)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.sampled(15)
@pytest.mark.parametrize("call", ["serve", "bench", "score a b --model c", "train a b", "export a", "check a"])
@pytest.mark.parametrize("absent", ["fcntl", "resource"])
def test_a_system_that_it_does_not_run_on_is_told_so(absent: str, call: str) -> None:
    program = (
        f"import sys; sys.modules[{absent!r}] = None; from lengthwise.commands.cli import main; main({call.split()})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Lengthwise runs on Linux, macOS and WSL; ")


@pytest.mark.long
@pytest.mark.process
def test_the_module_starts_in_the_folder_of_the_package_too() -> None:
    command = [sys.executable, "-m", "lengthwise", "serve", "--help"]
    done = subprocess.run(command, cwd=ROOT / "service" / "lengthwise", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: lengthwise serve")
