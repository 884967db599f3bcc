import json
import logging
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Literal

import pytest

from lengthwise.commands.serve import configure_logging
from lengthwise.settings import Settings
from tests.support.server_process import PATIENCE_SECONDS

log = logging.getLogger("lengthwise.test")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Puts the process's logging back."""
    root = logging.getLogger()
    loggers = [root, logging.getLogger("lengthwise"), logging.getLogger("uvicorn")]
    handlers, levels = root.handlers[:], [logger.level for logger in loggers]
    yield
    root.handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def logged(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_a_line_for_people_has_time_level_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings())
    log.warning("the %s", "message")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ WARNING the message\n", logged(capsys))


@pytest.mark.parametrize("message", ["two\nlines of é \x00", "lone \ud800"])
def test_a_json_line_is_one_object_also_of_text_that_is_no_unicode(
    message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(Settings(log_format="json"))
    try:
        raise ValueError("why")
    except ValueError:
        log.exception(message)
    text = logged(capsys)
    made = json.loads(text)
    assert text.count("\n") == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made.pop("time"))
    assert made.pop("exception").endswith("ValueError: why")
    assert made == {"level": "error", "logger": "lengthwise.test", "message": message}


@pytest.mark.parametrize(("kind", "line"), [("text", "worker 3: the message"), ("json", '"worker": 3')])
def test_a_line_of_a_worker_names_it(
    kind: Literal["text", "json"], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(Settings(log_format=kind), worker=3)
    log.warning("the message")
    assert line in logged(capsys)


def test_less_severe_lines_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_level="warning"))
    log.info("not this")
    logging.getLogger("uvicorn.error").info("nor this")
    log.warning("this")
    assert logged(capsys).count("\n") == 1


UNREAD = """
import logging, sys
from lengthwise.commands.serve import configure_logging
from lengthwise.settings import Settings
configure_logging(Settings(log_format="json"))
for number in range(1000):
    logging.getLogger("lengthwise.test").info("%d %s", number, "long " * 50 * (number % 100))
print("done", flush=True)
sys.stdin.read(1)
logging.getLogger("lengthwise.test").info("read again")
"""


def test_a_pipe_that_nobody_reads_stops_nothing_and_the_log_says_what_it_lacks() -> None:
    pipe: dict[str, int] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", UNREAD], **pipe) as process:  # type: ignore[call-overload]
        try:
            assert select.select([process.stdout], [], [], PATIENCE_SECONDS)[0], "it waits for a reader"
            assert process.stdout.readline() == b"done\n"
            begun = os.read(process.stderr.fileno(), 2**20)
            out, rest = process.communicate(b"x", timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, b"")
    text = (begun + rest).decode()
    *lines, again, last = text.splitlines()
    # Of a long line, the part that the pipe took may be the last before those that are lost.
    assert again.endswith(json.dumps({"message": "read again"})[1:]) or '"read again"' in again
    (lost,) = re.findall(r"reads its pipe: (\d+) lines are not in this log", json.loads(last)["message"])
    assert 900 < int(lost) + len(lines) <= 1001
