"""Draws docs/dashboard.png: `make dashboard-picture`, two minutes on a machine that has nothing else to do.

A service with one runner and a real Prometheus, under 50, 200, 400 and 100 requests a second for half a minute each,
with a few calls among them that are refused: too late, too much at once, wrong.
"""

import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from lengthwise.bench.launch import free_port, running, serve_command
from tests.deploy.live import body, monitored, prometheus
from tests.deploy.tools import DEPLOY, ROOT, loaded

RATES = (50, 200, 400, 100)
SECONDS = 30
REFUSED_AFTER_SECONDS = 10
LENGTHS = ("--lengths", "lognormal:50,0.7")


def refused(url: str, turn: int) -> None:
    """The calls of one half minute that are refused."""
    if turn == 2:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: httpx2.post(url, content=body(*[1000] * 30), timeout=60), range(12)))
    elif turn:
        for content in (body(5, timeout_ms=0.01), b"{") if turn == 3 else (body(5, timeout_ms=0.01),):
            for _ in range(10):
                httpx2.post(url, content=content, timeout=60)


def main() -> None:
    """Loads, then draws."""
    port = free_port()
    folder = Path(tempfile.mkdtemp())
    models, options = monitored(folder)
    options |= {"max_queue_cost_steps": "40000", "runners": "1"}
    service = f"http://127.0.0.1:{port}"
    with running(serve_command(models, port, options), port), prometheus(folder, free_port(), service[7:]) as url:
        for turn, rate in enumerate(RATES):
            timer = threading.Timer(REFUSED_AFTER_SECONDS, refused, (f"{service}/predict", turn))
            timer.start()
            command = [sys.executable, "-m", "lengthwise", "bench", service, *LENGTHS, "--no-check"]
            command += ["--request-rate", str(rate), "--duration-seconds", str(SECONDS)]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            timer.join()
        picture = loaded(DEPLOY / "grafana" / "picture.py")
        picture.draw(url, ROOT / "docs" / "dashboard.png", seconds=len(RATES) * SECONDS, interval_seconds=10)


if __name__ == "__main__":
    main()
