"""Runs printed `docker run` commands as they stand, and asks what they serve; prints the answers as JSON.

Its arguments are the commands. One that only asks the service runs while the first of them serves.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.deploy.live import started, until
from tests.deploy.tools import ROOT
from tests.support.waiting import answers


def served(line: str, asking: list[str]) -> Any:
    """What the service of a command answers, after other commands have asked it."""
    log = Path("container.log")
    with started(shlex.split(line), log):
        until(line, 60, lambda: answers(8000, "/readyz"), log.read_text)
        for other in asking:
            subprocess.run(shlex.split(other), check=True, stdout=sys.stderr)
        body = (ROOT / "examples" / "japanese-vowels.json").read_bytes()
        call = Request("http://127.0.0.1:8000/predict", body, {"content-type": "application/json"})
        with urlopen(call, timeout=10) as answer:
            predictions = json.load(answer)["predictions"]
    until("the port is free", 20, lambda: not answers(8000, "/livez"))
    return [one["label"] for one in predictions]


def main(lines: list[str]) -> None:
    """Runs them."""
    asking = [line for line in lines if " bench " in line]
    serving = [line for line in lines if line not in asking]
    print(json.dumps({line: served(line, asking if line == serving[0] else []) for line in serving}))


if __name__ == "__main__":
    main(sys.argv[1:])
