"""docs/client.md is true: its blocks run from top to bottom against a server, and print what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import lengthwise
from tests.support.server_process import started

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT = (DOCS / "client.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT, re.M | re.S)


@pytest.mark.process
def test_every_block_of_the_page_runs_and_prints_what_stands_under_it(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "program"}
    printed = ""
    with started("--runners", "1") as server:
        for number, (language, text) in enumerate(BLOCKS):
            if language == "text":
                assert printed == text, f"block {number}"
                printed = ""
                continue
            assert language == "python"
            assert not printed, f"what stands before block {number} prints, and the page does not say what"
            exec(compile(text.replace("http://localhost:8000", server.url), f"block {number}", "exec"), names)
            printed = capsys.readouterr().out
        assert not printed
        for one in names.values():
            if isinstance(one, lengthwise.Client):
                one.close()


def test_every_request_of_the_api_has_its_form_in_three_lines() -> None:
    api = (DOCS / "api.md").read_text().replace("$V2", "localhost:8000/v2/models/japanese-vowels")
    asked = set(re.findall(r"localhost:8000(/[\w/.:-]*)", "".join(re.findall(r"^```sh\n(.*?)^```", api, re.M | re.S))))
    forms = DOCUMENT.partition("## Every request of the API")[2]
    told = forms.replace("{v2}", "/v2/models/japanese-vowels")
    for path in asked - {"/predict", "/v2/models/japanese-vowels"}:
        assert f'"{path}"' in told, path
    assert {"/predict", "/v2/models/japanese-vowels/infer", "/metrics"} <= asked
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```", forms, re.M | re.S):
        calls = [line for line in text.splitlines() if line and line.strip() not in ("try:",)]
        assert language == "text" or len(calls) <= 4, text


def test_every_error_that_it_lists_is_one() -> None:
    listed = {
        name for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", DOCUMENT, re.M) for name in re.findall(r"\w+", row)
    }
    assert len(listed) > 9
    assert all(issubclass(getattr(lengthwise.errors, name), lengthwise.errors.LengthwiseError) for name in listed)
