import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lengthwise.commands.cli import main
from lengthwise.commands.command import Command, end
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
        (click.UsageError("what?"), 2, "what?"),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(error: BaseException, code: int, said: str) -> None:
    result = CliRunner().invoke(command(error))
    assert result.exit_code == code
    assert said in result.stderr


def test_where_the_exporter_is_left_out_its_commands_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lengthwise_export.interface.cli", None)
    result = CliRunner().invoke(main, ["export"])
    assert result.exit_code == 2
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "lengthwise[export]" in result.stderr


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


def test_a_terminated_command_ends_as_an_interrupted_one() -> None:
    @click.command(cls=Command)
    def terminated() -> None:
        signal.raise_signal(signal.SIGTERM)

    assert CliRunner().invoke(terminated).exit_code == 130


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
