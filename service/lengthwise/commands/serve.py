"""`lengthwise serve`, whose flags are the fields of `Settings`; and its log, which never has values of a request."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import select
import signal
import sys
import time
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from lengthwise.addresses import is_address
from lengthwise.commands import HELD
from lengthwise.commands.command import INTERRUPTED, NOT_CHECKED, Command
from lengthwise.commands.options import add_flags
from lengthwise.errors import LengthwiseError
from lengthwise.settings import PREFIX, Settings

if TYPE_CHECKING:
    from lengthwise.processes.worker import Worker


@click.command(
    cls=Command,
    epilog=f"Every option is also a variable: {PREFIX}MAX_BATCH_ROWS=32 is --max-batch-rows 32. {PREFIX}CONFIG names a "
    "TOML file of options. A flag overrides a variable, a variable overrides the file.",
)
@click.argument("models", required=False, metavar="[MODELS]")
@add_flags({name: field for name, field in Settings.model_fields.items() if name != "models"}, as_texts=True)
def serve(**flags: Any) -> None:
    """Serves the model repository MODELS: a folder of NAME/VERSION folders, by default the bundled one.

    MODELS may be an address: hf://OWNER/NAME, s3://, gs://, az://, https://HOST/FILE.tar or oci://HOST/IMAGE.

    \b
    Example:
      lengthwise serve models --port 8000
      curl -s localhost:8000/predict -H 'content-type: application/json' -d '{"sequences": [[[0.1, 0.2], [0.3, 0.4]]]}'

    \f

    Raises:
        Exit: The service ended with another code than 0.
        KeyboardInterrupt: The service was interrupted before it began to serve.
        LengthwiseError: The service cannot start. A worker lets its parent process log the error where that does so,
            and ends with a code instead.
        ModuleNotFoundError: An extra is not installed; of a worker the same holds.
    """  # noqa: D301 - click wants a real backspace
    from lengthwise.processes.worker import Worker  # help needs none of it

    worker = Worker.of_this_process()  # None: this is the process that the user started
    if worker is not None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ends it at once: until it serves, it has nothing to finish
    try:
        settings = Settings.load(**flags) if worker is None else Settings(**worker.settings)
        configure_logging(settings, None if worker is None else worker.index)
        if is_address(flags["models"]) and "?" in flags["models"]:
            logging.getLogger("lengthwise.stores").warning(
                "the list of processes shows the address with its query; put it into %sMODELS", PREFIX
            )
        code = _run(settings, worker)
    except KeyboardInterrupt:
        if worker is None:
            raise
        code = INTERRUPTED  # the parent prints the message
    except (LengthwiseError, ModuleNotFoundError) as error:
        if worker is None or not worker.report(error):  # False: the parent does not log it
            raise
        code = NOT_CHECKED
    if code:
        raise click.exceptions.Exit(code)


def _run(settings: Settings, worker: Worker | None) -> int:
    """Serves with these settings: in this process, or as the parent of several workers; returns the exit code.

    What each of them needs is imported when it is known which it is. Signals are blocked while modules are imported.
    """
    from lengthwise.processes.supervisor import supervise
    from lengthwise.processes.worker_count import ONE_PROCESS, count_workers
    from lengthwise.repository.folder import check_readable
    from lengthwise.repository.source import fetched
    from lengthwise.repository.verification_process import begin_process

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it reloads models, and so far none is loaded
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)  # they were blocked until now
    settings = fetched(settings)
    check_readable(settings.folder)
    workers = count_workers(settings) if worker is None else ONE_PROCESS
    if workers.number > 1:
        return supervise(settings, workers)
    if worker is None or worker.first:
        begin_process(settings.folder)  # it imports modules while this process imports the server
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    from lengthwise.processes.server import serve as run  # the parent of several workers needs none of it

    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    return run(settings, workers, worker)


class JsonLines(logging.Formatter):
    """Formats a log record as one line with a JSON object; the items of its attribute `fields` become fields of it.

    `worker`: the index of the worker, which is in each of its lines; None for a single process.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; the traceback of an exception is in the field `exception`."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._worker,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)  # not orjson, which fails on text that is not valid Unicode


class _Writer(QueueListener):
    """The thread that writes the log."""

    def handle(self, record: logging.LogRecord) -> None:
        """Writes a whole line, without a lock of Python, which the end of the process would wait for."""
        line = f"{record.msg}\n".encode(errors="backslashreplace")
        with suppress(OSError, AttributeError, ValueError):  # stderr is closed, or there is none
            stderr = cast("TextIO", sys.__stderr__).fileno()
            while line:
                select.select((), (stderr,), ())  # it may be non-blocking
                line = line[os.write(stderr, line) :]


class StderrLines(QueueHandler):
    """Has a thread write the lines to stderr, because a write to a pipe that nobody reads waits for a reader.

    While 10,000 lines wait for the thread, further ones are dropped. The next line that is kept is followed by one
    that says how many are missing.
    """

    def __init__(self) -> None:
        self._waiting: Queue[logging.LogRecord] = Queue(10_000)
        super().__init__(self._waiting)
        self._dropped = 0  # lines since the last one that was kept
        _Writer(self._waiting).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Leaves a record to the thread, its message formatted; or counts it as dropped."""
        try:
            self._waiting.put_nowait(record)
        except Full:
            self._dropped += 1
            return
        if self._dropped and not self._waiting.full():
            why = f"stderr took nothing for a while, as where nobody reads it: {self._dropped} lines are missing here"
            self._waiting.put_nowait(self.prepare(logging.LogRecord(__name__, logging.WARNING, "", 0, why, None, None)))
            self._dropped = 0

    def flush(self) -> None:
        """Waits until all lines are written, at most a second; called when the process ends."""
        end = time.monotonic() + 1.0
        while self._waiting.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.001)  # the thread writes meanwhile, and has no event for the last line


def configure_logging(settings: Settings, worker: int | None = None) -> None:
    """Sets up logging to stderr for the whole process: text lines, or one JSON object a line, by `settings.log_format`.

    The lines of a worker have its index, because all workers write to one log.
    """
    level, prefix = settings.log_level.upper(), "" if worker is None else f"worker {worker}: "
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "text": {"format": f"%(asctime)s %(levelname)-7s {prefix}%(message)s"},
                "json": {"()": "lengthwise.commands.serve.JsonLines", "worker": worker},
            },
            "handlers": {"stderr": {"()": "lengthwise.commands.serve.StderrLines", "formatter": settings.log_format}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "lengthwise": {"level": level},
                # Access lines have their own option, so the log level does not suppress them.
                "lengthwise.access": {"level": "INFO"},
                "uvicorn": {"level": "WARNING"},
            },
        }
    )
