"""`lengthwise` with faults: `python -m tests.support.faulty_server FAULTS serve ...`.

While the file FAULTS exists, it holds the share of the runs that fail. The clock of the day jumps by up to a day at
every reading, as if somebody set it all the time: durations and deadlines must not depend on it.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.support import prepared

DAY_SECONDS = 86_400


def main() -> None:
    faults = Path(sys.argv.pop(1))

    prepared.stand_in()
    from lengthwise.commands import cli
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

    def jumping() -> float:
        # gRPC takes a deadline from the system's clock and subtracts `time.time()` from it: real jumps are in both. Its
        # own frames are compiled and not seen here, so it is called by those of the service's package for gRPC.
        by_grpc = Path(sys._getframe(1).f_code.co_filename).parent.name == "grpc"
        return clock() + (0.0 if by_grpc else chance.uniform(-DAY_SECONDS, DAY_SECONDS))

    setattr(Session, "run", faulty)  # noqa: B010 - mypy allows no assignment to a method
    setattr(time, "time", jumping)  # noqa: B010
    cli.main()


if __name__ == "__main__":
    main()
