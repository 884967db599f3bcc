"""Runs a set of tests and bounds its processor time: `python -m tests.processor_time test make lint tests`.

The bound is a multiple of a fixed piece of work that is measured before and after, since machines differ; a machine
that is busy makes both longer, and waiting counts for neither.
"""

from __future__ import annotations

import ast
import inspect
import resource
import subprocess
import sys
import time
from typing import Final

MOST: Final = {"quick": 75.0, "test": 200.0}
"""How often the fixed piece of work could run instead, at most: 1.5 times what was measured."""


def used() -> float:
    """Processor seconds of this process, and of those that it has waited for."""
    every = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in every)


def fixed_work() -> float:
    """The processor seconds of a fixed piece of work: what Python does most in tests, on a source of its own."""
    source, before = inspect.getsource(ast), time.process_time()
    for _ in range(12):
        tree = ast.parse(source)
        compile(tree, "fixed work", "exec")
        sum(len(ast.dump(node)) for node in tree.body)
    return time.process_time() - before


def main() -> None:
    """Runs the command, says what it took, and fails where that is above the bound of its name, or where it fails."""
    name, *command = sys.argv[1:]
    before, start = fixed_work(), used()
    status = subprocess.run(command).returncode
    seconds, piece = used() - start, fixed_work() / 2 + before / 2
    ratio, most = seconds / piece, MOST[name]
    print(f"{name}: {seconds:.0f} s of processor, {ratio:.0f} times a fixed piece of work (at most {most:.0f})")
    sys.exit(status or ratio > most)


if __name__ == "__main__":
    main()
