"""The format of the log on stderr: text lines, or one JSON object per line. No line has the values of a request."""

from __future__ import annotations

import json
import logging
import logging.config
import time

from lengthwise.settings import Settings


class JsonLines(logging.Formatter):
    """One JSON object per line; the items of a record's attribute `fields` become fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; an exception is in the field `exception`."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)  # not orjson, which fails on text that is not valid Unicode


def configure(settings: Settings) -> None:
    """Sets up logging for the whole process."""
    level = settings.log_level.upper()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "text": {"format": "%(asctime)s %(levelname)-7s %(message)s"},
                "json": {"()": "lengthwise.commands.logs.JsonLines"},
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
