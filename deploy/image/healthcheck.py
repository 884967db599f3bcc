"""Exit code 0 while the service is ready: what `HEALTHCHECK` and probes run, since the image has no curl.

`python -S healthcheck.py [/readyz] [--host H] [--port P] [--cert FILE --key FILE]`. What is not given is taken of the
service's own variables: its admin port, else its port; HTTPS where it has a certificate; and, where it wants one of its
clients, that certificate itself is shown. A service whose options are set by flag is started with its own health check.
Whether the server's certificate is right is not looked at: a probe asks whether it answers.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys

TIMEOUT_SECONDS = 2.0
LOCAL_HOST = "127.0.0.1"


def option(name: str) -> str:
    """The value of a service option from its variable; empty if it is not set."""
    return os.environ.get(f"LENGTHWISE_{name}", "")


def connect(host: str, port: int, certificate: str, key: str) -> http.client.HTTPConnection:
    """A connection to the service, over TLS where that is on.

    Args:
        host: Of the service.
        port: Of the service.
        certificate: What to show to a server that asks for one: a PEM file; empty for the server's own.
        key: Its private key; empty where the certificate's file has it.
    """
    if not option("TLS_CERT_FILE"):
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    import ssl  # a tenth of the whole time, so only where it is needed

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if option("TLS_CLIENT_CA_FILE"):
        if not certificate:
            certificate, key = option("TLS_CERT_FILE"), option("TLS_KEY_FILE")
        context.load_cert_chain(certificate, key or None)
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)


def ready(connection: http.client.HTTPConnection, path: str = "/readyz") -> bool:
    """Whether a path of the service answers 200."""
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):  # an error of TLS is an OSError
        return False
    finally:
        connection.close()


def main(arguments: list[str]) -> int:
    """Asks once; the exit code."""
    parser = argparse.ArgumentParser(description="Exit code 0 while the service is ready.")
    parser.add_argument("path", nargs="?", default="/readyz")
    parser.add_argument("--host", default=LOCAL_HOST)
    parser.add_argument("--port", type=int, default=int(option("ADMIN_PORT") or option("PORT") or 8000))
    parser.add_argument("--cert", default="")
    parser.add_argument("--key", default="")
    given = parser.parse_args(arguments)
    return 0 if ready(connect(given.host, given.port, given.cert, given.key), given.path) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
