"""The program of the separate process that judges a model; `repository.judge_process` starts it.

It reads its task from stdin and writes one JSON object to the original stdout: `judged` (`Judged.to_json`), or
`refused` with why, `kind` and maybe `trace`; `memory`, whether the limit was reached; and `log`, as level, logger and
text.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import traceback
from typing import Any, Final

from lengthwise.repository import modest

_OUT_OF_MEMORY: Final = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Unable to allocate")


def main() -> None:
    """Runs the task on stdin."""
    parent, nicer, memory_bytes = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    timeout_seconds = float(sys.argv[4])
    modest.die_with(parent, timeout_seconds)
    modest.be_modest(nicer)
    # What libraries print to stdout must not get into the answer.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        answer = _answer(memory_bytes)
        out.write(json.dumps(answer).encode())


class _LogCollector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Stores a record."""
        self.lines.append((record.levelno, record.name, record.getMessage()))


def _answer(memory_bytes: int) -> dict[str, Any]:
    """The answer to the task on stdin; may use `memory_bytes` beyond what interpreter and libraries already use."""
    records = _LogCollector()
    logging.getLogger("lengthwise").addHandler(records)
    logging.getLogger("lengthwise").setLevel(logging.INFO)
    answer: dict[str, Any] = {}
    try:
        from lengthwise.errors import ModelError
        from lengthwise.repository import judging
        from lengthwise.repository.stopping import Stopping

        modest.bound_memory(memory_bytes)
        task = pickle.loads(sys.stdin.buffer.read())
        try:
            judged = judging.judge(task.files, task.limits, task.budget_seconds, task.devices, Stopping())
            answer["judged"] = judged.to_json()
        except ModelError as error:
            answer |= {"refused": str(error), "kind": type(error).__name__}
            answer["memory"] = any(sign in str(error) for sign in _OUT_OF_MEMORY)
    except MemoryError:
        answer["memory"] = True
    except Exception as error:  # any error that a model's files cause is a reason to reject it
        answer |= {"refused": f"an unexpected error while it was verified: {type(error).__name__}: {str(error)[:500]}"}
        answer |= {"trace": traceback.format_exc(), "memory": any(sign in str(error) for sign in _OUT_OF_MEMORY)}
    answer["log"] = records.lines
    return answer


if __name__ == "__main__":
    main()
