import json
import logging
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


def logged(capfd: pytest.CaptureFixture[str]) -> str:
    for handler in logging.getLogger().handlers:
        handler.flush()
    out, err = capfd.readouterr()
    assert out == ""
    return err


def test_a_line_for_people_has_time_level_and_message(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings())
    log.warning("the %s", "message")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ WARNING the message\n", logged(capfd))


@pytest.mark.parametrize("message", ["two\nlines of é \x00", "lone \ud800"])
def test_a_json_line_is_one_object_also_of_text_that_is_no_unicode(
    message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging(Settings(log_format="json"))
    try:
        raise ValueError("why")
    except ValueError:
        log.exception(message)
    text = logged(capfd)
    made = json.loads(text)
    assert text.count("\n") == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made.pop("time"))
    assert made.pop("exception").endswith("ValueError: why")
    assert made == {"level": "error", "logger": "lengthwise.test", "message": message}


@pytest.mark.parametrize(("kind", "line"), [("text", "worker 3: the message"), ("json", '"worker": 3')])
def test_a_line_of_a_worker_names_it(
    kind: Literal["text", "json"], line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging(Settings(log_format=kind), worker=3)
    log.warning("the message")
    assert line in logged(capfd)


def test_less_severe_lines_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_level="warning"))
    log.info("not this")
    logging.getLogger("uvicorn.error").info("nor this")
    log.warning("this")
    assert logged(capfd).count("\n") == 1


UNREAD = """
import logging, sys, time
from lengthwise.commands.serve import configure_logging
from lengthwise.settings import Settings
configure_logging(Settings(log_format="json"))
for number in range(12_000):
    logging.getLogger("lengthwise.test").info("%d %s", number, "x" * (number % 500))
print("done", flush=True)
sys.stdin.read(1)
while logging.getLogger().handlers[0].queue.qsize():
    time.sleep(0.01)  # the pipe is read now
logging.getLogger("lengthwise.test").info("read again")
"""


@pytest.mark.long
@pytest.mark.process
def test_a_pipe_that_nobody_reads_stops_nothing_and_the_log_says_what_it_lacks() -> None:
    program = [sys.executable, "-c", UNREAD]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], PATIENCE_SECONDS)[0], "it waits for a reader"
            assert process.stdout.readline() == b"done\n"
            out, text = process.communicate(b"x", timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, b"")
    messages = [json.loads(line)["message"] for line in text.splitlines()]
    # Where the thread has written some lines meanwhile, further ones are kept, and the log says more than once what is
    # missing.
    lost = [re.search(r"reads it: (\d+) lines are missing", message) for message in messages]
    lines = [message for message, found in zip(messages, lost, strict=True) if not found]
    assert lines.pop() == "read again"
    assert 10_000 <= len(lines) == 12_000 - sum(int(found[1]) for found in lost if found)


@pytest.mark.long
@pytest.mark.process
def test_a_process_whose_stderr_nobody_reads_ends() -> None:
    program = [sys.executable, "-c", UNREAD.split("sys.stdin")[0]]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()
