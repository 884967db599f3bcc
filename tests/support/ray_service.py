"""Two replicas on Ray Serve, started as docs/engines.md does: `python -m tests.support.ray_service PORT`.

Prints the process ids of the replicas, and ends when its standard input does.
"""

import subprocess
import sys
from typing import Any

import ray
from ray import serve


def application() -> Any:
    """The application of one replica."""
    from lengthwise import Settings, make_app

    return make_app(Settings(runners=1))


def replicas() -> list[int]:
    """The processes of the replicas."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "ray::ServeReplica:default:lengthwise" in line]


def main(port: int) -> None:
    """Serves until nobody wants it any more."""
    replica = serve.deployment(
        serve.ingress(application)(),
        name="lengthwise",
        num_replicas=2,
        max_ongoing_requests=512,
        ray_actor_options={"num_cpus": 1},
    )
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(replica.bind())
    print(*replicas(), flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
