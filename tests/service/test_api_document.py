"""The API's document is true: every request in it runs, every answer in it is the answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lengthwise import errors
from lengthwise.bench.launch import free_port
from lengthwise.commands import cli
from lengthwise.decoding import options
from lengthwise.http import pages
from lengthwise.http.app import make_app
from lengthwise.protocols.grpc_infer import CODES
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from tests.support.server_process import ServerProcess, started

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "api.md").read_text()


@dataclass(frozen=True)
class Block:
    """A fenced block, and the block of an answer that follows it, if one does."""

    language: str
    text: str
    answer: str | None
    answer_language: str | None


def blocks() -> list[Block]:
    """The requests of the document, in order; those that only set variables come first."""
    found = re.findall(r"^```(\w+)\n(.*?)^```\n(?=(?:\s*```(json|text)\n(.*?)^```)?)", DOCUMENT, re.M | re.S)
    return [
        Block(language, text, answer or None, answer_language or None)
        for language, text, answer_language, answer in found
        if language in ("sh", "python")
    ]


SETUP, *REQUESTS = blocks()
CURLS = [block for block in REQUESTS if block.language == "sh"]
CLIENTS = [block for block in REQUESTS if block.language == "python"]


@dataclass(frozen=True)
class Server:
    """The service that the document is about."""

    process: ServerProcess
    grpc_port: int

    def at_its_ports(self, text: str) -> str:
        return text.replace("localhost:8000", f"127.0.0.1:{self.process.port}").replace(
            "localhost:8001", f"127.0.0.1:{self.grpc_port}"
        )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    grpc_port = free_port()
    with started("--grpc-port", str(grpc_port)) as process:
        yield Server(process, grpc_port)


def same(got: Any, told: Any) -> bool:
    """Whether two JSON values are equal but for what other processors round otherwise."""
    if isinstance(told, dict) and isinstance(got, dict):
        return got.keys() == told.keys() and all(same(got[name], told[name]) for name in told)
    if isinstance(told, list) and isinstance(got, list):
        return len(got) == len(told) and all(map(same, got, told))
    if isinstance(told, float) and isinstance(got, float):
        return got == pytest.approx(told, rel=1e-3)
    return bool(got == told)


def run(server: Server, block: Block) -> str:
    """What a block writes."""
    text = server.at_its_ports(block.text)
    command = [sys.executable, "-W", "error", "-c", text]
    if block.language == "sh":
        command = ["bash", "-euo", "pipefail", "-c", server.at_its_ports(SETUP.text) + text]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", CURLS, ids=[block.text[:60].strip() for block in CURLS])
def test_every_request_has_the_answer_that_is_shown(server: Server, block: Block) -> None:
    got = run(server, block)
    if block.answer_language == "json":
        assert same(json.loads(got), json.loads(block.answer or "")), got
    elif block.answer is not None:
        assert got.strip() == block.answer.strip()
    else:
        assert got
        assert not got.startswith('{"type":"about:blank"')


@pytest.mark.parametrize("block", CLIENTS, ids=[f"client {i}" for i in range(len(CLIENTS))])
def test_every_client_of_ten_lines_prints_what_is_shown(server: Server, block: Block) -> None:
    assert len([line for line in block.text.splitlines() if line]) <= 10
    assert run(server, block).strip() == (block.answer or "").strip()


def test_every_path_that_is_served_is_in_the_document() -> None:
    served = {getattr(route, "path", "") for route in make_app(Serving(Settings())).app.routes}
    served -= {pages.START, *pages.FILES}
    told = DOCUMENT.replace("$V2", "localhost:8000/v2/models/japanese-vowels").replace("/versions/1", "")
    for path in served:
        shown = path.replace("{model}", "japanese-vowels").replace("/versions/{version}", "")
        assert re.search(rf"(localhost:8000|`){re.escape(shown)}(?![\w/:])", told), path


def test_every_option_of_a_call_is_in_the_document() -> None:
    for name in options.FIELDS | {"id", "step_mask", "feature_mask"}:
        assert f"`{name}`" in DOCUMENT, name


def test_every_status_is_in_the_document_with_its_code_in_grpc() -> None:
    statuses = {kind.status for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "status")}
    told = {int(status) for status in re.findall(r"^\| (\d{3})\b", DOCUMENT, re.M)}
    assert statuses <= told
    for code in CODES.values():
        assert f"`{code.name}`" in DOCUMENT


def test_every_option_of_serve_that_is_named_is_one() -> None:
    known = {option for parameter in cli.serve.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", DOCUMENT)) - {"--json", "--data-binary"} <= known
