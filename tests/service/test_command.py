import signal

import click
import pytest
from click.testing import CliRunner

from service.command import Command
from service.errors import ConfigurationError, VerificationError


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
        (ZeroDivisionError("oh"), 2, "defect of lengthwise"),
        (click.UsageError("what?"), 2, "what?"),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(error: BaseException, code: int, said: str) -> None:
    result = CliRunner().invoke(command(error))
    assert result.exit_code == code
    assert said in result.stderr


def test_a_terminated_command_ends_as_an_interrupted_one() -> None:
    @click.command(cls=Command)
    def terminated() -> None:
        signal.raise_signal(signal.SIGTERM)

    assert CliRunner().invoke(terminated).exit_code == 130
