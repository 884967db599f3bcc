"""A load by wrk (Debian's `wrk`), which needs little of the machine: sequences that are sent again and again."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import processes
from lengthwise.padding import Steps

PAUSE_SECONDS: Final = 0.3
"""Between loads: workers that have not noticed yet that connections ended leave the next ones to each other."""
_SCRIPT = """
local bodies = {%s}
wrk.method, wrk.headers["content-type"] = "POST", "application/json"
request = function() return wrk.format(nil, nil, nil, bodies[math.random(#bodies)]) end
done = function(summary, latency)
  local e, ms = summary.errors, function(share) return latency:percentile(share) / 1000 end
  io.write(string.format('\\n{"requests": %%d, "seconds": %%f, "p50": %%f, "p99": %%f, "refused": %%d, "lost": %%d}\\n',
    summary.requests, summary.duration / 1e6, ms(50), ms(99), e.status, e.connect + e.read + e.write + e.timeout))
end
"""


def is_installed() -> bool:
    """Whether wrk can be run."""
    return shutil.which("wrk") is not None


def script(sequences: Sequence[Steps]) -> str:
    """The Lua program of a load: requests of one of the sequences each, drawn at random."""
    bodies = [json.dumps({"sequences": [steps.round(3).tolist()]}) for steps in sequences]
    return _SCRIPT % ", ".join(f"'{body}'" for body in bodies)


def load(
    url: str,
    pid: int,
    lua: Path,
    connections: int,
    seconds: int,
    *,
    threads: int = 1,
    warm_up_seconds: int = 1,
    patience_seconds: int = 2,
) -> dict[str, float]:
    """The figures of one load, after a short one that is not counted.

    Args:
        url: Where requests are posted.
        pid: The server's process, which leads a session: the processor time of the session is counted.
        lua: The file with the `script`.
        connections: How many are open, each with one request at a time.
        seconds: How long the load lasts; wrk knows whole seconds only.
        threads: Of wrk, each on a core.
        warm_up_seconds: How long the load before it lasts.
        patience_seconds: After this time without an answer a request is lost.

    Returns:
        `rate` in answers a second, `p50` and `p99` in ms, `requests`, `refused` and `lost` (not answered in time, or
        the connection failed), and `cores` that the server used.
    """
    command = ["wrk", f"-t{threads}", f"-c{connections}", "-s", str(lua), "--timeout", str(patience_seconds), url]
    subprocess.run([*command, f"-d{warm_up_seconds}s"], stdout=subprocess.DEVNULL, check=True)
    time.sleep(PAUSE_SECONDS)
    spent = processes.cpu_seconds(pid)
    output = subprocess.run([*command, f"-d{seconds}s"], stdout=subprocess.PIPE, check=True, text=True).stdout
    spent = processes.cpu_seconds(pid) - spent
    figures: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    answered = figures["requests"] - figures["refused"]
    return figures | {"rate": answered / figures["seconds"], "cores": spent / figures["seconds"]}
