"""The servers that are compared, and their commands: each on one core with one inference thread and the same graph."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from benchmarks.workloads import Work, at_int8
from lengthwise.bench import launch


@dataclass(frozen=True)
class Contender:
    """One server."""

    name: str  # in results
    title: str  # for people
    # module for `python -m` and its arguments, which may contain `{model}`, `{repository}` and `{port}`
    module: Sequence[str]
    is_peer: bool = False  # whether it is another project's server
    ready_path: str = "/readyz"  # answers 200 once the server listens
    environment: Mapping[str, str] = field(default_factory=dict)  # its variables, which may contain the same
    at_int8: bool = False  # whether it serves the graph at int8
    python: str = sys.executable  # the interpreter that runs it

    def running(self, work: Work, cores: Sequence[int]) -> AbstractContextManager[launch.Running]:
        """Runs it with a workload's model while the block runs."""
        port = launch.free_port()
        work = at_int8(work) if self.at_int8 else work
        places = {"model": str(work.directory), "repository": str(work.repository), "port": str(port)}
        command = [self.python, "-m", *(part.format(**places) for part in self.module)]
        environment = {name: value.format(**places) for name, value in self.environment.items()}
        return launch.running(command, port, ready_path=self.ready_path, cores=cores, environment=environment)


_SERVE = ("serve", "{repository}", "--port", "{port}", "--runners", "1", "--log-level", "warning")
_MOSEC = ("--port", "{port}", "--address", "127.0.0.1", "--log-level", "warning")

SERVICE = Contender("lengthwise", "Lengthwise", ("lengthwise", *_SERVE))
INT8 = Contender("lengthwise-int8", "Lengthwise at int8", ("lengthwise", *_SERVE), at_int8=True)
# In onnxruntime's kernels, as the peers: the gain of planning, batching and the short request path alone.
SAME_KERNELS = Contender(
    "onnxruntime-kernels", "Lengthwise, onnxruntime's kernels", ("lengthwise", *_SERVE, "--no-recurrent-kernels")
)
# Where a row costs its own steps, fewer rows are slower; `benchmarks.planning` has other sizes.
ARRIVAL = Contender(
    "arrival-order",
    "Lengthwise, planned by arrival",
    ("benchmarks.variants", "arrival-order", *_SERVE, "--max-batch-rows", "16"),
)
EMPTY = Contender("empty-run", "Lengthwise, the graph not run", ("benchmarks.variants", "empty-run", *_SERVE))
NAIVE = Contender(
    "naive-fastapi", "FastAPI, one run a request", ("benchmarks.peers.naive_fastapi", "{model}", "{port}"), is_peer=True
)
# Four rows and 10 ms are those of its README, and of 4, 16 and 64 rows the fastest on skewed lengths.
MOSEC = Contender(
    "mosec",
    "mosec as documented",
    ("benchmarks.peers.mosec_documented", *_MOSEC),
    is_peer=True,
    ready_path="/",
    environment={"BENCH_MODEL": "{model}", "BENCH_BATCH_ROWS": "4", "BENCH_WAIT_MS": "10"},
)
# The shortest wait that it has: a user who sorts by hand has tuned this too.
MOSEC_SORTED = Contender(
    "mosec-sorted",
    "mosec, orjson and sorting by hand",
    ("benchmarks.peers.mosec_sorted", *_MOSEC),
    is_peer=True,
    ready_path="/",
    environment={"BENCH_MODEL": "{model}", "BENCH_BATCH_ROWS": "64", "BENCH_WAIT_MS": "1"},
)

CONTENDERS = (SERVICE, INT8, SAME_KERNELS, ARRIVAL, NAIVE, MOSEC, MOSEC_SORTED)
