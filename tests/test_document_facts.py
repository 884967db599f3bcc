"""What the pages list is what the code has: options, errors, statuses, metrics, layers."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lengthwise import errors
from lengthwise.application import pages
from lengthwise.application.app import Application
from lengthwise.commands.serve import JsonLines
from lengthwise.decoding import options
from lengthwise.grpc.infer import CODES
from lengthwise.runtime.provider import PROVIDERS
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from lengthwise_export import errors as exporters
from lengthwise_export.keras_models.archive import LAYERS, REFUSED
from tests.support.documents import ROOT
from tests.support.keras_models import keras
from tests.support.numpy_models import manifest, model, serving
from tests.support.used_metrics import page_of

PAGES = {path.stem: path.read_text() for path in (ROOT / "docs").glob("*.md")}
README = (ROOT / "README.md").read_text()


def table(page: str, heading: str) -> set[str]:
    """The names in the first column of the first table below a heading."""
    rows = PAGES[page].partition(f"\n{heading}\n")[2].partition("\n|---|")[2].partition("\n\n")[0]
    cells = [line.split(" | ")[0] for line in rows.splitlines()[1:]]
    return {name.partition("{")[0] for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_each_number_of_the_readme_stands_in_the_results_that_it_links() -> None:
    points = re.findall(r"^- (.*?)(?=^- |^$)", README.partition("## Check a model")[0], re.M | re.S)
    linked = {point: re.findall(r"\((benchmarks/results/\w+\.md)\)", point) for point in points}
    assert [len(found) for found in linked.values()] == [1, 1, 1]
    for point, (page,) in linked.items():
        (number,) = re.findall(r"\b\d+\.\d+ times|\b\d+,\d+ answers|\b\d+ modules", point)
        assert number.split()[0] in (ROOT / page).read_text()


@pytest.mark.process
def test_what_reads_an_answer_in_a_page_shows_the_reason_where_there_is_none() -> None:
    programs = re.findall(r"python3 -c '(.*?)'", "\n".join((README, *PAGES.values())), re.S)
    readers = [program for program in programs if "stdin" in program]
    refusal = b'{"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "it starts"}'
    assert len(readers) == 3
    for reader in readers:
        command = [sys.executable, "-c", reader]
        ran = subprocess.run(command, input=refusal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        assert ran.stdout == b"it starts\n"


def test_every_path_option_and_status_of_the_api_is_in_its_document() -> None:
    page = PAGES["api"]
    served = {getattr(route, "path", "") for route in Application(Serving(Settings())).routes}
    said = page.replace("$V2", "localhost:8000/v2/models/japanese-vowels").replace("/versions/1", "")
    for path in served - {pages.START, *pages.FILES}:
        shown = path.replace("{model}", "japanese-vowels").replace("/versions/{version}", "")
        assert re.search(rf"(localhost:8000|`){re.escape(shown)}(?![\w/:])", said), path
    assert {name for name in options.FIELDS | {"id", "step_mask", "feature_mask"} if f"`{name}`" not in page} == set()
    statuses = {kind.status for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "status")}
    assert statuses <= {int(status) for status in re.findall(r"^\| (\d{3})\b", page, re.M)}
    assert {code.name for code in CODES.values() if f"`{code.name}`" not in page} == set()


def test_every_request_of_the_api_has_its_form_in_the_client() -> None:
    api = PAGES["api"].replace("$V2", "localhost:8000/v2/models/japanese-vowels")
    asked = set(re.findall(r"localhost:8000(/[\w/.:-]*)", "".join(re.findall(r"^```sh\n(.*?)^```", api, re.M | re.S))))
    told = PAGES["client"].partition("## Every request of the API")[2].replace("{v2}", "/v2/models/japanese-vowels")
    assert {"/predict", "/v2/models/japanese-vowels/infer", "/metrics"} <= asked
    assert {path for path in asked - {"/predict", "/v2/models/japanese-vowels"} if f'"{path}"' not in told} == set()


@pytest.mark.parametrize(("page", "least"), [("client", 10), ("python", 6)])
def test_every_error_that_a_page_lists_is_one(page: str, least: int) -> None:
    rows = re.findall(r"^\| (`[A-Z]\w+`(?:, `\w+`)*) \| ", PAGES[page], re.M)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"Prediction"}
    assert len(listed) >= least
    assert listed <= {*vars(errors), *vars(exporters)}


def test_the_values_of_provider_are_those_of_the_option() -> None:
    values = get_args(Settings.model_fields["provider"].annotation)
    assert table("cuda", "## Choose") == set(values) == {"auto", *PROVIDERS}


@pytest.mark.long
def test_the_page_lists_the_layers_of_keras_that_are_read() -> None:
    (listed,) = re.findall(r"^Layers: (.*?)\.$", PAGES["keras"], re.M | re.S)
    assert set(re.findall(r"`(\w+)`", listed)) == LAYERS
    known = {name for name in LAYERS if hasattr(keras().layers, name)}
    assert LAYERS - {"Sequential", "Functional", "Model"} - known <= {"GroupedQueryAttention"}
    assert {"Lambda", "TFSMLayer", "TextVectorization"} <= set(REFUSED)


async def test_the_metrics_of_a_page_are_those_that_there_are(tmp_path: Path) -> None:
    monitored: dict[str, Any] = {"record": tmp_path, "verify_share": 1}
    async with serving(model(manifest()), **monitored) as service:
        await service.predict({"sequences": [[[1, 3]]]})
        families = list(text_string_to_metric_families(page_of(service.serving.metrics).decode()))
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    own = {name.removeprefix("lengthwise_") for name in names if name.startswith("lengthwise_")}
    assert table("observability", "## Metrics") == own


async def test_a_line_of_the_access_log_has_the_fields_that_its_page_shows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, key = tmp_path / "keys", "a-key-of-sixteen-characters"
    keys.write_text(f"team-a: {key}")
    shown = json.loads(re.findall(r"```json\n(.*?)\n```", PAGES["observability"], re.S)[0])
    caplog.set_level(logging.INFO, "lengthwise.access")
    async with serving(model(manifest()), access_log=1, api_keys_file=keys) as service:
        sent = {"x_request_id": shown["request_id"], "authorization": f"Bearer {key}"}
        await service.predict({"sequences": [[[1, 3], [1, 3]], [[1, 3]]]}, **sent)
    (record,) = (record for record in caplog.records if record.name == "lengthwise.access")
    real = json.loads(JsonLines().format(record))
    varying = {"time", "message", "duration_ms", "model"}
    assert list(real) == list(shown)
    assert {name: real[name] for name in real.keys() - varying} == {
        name: shown[name] for name in shown.keys() - varying
    }
    in_both = [re.sub(r"(duration_ms|model)=\S+", r"\1", line["message"]) for line in (real, shown)]
    assert in_both[0] == in_both[1]
    assert table("observability", "## Logs") - {"reason", "trace_id"} == real.keys() - {
        "time",
        "level",
        "logger",
        "message",
    }
