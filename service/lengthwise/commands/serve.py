"""`lengthwise serve`: its flags are the fields of `Settings`. No line of its log has the values of a request."""

from __future__ import annotations

import json
import logging
import logging.config
import signal
import time
from typing import Any

import click

from lengthwise.commands import HELD
from lengthwise.commands.command import INTERRUPTED, NOT_CHECKED, Command
from lengthwise.commands.options import add_flags
from lengthwise.settings import PREFIX, Settings, worker_task


@click.command(
    cls=Command,
    epilog=f"Every option is also a variable: {PREFIX}MAX_BATCH_ROWS=32 is --max-batch-rows 32. {PREFIX}CONFIG names a "
    "TOML file of options. A flag overrides a variable, a variable overrides the file.",
)
@click.argument("models", required=False, metavar="[MODELS]")
@add_flags({name: field for name, field in Settings.model_fields.items() if name != "models"}, as_texts=True)
def serve(**flags: Any) -> None:
    """Serves the model repository MODELS: a folder of NAME/VERSION folders, by default the bundled one.

    \b
    Example:
      lengthwise serve models --port 8000
      curl -s localhost:8000/predict -H 'content-type: application/json' -d '{"sequences": [[[0.1, 0.2], [0.3, 0.4]]]}'

    \f

    Raises:
        Exit: The service ended with another code than 0.
        KeyboardInterrupt: The service was interrupted before it could log; another error is raised so, too.
    """  # noqa: D301 - click wants a real backspace
    if worker_task() is not None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until it serves, it has nothing to end, and nothing to say
    try:
        settings = Settings.load(**flags)
        configure_logging(settings)
        from lengthwise.processes.server import serve as run  # help needs no web server
        from lengthwise.processes.worker_count import ONE_PROCESS, count_workers

        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it reads the models, there is nothing to read again
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)  # from now on, SIGTERM ends it in order
        code = run(settings, workers=ONE_PROCESS if worker_task() is not None else count_workers(settings))
    except (KeyboardInterrupt, Exception) as error:
        if not _is_logged_elsewhere(error):
            raise
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else NOT_CHECKED
    if code:
        raise click.exceptions.Exit(code)


def _is_logged_elsewhere(error: BaseException) -> bool:
    """Whether this is a worker whose error is logged already, by the parent or by another worker.

    At the first start, the first worker with an error says it for all.
    """
    task = worker_task()
    if task is None or isinstance(error, KeyboardInterrupt):
        return task is not None
    if task["restarts"]:
        return False
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself, once it has said why
    from lengthwise.processes.worker import SharedMemory

    return not SharedMemory(task["memory"], task["workers"]).is_first(task["place"], repr(error))


class JsonLines(logging.Formatter):
    """One JSON object per line; the items of a record's attribute `fields` become fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; an exception is in the field `exception`."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **({} if (task := worker_task()) is None else {"worker": task["place"]}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)  # not orjson, which fails on text that is not valid Unicode


def configure_logging(settings: Settings) -> None:
    """Sets up logging on stderr for the whole process: text lines, or one JSON object per line.

    The lines of a worker name it, because all workers write to one log.
    """
    level, task = settings.log_level.upper(), worker_task()
    worker = "" if task is None else f"worker {task['place']}: "
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "text": {"format": f"%(asctime)s %(levelname)-7s {worker}%(message)s"},
                "json": {"()": "lengthwise.commands.serve.JsonLines"},
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": settings.log_format}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "lengthwise": {"level": level},
                # Access lines have their own option, so the log level does not suppress them.
                "lengthwise.access": {"level": "INFO"},
                "uvicorn": {"level": "WARNING"},
            },
        }
    )
