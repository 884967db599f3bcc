"""Which modules one plain `POST /predict` crosses, on a kept connection of a server that has answered some before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import http.client, json, os, runpy, signal, socket, sys, threading
root, port = sys.argv[1], int(sys.argv[2])
recorded, recording = [set() for _ in range(10)], None


def profile(frame, event, _):
    if recording is not None:
        recorded[recording].add(frame.f_code.co_filename)


def ask():
    global recording
    body = json.dumps({"sequences": [[[0.1] * 12] * 20]})
    connection, answered = http.client.HTTPConnection("127.0.0.1", port, timeout=60), 0
    while answered < 40:
        recording = answered - 30 if answered >= 30 else None
        try:
            connection.request("POST", "/predict", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status not in (200, 503):
                break
            answered += answer.status == 200
        except OSError:  # it does not listen yet
            connection.close()
        if not answered:
            threading.Event().wait(0.1)
    recording = None
    seen = set.intersection(*recorded)  # without what happens only at times
    paths = sorted(os.path.relpath(path, root) for path in seen if path.startswith(root) and ".venv" not in path)
    modules = [path for path in paths if path.endswith(".py")]
    print(json.dumps({"status": answer.status, "answer": text, "modules": modules}), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


sys.path[:0] = sys.argv[3:]
threading.Thread(target=ask, daemon=True).start()
threading.setprofile(profile)
sys.setprofile(profile)
sys.argv = ["lengthwise", "serve", "--port", str(port), "--log-level", "error"]
runpy.run_module("lengthwise", run_name="__main__", alter_sys=True)
"""


def crossed(root: Path) -> list[str]:
    """Paths of the checkout's modules of which a function ran in every one of ten requests.

    Raises:
        RuntimeError: The server did not answer with 200.
    """
    from lengthwise.bench.launch import free_port

    nested = (root / "service/lengthwise").is_dir()
    places = [str(root / place) for place in (("service", "model_export") if nested else ("",))]
    command = [sys.executable, "-P", "-c", _PROGRAM, str(root), str(free_port()), *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=root)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines or (answer := json.loads(lines[-1]))["status"] != 200:
        raise RuntimeError(f"the server of {root} did not answer: {done.stdout[:500]}{done.stderr[-2000:]}")
    modules: list[str] = answer["modules"]
    return modules
