"""Exit code 0 while the service in this container is ready: what `HEALTHCHECK` runs, since the image has no curl.

The port is the variable's: a service whose port is set by flag is started with its own health check.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_SECONDS = 2.0


def ready(port: int) -> bool:
    """Whether `/readyz` on a port of this host answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if ready(int(os.environ.get("LENGTHWISE_PORT", "8000"))) else 1)
