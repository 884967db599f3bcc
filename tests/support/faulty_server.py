"""`lengthwise` with faults: `python -m tests.support.faulty_server FAULTS serve ...`.

While the file FAULTS exists, it holds the share of the runs that fail. The clock of the day jumps by up to a day at
every reading, as if somebody set it all the time: durations and deadlines must not depend on it.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

DAY_SECONDS = 86_400


def main() -> None:
    faults = Path(sys.argv.pop(1))

    from lengthwise import cli
    from lengthwise.runtime.session import Session

    run, clock = Session.run, time.time
    chance = random.Random(7)

    def faulty(session: Session, *arguments: Any, **named: Any) -> Any:
        try:
            share = float(faults.read_text())
        except (OSError, ValueError):
            share = 0.0
        if chance.random() < share:
            raise RuntimeError("an injected failure")
        return run(session, *arguments, **named)

    setattr(Session, "run", faulty)  # noqa: B010 - mypy allows no assignment to a method
    setattr(time, "time", lambda: clock() + chance.uniform(-DAY_SECONDS, DAY_SECONDS))  # noqa: B010
    cli.main()


if __name__ == "__main__":
    main()
