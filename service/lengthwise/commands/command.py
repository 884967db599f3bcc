"""The base of every command: an error ends as one line on stderr and an exit code.

0 is good; 1: what was checked is bad; 2: it could not be checked, or the command line is wrong, or this is a bug.
130 and 141 are those of a signal, and of an output that nobody reads.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

import click

from lengthwise.errors import LengthwiseError, ModelError, missing_extra

_REMOVED: Final = {
    ("bench", "--replay"): "records are a data file: --data FILE",
    ("bench", "--seed"): "each load is the same, every time",
    ("bench", "--format"): "requests are JSON",
    ("bench", "--warmup-seconds"): "a tenth of the duration is not measured, and none with --request-count",
    ("bench", "--serve"): "the service that it starts has the options of the environment: LENGTHWISE_RUNNERS=2",
    ("score", "--overwrite"): "delete the file of predictions first",
    ("score", "--threads"): "there is a thread for each core that the process may use: taskset -c 0 leaves it one",
    ("train", "--overwrite"): "delete the folder of the run first; in Python: train(..., overwrite=True)",
    ("train", "--class-weights"): "they are chosen from the data; in Python: train(..., class_weights=True)",
    ("train", "--no-class-weights"): "they are chosen from the data; in Python: train(..., class_weights=False)",
    ("train", "--learning-rate"): "in Python: train(..., learning_rate=...)",
    ("train", "--weight-decay"): "in Python: train(..., weight_decay=...)",
    ("train", "--batch-rows"): "in Python: train(..., batch_rows=...)",
    ("train", "--patience"): "in Python: train(..., patience=...)",
    ("train", "--threads"): "in Python: train(..., threads=...)",
    ("train", "--no-calibration"): "in Python: train(..., calibration=False)",
    ("train", "--seeds"): "a run trains one model: run train again with another --seed",
    ("train", "--ensemble"): "a run trains one model; ensembles that were exported are served as before",
    ("train", "--budget-minutes"): "a run has no limit of time; --epochs limits it",
    ("export", "--rewrite"): "export rewrites a model of your own by itself, where each batch then gives the same bits",
    ("export", "--seed"): "in Python: export(..., seed=...)",
    ("check", "--verbose"): "the report has a row for each kind of trial, --json has all trials",
}
"""What to use in the place of an option that a command had once, by command and option; `serve` has its own."""
OF_SERVE: Final = {"--cache": "variable LENGTHWISE_CACHE", "--offline": "variable LENGTHWISE_OFFLINE"}
"""Options of `serve` that other commands have as variables only."""
_NO_THREAD: Final = ("can't start new thread", "cannot join thread before it is started")  # what Python says
# Exit codes
BAD = 1  # what was checked is bad
NOT_CHECKED = 2
INTERRUPTED = 130  # as shells have it: 128 + SIGINT
NOT_READ = 141  # 128 + SIGPIPE


def removed_options() -> dict[tuple[str, str], str]:
    """What to use in the place of an option that a command had once, by command and option."""
    from lengthwise import settings  # other commands, and options in Python, start without it

    return _REMOVED | {("serve", settings.flag(name)): now for name, now in settings.REMOVED.items()}


class Ended(SystemExit):
    """Lengthwise ends the process, after a message. Any other `SystemExit` comes from code of a user or a library."""


class Command(click.Command):
    """A command whose errors end in one line on stderr and an exit code; a missing library's line names its extra."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Parses the command line as click does, and improves one of its errors; returns the words that are left.

        The error for an option that was removed, or that only `serve` has, says what to use in its place.

        Raises:
            NoSuchOption: The command does not have the option.
        """
        try:
            return super().parse_args(context, args)
        except click.NoSuchOption as error:
            if (replacement := removed_options().get((str(self.name), error.option_name))) is not None:
                context.fail(f"The option {error.option_name} is gone; {replacement}")
            if error.option_name in OF_SERVE:
                context.fail(
                    f"{error.option_name} is an option of serve; every command reads the {OF_SERVE[error.option_name]}"
                )
            raise

    def invoke(self, context: click.Context) -> Any:
        """Runs the command, and ends the process with a message if it fails.

        SIGTERM and SIGHUP interrupt it as SIGINT does, so that unfinished output is removed.

        Raises:
            Ended: The command failed; the message was printed.
            ClickException: An option is wrong; click prints it.
            Exit: The command ends with an exit code of its own.
            Abort: The user ended a question of click.
        """
        try:
            with _interruptible():
                return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort, Ended):
            raise
        except LengthwiseError as error:
            end(str(error), BAD if isinstance(error, ModelError) else NOT_CHECKED)
        except KeyboardInterrupt:
            end("interrupted", INTERRUPTED)
        except SystemExit as system_exit:
            # Code of the user or of a library called exit(). Its code, which may be 0, must not be the command's.
            last_frame = traceback.extract_tb(system_exit.__traceback__)[-1]
            end(
                f"{last_frame.filename}:{last_frame.lineno} quit with SystemExit({system_exit.code!r}) in between",
                NOT_CHECKED,
            )
        except Exception as error:
            if isinstance(error, BrokenPipeError):
                _end_unread()
            # `check --suggest` needs what `export` does
            extra, action = "export" if context.params.get("suggest") else self.name or "", f"'lengthwise {self.name}'"
            if isinstance(error, ModuleNotFoundError) and (advice := missing_extra(error, extra, action)) is not None:
                end(advice, NOT_CHECKED)
            if isinstance(error, OSError) and error.strerror is not None:  # a full disk, a missing folder
                end(error.strerror if error.filename is None else f"{error.filename}: {error.strerror}", NOT_CHECKED)
            traceback.print_exc()
            # Of this error, or of one before it
            lacks_threads = any(sign in traceback.format_exc() for sign in _NO_THREAD)
            end(
                "the system starts no more threads: raise its limit of processes (ulimit -u, a pod's PIDs) or of memory"
                if lacks_threads
                else "this is a bug in lengthwise, not in its input",
                NOT_CHECKED,
            )


def _end_unread() -> None:
    """Ends the process if what reads the output has ended, as `head` does; what is left of it is dropped.

    Raises:
        Ended: Then.
    """
    with suppress(AttributeError, OSError):  # Windows has no poll; what stands for the output may be no file
        (output := select.poll()).register(sys.stdout, 0)
        if any(events & select.POLLERR for _, events in output.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says so when it ends
            raise Ended(NOT_READ)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP interrupt the block as SIGINT does; not where they are ignored, as nohup does."""
    numbers = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}  # Windows has no SIGHUP
    old_handlers = {
        number: signal.signal(number, signal.default_int_handler)
        for number in numbers
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in old_handlers.items():
            if signal.getsignal(number) is signal.default_int_handler:  # else the command has set another one: `serve`
                signal.signal(number, handler)


def show_json(value: Any) -> None:
    """Prints a value as JSON, for the option `--json`."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def end(message: str, code: int) -> NoReturn:
    """Prints an error and ends the process with an exit code.

    Raises:
        Ended: Always, with the exit code.
    """
    click.echo(f"error: {message}", err=True)
    raise Ended(code)
