"""What attackers try, and what they get: a test for each row of the table in `docs/security.md`.

The server is one process behind a real socket; after each attack it answers the next good request, and nothing waits.
"""

import gzip
import hmac
import json
import logging
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import orjson
import pytest
from onnx import external_data_helper

from lengthwise.batching.limits import BatchLimits
from lengthwise.connections.api_keys import Keys
from lengthwise.errors import InvalidRequest, ModelError, Unauthorized
from lengthwise.grpc import codec
from lengthwise.padding import PaddedBatch
from lengthwise.repository import loading
from lengthwise.runtime.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE, digest
from lengthwise.settings import bundled_models
from tests.support import proc
from tests.support.numpy_models import manifest, model, serving
from tests.support.server_process import ServerProcess, started, well_afterwards

ROOT = Path(__file__).parents[2]
STEP = [0.5] * 12
GOOD = {"sequences": [[STEP]]}
BODY = orjson.dumps(GOOD)
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with started("--runners", "1", "--access-log", "1", "--max-body-bytes", str(4 * MEBIBYTE)) as process:
        yield process


@pytest.fixture(autouse=True)
def _well_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield from well_afterwards(request, GOOD)


def post(path: bytes, body: bytes = BODY, *headers: bytes) -> bytes:
    """A POST with exactly these bytes as its path, and these lines beside the necessary ones."""
    lines = [b"POST %s HTTP/1.1" % path, b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def finds_nothing(server: ServerProcess, name: bytes) -> None:
    """A model of that name, in every path and in a body, is one that is not served; nothing of the disk is told."""
    paths = [b"/v1/models/%s:predict", b"/v2/models/%s/infer", b"/v2/models/japanese-vowels/versions/%s/infer"]
    with server.connect() as wire:
        for path in paths:
            wire.send(post(path % name))
            status, _, body = wire.answer()
            assert status in (400, 404)
            assert b"root:" not in body
            assert str(bundled_models()).encode() not in body
            if status == 400 and b"Invalid HTTP" in body:
                return  # the parser took it for no path at all


# Paths and names


NAMES = {
    "that climb": [b"../../../etc/passwd", b"..", b"../japanese-vowels", b"/etc/passwd", b"..\\..\\x"],
    "that climb in disguise": [
        b"%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        b"..%2fjapanese-vowels",
        b"%252e%252e%252f",
        b"..%5c",
    ],
    "with a null or a line break": [b"japanese-vowels%00", b"%00", b"japanese-vowels%00.onnx", b"a%0d%0ab"],
    "that are no Unicode": [b"%c0%ae%c0%ae%c0%af", b"%e0%80%ae", b"%ff%fe", b"%ed%a0%80"],
}


@pytest.mark.process
@pytest.mark.parametrize("kind", NAMES)
def test_a_name_that_leads_elsewhere_finds_nothing(server: ServerProcess, kind: str) -> None:
    for name in NAMES[kind]:
        finds_nothing(server, name)
        assert server.predict(GOOD | {"model": name.decode()}).status_code == 404
    assert server.predict(GOOD | {"model": "japanese-vowels\0"}).status_code == 404
    body = b'{"model": "\\ud800", "sequences": [[' + orjson.dumps(STEP) + b"]]}"
    assert server.client.post("/predict", content=body, headers={"content-type": "application/json"}).status_code == 422


@pytest.mark.process
@pytest.mark.parametrize(
    "name",
    [
        "\uff0e\uff0e\uff0fetc",
        "japanese\uff0dvowels",
        "j\u0430panese-vowels",
        "JAPANESE-VOWELS",
        "japanese-vowels\u200b",
        "\u202eslewov",
    ],
    ids=["fullwidth dots", "fullwidth hyphen", "cyrillic a", "capitals", "zero width space", "right to left"],
)
def test_a_name_that_only_looks_alike_finds_nothing(server: ServerProcess, name: str) -> None:
    finds_nothing(server, b"".join(b"%%%02x" % byte for byte in name.encode()))
    assert server.predict(GOOD | {"model": name}).status_code == 404


# Framing


CHUNKED = b"transfer-encoding: chunked"
TWO_ENDS = {
    "a length and chunks": [b"content-length: 5", CHUNKED],
    "chunks and a length": [CHUNKED, b"content-length: 5"],
    "two lengths": [b"content-length: 5", b"content-length: 48"],
    "two equal lengths": [b"content-length: 5", b"content-length: 5"],
    "a list of lengths": [b"content-length: 5, 48"],
    "a length with a sign": [b"content-length: +5"],
    "a negative length": [b"content-length: -5"],
    "a length in hexadecimal": [b"content-length: 0x5"],
    "an unknown coding": [b"transfer-encoding: xchunked"],
    "chunks that are not last": [b"transfer-encoding: chunked, identity"],
    "chunks of something packed": [b"transfer-encoding: gzip, chunked"],
    "two hosts": [b"host: y", b"content-length: 5"],
    "two codings": [CHUNKED, b"transfer-encoding: identity"],
    "a space before the colon": [b"transfer-encoding : chunked"],
    "a folded header": [b"x-a: b\r\n content-length: 5"],
    "a bare line feed": [b"x-a: b\ntransfer-encoding: chunked", b"content-length: 5"],
    "a bare carriage return": [b"x-a: b\rtransfer-encoding: chunked", b"content-length: 5"],
    "a null in a header": [b"x-a: b\0", b"content-length: 5"],
    "a length past all numbers": [b"content-length: 99999999999999999999999999"],
    "a line without a colon": [b"bad header"],
}


@pytest.mark.process
@pytest.mark.parametrize("lines", TWO_ENDS.values(), ids=TWO_ENDS.keys())
def test_a_request_that_ends_in_two_places_is_refused_and_so_is_what_is_hidden_in_it(
    server: ServerProcess, lines: list[bytes]
) -> None:
    hidden = b"0\r\n\r\nPOST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    head = b"\r\n".join([b"POST /predict HTTP/1.1", b"host: x", *lines])
    before = server.figures()
    with server.connect() as wire:
        wire.send(head + b"\r\n\r\n" + hidden)
        assert wire.answer()[0] == 400
        assert wire.answer()[0] == 0  # the connection has ended
    after = server.figures()
    # One whose head was whole may count as left by its client; answered is none.
    answered = [name for name in after if name.startswith("lengthwise_requests_total") and "499" not in name]
    assert all(after[name] == before.get(name, 0) for name in answered)


@pytest.mark.process
@pytest.mark.parametrize("chunk", [b"-1\r\n", b"f" * 18 + b"\r\n", b"5;\rx\r\nabcde\r\n", b"5\nabcde"])
def test_a_chunk_of_no_honest_size_is_refused(server: ServerProcess, chunk: bytes) -> None:
    with server.connect() as wire:
        wire.send(b"POST /predict HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n\r\n" + chunk + b"\r\n0\r\n\r\n")
        assert wire.answer()[0] in (0, 400)


# Bodies


@pytest.mark.process
def test_a_body_that_inflates_past_the_limit_is_refused_within_the_limit(server: ServerProcess) -> None:
    bomb = gzip.compress(bytes(400 * MEBIBYTE // 8), 9) * 8  # eight members: 400 MiB
    before = server.peak_bytes()
    with server.connect() as wire:
        wire.send(post(b"/predict", bomb, b"content-encoding: gzip"))
        assert wire.answer()[0] == 413
    assert server.peak_bytes() - before < 32 * MEBIBYTE


@pytest.mark.process
@pytest.mark.parametrize(
    "body",
    [
        b"[" * MEBIBYTE,
        b'{"sequences":' * 100_000,
        b'{"sequences": [[[' + b"9" * MEBIBYTE + b"]]]}",
        b'{"sequences": [[[1e' + b"9" * 100_000 + b"]]]}",
        b'{"timeout_ms": 1' + b"0" * 100_000 + b', "sequences": [[[1]]]}',
        b'{"sequences": ' + b'"\\u0000' * 100_000,
    ],
    ids=["arrays", "objects", "a long number", "a long exponent", "a long option", "escapes"],
)
def test_a_body_that_is_deep_or_has_endless_numbers_is_refused(server: ServerProcess, body: bytes) -> None:
    assert server.client.post("/predict", content=body, headers={"content-type": "application/json"}).status_code == 422


@pytest.mark.process
@pytest.mark.parametrize("part", [b"[]", b"{}", b'""'])
def test_a_body_of_millions_of_tiny_parts_is_refused_in_little_memory(server: ServerProcess, part: bytes) -> None:
    body = b'{"sequences": [[' + b",".join([part] * (MEBIBYTE + 1)) + b"]]}"
    before = server.peak_bytes()
    answer = server.client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert server.peak_bytes() - before < 24 * len(body)  # the fast reader's share; made into objects it would be 40


@pytest.mark.process
@pytest.mark.parametrize("field", [4, 5, 6, 7], ids=["parameters", "inputs", "outputs", "contents"])
async def test_a_message_of_millions_of_empty_tensors_is_refused_before_they_are_made(field: int) -> None:
    message = bytes([field << 3 | 2, 0]) * (2 * MEBIBYTE)  # parsed, it would be hundreds of megabytes, for a minute
    async with serving(model(manifest())) as service:
        started = time.process_time()
        with pytest.raises(InvalidRequest):
            codec.decode(message, service.serving)
        assert time.process_time() - started < 0.5


@pytest.mark.process
def test_a_body_of_too_many_parts_is_refused(server: ServerProcess) -> None:
    body = b"[" + b"[]," * MEBIBYTE + b"[]]"
    assert server.client.post("/v2/repository/index", content=body).status_code == 413
    assert server.predict({"sequences": [[STEP]] * 1025}).status_code == 413


@pytest.mark.process
def test_a_body_that_never_ends_is_refused_at_the_limit(server: ServerProcess) -> None:
    with server.connect() as wire:
        wire.send(b"POST /predict HTTP/1.1\r\nhost: x\r\n" + CHUNKED + b"\r\n\r\n")
        for _ in range(5):
            wire.send(b"100000\r\n" + b" " * MEBIBYTE + b"\r\n")
        assert wire.answer()[0] == 413


# What is echoed and logged


@pytest.mark.process
@pytest.mark.parametrize(
    "given",
    [b"a b", b"<script>", b"a%0d%0aset-cookie: x", b"a\tb", "é".encode(), b"\x1b[31m", b"a" * 129, b'"; drop', b""],
)
def test_a_request_id_that_is_not_safe_is_neither_echoed_nor_logged(server: ServerProcess, given: bytes) -> None:
    with server.connect() as wire:
        wire.send(post(b"/predict", BODY, b"x-request-id: " + given))
        status, headers, _ = wire.answer()
    assert status in (200, 400)  # the parser knows that a control character is no part of a header
    made = headers.get("x-request-id", "0-0")
    assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", made)
    assert "set-cookie" not in headers
    if given:
        assert given.decode(errors="replace") not in server.text.replace(made, "")


@pytest.mark.process
def test_a_header_with_a_line_break_in_it_is_two_headers_or_none(server: ServerProcess) -> None:
    with server.connect() as wire:
        wire.send(post(b"/predict", BODY, b"x-request-id: mine\r\nset-cookie: evil=1"))
        status, headers, _ = wire.answer()
        assert (status, headers["x-request-id"]) == (200, "mine")
        assert "set-cookie" not in headers
        wire.send(post(b"/predict", BODY, b"x-request-id: mine\rset-cookie: evil=1"))
        assert wire.answer()[0] == 400


@pytest.mark.process
@pytest.mark.parametrize("path", [b"/livez/", b"/predict/", b"//evil.example/", b"/docs/"])
@pytest.mark.parametrize(("host", "refusal"), [(b"evil.example", 421), (b"evil", 404)])
def test_no_answer_sends_anybody_to_the_host_that_the_caller_names(
    server: ServerProcess, path: bytes, host: bytes, refusal: int
) -> None:
    with server.connect() as wire:
        wire.send(b"GET %s HTTP/1.1\r\nhost: %s\r\nx-forwarded-host: evil.example\r\n\r\n" % (path, host))
        status, headers, body = wire.answer()
    assert (status, headers.get("location")) == (refusal, None)
    assert b"evil" not in body


async def test_a_failure_tells_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)

    def fail(_: PaddedBatch) -> None:
        raise RuntimeError("/srv/models/secret.onnx: node 12")

    async with serving(model(manifest(), fail)) as service:
        failed = await service.predict({"sequences": [[[1, 3]]]})
    assert failed.status_code == 500
    assert "secret" not in failed.text
    assert "secret" in caplog.text


# Keys and ids


@pytest.mark.parametrize("place", [0, 1, 2, None], ids=["the first", "the second", "the last", "none"])
def test_a_guessed_key_takes_one_comparison_wherever_it_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int | None
) -> None:
    known = [f"key-number-{i}-of-some-length" for i in range(3)]
    (tmp_path / "keys").write_text("\n".join(known))
    keys = Keys(tmp_path / "keys")
    sizes: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        sizes.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    if place is None:
        with pytest.raises(Unauthorized):
            keys.check(b"Bearer k")
    else:
        keys.check(b"Bearer " + known[place].encode())
    assert sizes == [(32, 32)]  # digests, of one length whatever was sent, however many keys there are


@pytest.mark.process
@pytest.mark.parametrize(
    ("changed", "status"),
    [
        *(({"sequences": [{"id": "i" * size, "steps": [STEP]}]}, 422) for size in (257, MEBIBYTE)),
        *(({field: "1" * MEBIBYTE}, 404) for field in ("model", "version")),
    ],
    ids=["id", "long id", "model", "version"],
)
def test_a_text_too_long_is_refused_and_not_sent_back(
    server: ServerProcess, changed: dict[str, object], status: int
) -> None:
    refused = server.predict(GOOD | changed)
    assert refused.status_code == status
    assert len(refused.content) < 1000


# Model directories


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the bundled model, to be spoilt."""
    made = tmp_path / "models" / "japanese-vowels" / "1"
    shutil.copytree(bundled_models() / "japanese-vowels" / "1", made)
    return made


def refusal(directory: Path) -> str:
    """Why a directory is not served, when whoever spoilt it has put its digests right."""
    path = directory / MANIFEST_FILE
    made = json.loads(path.read_text())
    made["digests"] = {name: digest(directory / name) for name in made["digests"]}
    path.write_text(json.dumps(made))
    with pytest.raises(ModelError) as raised:
        loading.load(directory, BatchLimits(4, 1024))
    return str(raised.value)


def test_a_graph_that_is_a_link_out_of_its_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    shutil.move(directory / GRAPH_FILE, tmp_path / "secret.onnx")
    (directory / GRAPH_FILE).symlink_to(tmp_path / "secret.onnx")
    assert "lies outside the model directory" in refusal(directory)


@pytest.mark.parametrize("how", ["by climbing", "by its whole path", "by a link", "in the directory", "value first"])
def test_weights_outside_the_directory_or_without_a_digest_are_refused(
    directory: Path, tmp_path: Path, how: str
) -> None:
    secret = tmp_path / "secret.bin"
    location = {
        "by climbing": "../../../secret.bin",
        "by its whole path": str(secret),
        "by a link": "weights.bin",
        "in the directory": "weights.bin",
        "value first": "weights.bin",
    }[how]
    graph = onnx.load(directory / GRAPH_FILE)
    tensor = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    secret.write_bytes(tensor.raw_data)
    external_data_helper.set_external_data(tensor, location=location)
    tensor.ClearField("raw_data")
    content = graph.SerializeToString()
    if how == "value first":  # protocol buffers may put an entry's value before its key
        usual = b"\n\x08location\x12\x0bweights.bin"
        assert content.count(usual) == 1
        content = content.replace(usual, b"\x12\x0bweights.bin\n\x08location")
    (directory / GRAPH_FILE).write_bytes(content)
    if how == "by a link":
        (directory / location).symlink_to(secret)
    if how in ("in the directory", "value first"):
        shutil.copy(secret, directory / location)
    assert f"takes weights from '{location}'" in refusal(directory)


def test_a_graph_with_operators_of_its_own_is_refused_and_no_library_is_loaded(directory: Path) -> None:
    (directory / "evil.so").write_bytes(b"\x7fELF")
    graph = onnx.load(directory / GRAPH_FILE)
    graph.graph.node[0].domain = "evil.ops"
    graph.opset_import.append(onnx.helper.make_opsetid("evil.ops", 1))
    (directory / GRAPH_FILE).write_bytes(graph.SerializeToString())
    assert "is not a registered function/op" in refusal(directory)
    assert "evil.so" not in (proc.of(os.getpid()) / "maps").read_text()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_pickle_among_the_golden_sequences_is_refused_and_never_unpickled(directory: Path, tmp_path: Path) -> None:
    with np.load(directory / GOLDEN_FILE) as found:
        arrays = dict(found)
    trap = np.empty(1, dtype=object)
    trap[0] = Trap(tmp_path / "sprung")
    name = next(iter(arrays))
    np.savez(directory / GOLDEN_FILE, **{**arrays, name: trap})
    with zipfile.ZipFile(directory / GOLDEN_FILE) as archive:
        assert b"touch" in archive.read(f"{name}.npy")
    assert GOLDEN_FILE in refusal(directory)
    assert not (tmp_path / "sprung").exists()


# The table


@pytest.mark.long
@pytest.mark.process
def test_each_row_of_the_table_is_a_test_here_and_each_test_a_row() -> None:
    page, together = (ROOT / "docs" / "security.md").read_text().split("| two hundred times at once | gets | test |")
    here = names_in(Path(__file__)) - {"test_each_row_of_the_table_is_a_test_here_and_each_test_a_row"}
    beside = [f"service/test_{name}.py" for name in ("order", "listener", "framing")] + [
        f"hostile/test_{name}.py" for name in ("trailers", "idle_memory")
    ]
    rows = set(re.findall(r"\| `(test_\w+)` \|", page))
    assert here <= rows <= here.union(*(names_in(ROOT / "tests" / name) for name in beside))
    assert set(re.findall(r"\| `(test_\w+)` \|", together)) <= names_in(ROOT / "tests" / "hostile" / "test_memory.py")


def names_in(file: Path) -> set[str]:
    """The names of the tests in a file."""
    return set(re.findall(r"^(?:async )?def (test_\w+)\(", file.read_text(), re.MULTILINE))
