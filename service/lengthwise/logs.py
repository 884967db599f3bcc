"""How the log looks: lines for people, or one JSON object a line; on stderr, never with a payload in it."""

from __future__ import annotations

import json
import logging
import logging.config
import time

from lengthwise.settings import Settings


class JsonLines(logging.Formatter):
    """One JSON object a line; what a record has in `fields` stands in it as fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; an exception stands in the field `exception`."""
        made = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            made["exception"] = self.formatException(record.exc_info)
        return json.dumps(made)  # not orjson: what is logged may be no Unicode


def configure(settings: Settings) -> None:
    """Sets up logging for the process."""
    level = settings.log_level.upper()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "text": {"format": "%(asctime)s %(levelname)-7s %(message)s"},
                "json": {"()": "lengthwise.logs.JsonLines"},
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": settings.log_format}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "lengthwise": {"level": level},
                # Whoever asks for these lines gets them, however little else is logged.
                "lengthwise.access": {"level": "INFO"},
                "uvicorn": {"level": "WARNING"},
            },
        }
    )
