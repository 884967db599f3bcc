"""The program of the separate process that verifies a model; `repository.verification_process` starts it.

It imports what it needs, and then waits for its task on stdin: two pickles, of its limits of time and memory and of a
`VerificationTask`. It writes one JSON object, the *answer*, to the original stdout:

- `accepted`: a `Verification`; or `refused`: why not, with `kind` (the class of the error) or `trace` (a traceback);
- `memory`: whether the limit of memory was reached, which may be all that the answer has;
- `of_gpu`: whether the memory of a GPU ran out;
- `log`: what was logged, as level, logger and text.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import traceback
from logging.handlers import BufferingHandler
from typing import Any

from lengthwise.repository import modest


def main() -> None:
    """Verifies the task on stdin, and writes the answer to stdout. The argument is the parent's process id."""
    modest.be_modest(int(sys.argv[1]))
    # What libraries print to stdout must not get into the answer.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        records = BufferingHandler(sys.maxsize)
        logging.getLogger("lengthwise").addHandler(records)
        logging.getLogger("lengthwise").setLevel(logging.INFO)
        answer = _answer()
        answer["log"] = [(record.levelno, record.name, record.getMessage()) for record in records.buffer]
        out.write(json.dumps(answer).encode())


def _answer() -> dict[str, Any]:
    """Verifies the task on stdin, and returns the answer without its log.

    The limit of memory is what it may use beyond what the interpreter and the libraries use already. An answer
    `refused` also says whether the error looks as if memory had run out (`memory`), unless it may be that of a GPU.
    """
    try:
        from lengthwise.errors import OUT_OF_DEVICE_MEMORY, OUT_OF_MEMORY, ModelError
        from lengthwise.repository import verifier
        from lengthwise.repository.stopping import Stopping

        timeout_seconds, memory_bytes = pickle.load(sys.stdin.buffer)
        modest.bound_time(timeout_seconds)
        modest.bound_memory(memory_bytes)
        task = pickle.load(sys.stdin.buffer)
        try:
            return {"accepted": verifier.verify(task, Stopping()).model_dump()}
        except ModelError as error:
            answer: dict[str, Any] = {
                "refused": str(error),
                "kind": type(error).__name__,
                "of_gpu": task.devices[0].provider.bound and any(sign in str(error) for sign in OUT_OF_DEVICE_MEMORY),
            }
    except MemoryError:
        return {"memory": True}
    except Exception as error:  # any error that a model's files cause is a reason to refuse it
        answer = {"refused": f"an unexpected error while it was verified: {type(error).__name__}: {str(error)[:500]}"}
        answer["trace"] = traceback.format_exc()
    # Of a GPU's memory this process has no limit.
    return answer | {"memory": not answer.get("of_gpu") and any(sign in answer["refused"] for sign in OUT_OF_MEMORY)}


if __name__ == "__main__":
    main()
