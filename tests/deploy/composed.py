"""Brings docker-compose.yml up in a network of its own, asks it, and takes it down; prints what it saw as JSON."""

import json
import subprocess
import sys
import urllib.parse
import urllib.request
from typing import Any

from tests.deploy.live import until
from tests.deploy.tools import PIP, ROOT, program
from tests.support.waiting import answers

SERVICES = ("lengthwise", "prometheus")


def get(url: str) -> Any:
    """The JSON behind a URL."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def main() -> None:
    """Up, asked, down."""
    compose = [program("podman-compose", PIP), "--podman-path", "docker", "-f", str(ROOT / "docker-compose.yml")]
    down = [*compose, "down", "--volumes"]
    # A run that was killed leaves containers under these names, for which `up` would wait for ever.
    subprocess.run(down, check=False, stdout=sys.stderr, timeout=60)
    try:
        subprocess.run([*compose, "up", "--detach", "--no-build", *SERVICES], check=True, stdout=sys.stderr, timeout=90)
        until("the service is ready", 60, lambda: answers(8000, "/readyz"))
        until("Prometheus is ready", 60, lambda: answers(9090, "/-/ready"))
        body = (ROOT / "examples" / "japanese-vowels.json").read_bytes()
        call = urllib.request.Request("http://127.0.0.1:8000/predict", body, {"content-type": "application/json"})
        with urllib.request.urlopen(call, timeout=10) as answer:
            status = answer.status
        query = urllib.parse.urlencode({"query": 'lengthwise_ready{job="lengthwise"}'})
        series = f"http://127.0.0.1:9090/api/v1/query?{query}"
        until("Prometheus has scraped the service", 60, lambda: bool(get(series)["data"]["result"]))
        rules = get("http://127.0.0.1:9090/api/v1/rules")["data"]["groups"]
        print(json.dumps({
            "predict": status,
            "instance": get(series)["data"]["result"][0]["metric"]["instance"],
            "rules": sorted(rule["name"] for group in rules for rule in group["rules"]),
        }))  # fmt: skip
    finally:
        subprocess.run(down, check=False, stdout=sys.stderr, timeout=60)


if __name__ == "__main__":
    main()
