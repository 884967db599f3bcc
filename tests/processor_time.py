"""Runs a set of tests and bounds its processor time: `python -m tests.processor_time test make lint tests`.

The bound is a multiple of a fixed piece of work that is measured before and after, since machines differ; a machine
that is busy makes both longer, and waiting counts for neither.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any, Final

MOST: Final = {"quick": 440.0, "test": 1180.0}
"""How often the fixed piece of work could run instead, at most: 150 s and 400 s of two cores, and 15 % more."""


def used() -> float:
    """Processor seconds of this process, and of those that it has waited for."""
    every = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in every)


def fixed_work() -> float:
    """The processor seconds of a fixed piece of work, the same on every Python: it is compiled and run as tests are."""
    source = "\n".join(
        f"def f{number}(a, b=2):\n    return [a * b + each for each in range(99)]" for number in range(400)
    )
    before = time.process_time()
    for _ in range(24):
        names: dict[str, Any] = {}
        exec(compile(source, "fixed work", "exec"), names)
        sum(sum(names[f"f{number}"](number)) for number in range(400))
    return time.process_time() - before


def main() -> None:
    """Runs the command, says what it took, and fails where that is above the bound of its name, or where it fails."""
    name, *command = sys.argv[1:]
    before, start = fixed_work(), used()
    status = subprocess.run(command).returncode
    seconds, piece = used() - start, fixed_work() / 2 + before / 2
    ratio, most = seconds / piece, MOST[name]
    print(f"{name}: {seconds:.0f} s of processor, {ratio:.0f} times a fixed piece of work (at most {most:.0f})")
    sys.exit(status or int(ratio > most))


if __name__ == "__main__":
    main()
