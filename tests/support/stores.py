"""Stand-ins for stores of models, each on a port of this machine: a web server, a hub, a container registry."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import select
import ssl
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote


class Answer(NamedTuple):
    """An answer of a stand-in.

    `cut` leaves out the last bytes of the body, and ends the connection; `drips` sends a body byte by byte, until its
    reader has gone.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})
    cut: int = 0
    drips: bool = False


class Call(NamedTuple):
    """A request."""

    method: str
    path: str
    query: str
    headers: Any
    body: bytes


class StandIn:
    """A server whose answers a function gives; `calls` are those that it got, and `url` is its own."""

    def __init__(self, answer: Callable[[Call], Answer], tls: ssl.SSLContext | None = None) -> None:
        self.calls: list[Call] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65_537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                path, _, query = self.path.partition("?")
                call = Call(self.command, path, query, self.headers, body)
                stand_in.calls.append(call)
                reply = answer(call)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if "content-length" not in reply.headers:
                    self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                if reply.drips:
                    self.drip(reply.body)
                elif self.command != "HEAD":
                    self.wfile.write(reply.body[: len(reply.body) - reply.cut])
                self.wfile.flush()
                self.close_connection = self.close_connection or bool(reply.cut or reply.drips)

            def drip(self, body: bytes) -> None:
                with suppress(OSError):
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        if select.select([self.connection], [], [], 0.02)[0]:  # it was closed
                            break

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = f"{'http' if tls is None else 'https'}://{'127.0.0.1' if tls is None else 'localhost'}:{self.port}"

    @property
    def paths(self) -> list[str]:
        """The paths of the requests so far."""
        return [call.path for call in self.calls]


@contextmanager
def running(stand_in: StandIn) -> Iterator[StandIn]:
    """Runs a stand-in while the block runs."""
    thread = threading.Thread(target=stand_in.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        stand_in.server.shutdown()
        stand_in.server.server_close()
        thread.join()


def versions_in(repository: Path) -> set[str]:
    """The versions in a model repository, as `NAME/VERSION`."""
    return {path.parent.relative_to(repository).as_posix() for path in repository.glob("*/*/manifest.json")}


def archive_of(folder: Path, target: Path, kind: str = "w") -> bytes:
    """A tar archive of what is in a folder, with its bytes."""
    with tarfile.open(target, kind) as tar:  # type: ignore[call-overload]  # any of its modes
        tar.add(folder, arcname=".")
    return target.read_bytes()


class Web:
    """The answers of a web server: what it has, by path; `faults` come first."""

    def __init__(self, **files: bytes) -> None:
        self.files = dict(files)
        self.faults: dict[str, Answer] = {}
        self.server: StandIn

    def __call__(self, call: Call) -> Answer:
        """Answers with a file, and an ETag of its content."""
        name = call.path.lstrip("/")
        if name in self.faults:
            return self.faults[name]
        if name not in self.files:
            return Answer(404)
        body = self.files[name]
        return Answer(body=body, headers={"etag": f'"{hashlib.md5(body).hexdigest()}"'})


class Hub:
    """The answers of a hub with one repository, to the calls of huggingface_hub; each commit is the next one."""

    def __init__(self, name: str = "team/vowels") -> None:
        self.name = name
        self.commits: list[dict[str, bytes]] = [{}]
        self.token: str | None = None
        self.server: StandIn
        self.spoilt: dict[str, Answer] = {}
        self.faults: dict[str, Answer] = {}

    @property
    def head(self) -> str:
        """The last commit."""
        return f"{len(self.commits) - 1:040x}"

    def __call__(self, call: Call) -> Answer:
        """Answers a call."""
        if call.path in self.faults:
            return self.faults[call.path]
        if self.token is not None and call.headers.get("authorization") != f"Bearer {self.token}":
            return Answer(401, headers={"x-error-message": "Invalid credentials"})
        if call.path == "/api/repos/create":
            return _json({"url": f"{self.server.url}/{self.name}", "id": "1", "name": self.name})
        if call.path == "/api/validate-yaml":
            return _json({"warnings": [], "errors": []})
        if match := re.fullmatch(rf"/api/models/{self.name}/preupload/[^/]+", call.path):
            return _json(
                {
                    "files": [
                        {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                        for each in json.loads(call.body)["files"]
                    ]
                }
            )
        if re.fullmatch(rf"/api/models/{self.name}/commit/[^/]+", call.path):
            lines = [json.loads(line) for line in call.body.splitlines() if line]
            new = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.commits.append(self.commits[-1] | new)
            return _json({"commitOid": self.head, "commitUrl": f"{self.server.url}/{self.name}/commit/{self.head}"})
        if match := re.fullmatch(rf"/api/models/{self.name}(?:/revision/([^/]+))?", call.path):
            return self._about(match[1] or "main")
        if match := re.fullmatch(rf"/{self.name}/resolve/([^/]+)/(.+)", call.path):
            return self._file(match[1], match[2])
        return Answer(404, headers={"x-error-code": "RepoNotFound"})

    def _files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.head if revision == "main" else revision
        known = {f"{index:040x}": files for index, files in enumerate(self.commits)}
        return (commit, known[commit]) if commit in known else None

    def _about(self, revision: str) -> Answer:
        found = self._files(revision)
        if found is None:
            return Answer(404, headers={"x-error-code": "RevisionNotFound"})
        siblings = [{"rfilename": name, "size": len(body)} for name, body in found[1].items()]
        return _json({"id": self.name, "modelId": self.name, "sha": found[0], "siblings": siblings, "tags": []})

    def _file(self, revision: str, name: str) -> Answer:
        found = self._files(revision)
        if found is None or name not in found[1]:
            return Answer(404, headers={"x-error-code": "EntryNotFound"})
        body = found[1][name]
        headers = {"x-repo-commit": found[0], "etag": f'"{hashlib.sha1(body).hexdigest()}"'}
        if name in self.spoilt:
            return self.spoilt[name]._replace(headers=headers)
        return Answer(body=body, headers=headers)


class Registry:
    """The answers of a container registry; with `login`, by the tokens of its own token service."""

    def __init__(self, login: str | None = None) -> None:
        self.login = login
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.url = ""
        self.faults: dict[str, Answer] = {}

    def __call__(self, call: Call) -> Answer:
        """Answers a call."""
        if call.path in self.faults:
            return self.faults[call.path]
        if call.path == "/token":
            good = call.headers.get("authorization") == f"Basic {self.login}"
            return _json({"token": "a-token"}) if good else Answer(401)
        if self.login is not None and call.headers.get("authorization") != "Bearer a-token":
            challenge = f'Bearer realm="{self.url}/token",service="registry"'
            return Answer(401, headers={"www-authenticate": challenge})
        name = call.path.rpartition("/")[2]
        if "/blobs/uploads/" in call.path:
            if call.method == "POST":
                return Answer(202, headers={"location": f"{call.path}1234?state=abc"})
            digest = call.query.replace("%3A", ":").rpartition("digest=")[2]
            self.blobs[digest] = call.body
            good = digest == _digest(call.body)
            return Answer(201 if good else 400)
        if "/blobs/" in call.path:
            return Answer(body=self.blobs[name]) if name in self.blobs else Answer(404)
        if call.method == "PUT":
            kept = call.headers["content-type"], call.body
            self.manifests |= {name: kept, _digest(call.body): kept}
            return Answer(201)
        if name not in self.manifests:
            return Answer(404)
        kind, body = self.manifests[name]
        return Answer(body=body, headers={"content-type": kind, "docker-content-digest": _digest(body)})


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(content: Any) -> Answer:
    return Answer(body=json.dumps(content).encode(), headers={"content-type": "application/json"})


class Objects:
    """The answers of Google Cloud Storage and of Azure: objects by their paths, listed and read."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.files: dict[str, bytes] = {}

    def __call__(self, call: Call) -> Answer:
        """Answers a call of either kind; a range of an object is what most are."""
        query = parse_qs(call.query)
        _, _, name = unquote(call.path.strip("/")).partition(f"{self.bucket}/")
        if call.method in ("HEAD", "GET") and name in self.files:
            return self._object(call, self.files[name])
        if query.get("list-type") or query.get("comp") == ["list"]:
            return self._listed(query.get("prefix", [""])[0], azure="comp" in query)
        return Answer(404)

    def _object(self, call: Call, body: bytes) -> Answer:
        headers = {"etag": _digest(body), "last-modified": "Fri, 27 Nov 2026 00:00:00 GMT"}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", call.headers.get("range", ""))
        if match is None:
            return Answer(body=body, headers=headers | {"x-ms-blob-type": "BlockBlob"})
        first, last = int(match[1]), int(match[2])
        return Answer(206, body[first : last + 1], headers | {"content-range": f"bytes {first}-{last}/{len(body)}"})

    def _listed(self, prefix: str, *, azure: bool) -> Answer:
        names = {name: body for name, body in self.files.items() if name.startswith(prefix)}
        if azure:
            blobs = "".join(
                f"<Blob><Name>{name}</Name><Properties><Last-Modified>Fri, 27 Nov 2026 00:00:00 GMT</Last-Modified>"
                f"<Etag>{_digest(body)}</Etag><Content-Length>{len(body)}</Content-Length>"
                "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
                for name, body in names.items()
            )
            text = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
        else:
            text = "".join(
                f"<Contents><Key>{name}</Key><LastModified>2026-11-27T00:00:00Z</LastModified>"
                f"<ETag>{_digest(body)}</ETag><Size>{len(body)}</Size></Contents>"
                for name, body in names.items()
            )
            text = f"<ListBucketResult>{text}</ListBucketResult>"
        return Answer(body=text.encode(), headers={"content-type": "application/xml"})
