"""The exposition: the names of the design, and figures that add up."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from prometheus_client.parser import text_string_to_metric_families

from lengthwise.telemetry.metrics import KEPT_GONE, REASONS, Bounds, Gauges, Metrics, ModelMetrics
from tests.support.used_metrics import INFO, metrics, used

OWN = frozenset({"model", "version"})
OF_MODELS = (
    *("sequences", "computed_padding_steps", "batch_failures", "overdue_batches", "cancelled_sequences"),
    *("clipped_values", "queue_cost_steps", "queue_sequences", "inflight_batches", "ready", "breaker_open"),
    *("queue_seconds", "request_duration_seconds", "queue_wait_seconds", "inference_duration_seconds"),
    *("decode_duration_seconds", "batch_rows", "batch_width_steps", "sequence_length_steps"),
)
OF_THE_PROCESS = (
    *("runners", "max_queue_cost_steps", "max_queue_seconds", "refused_models", "inflight_bytes"),
    "max_inflight_bytes",
)
FAMILIES = {
    **dict.fromkeys(OF_MODELS, OWN),
    **dict.fromkeys(OF_THE_PROCESS, frozenset[str]()),
    "requests": OWN | {"code", "key"},
    "steps": OWN | {"kind"},
    "rejected": OWN | {"reason"},
    "model_info": OWN | {"provider", "digest"},
    "recurrent_kernels": OWN | {"kernels"},
}
"""Every family without the prefix and, of counters, without `_total`; and its labels."""


def samples(made: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(made.text().decode())
        for sample in family.samples
    }


def value(made: Metrics, name: str, **labels: str) -> float:
    return samples(made)[f"lengthwise_{name}", frozenset({"model": "m", "version": "1", **labels}.items())]


def test_names_and_labels_are_those_of_the_contract():
    found = {
        family.name.removeprefix("lengthwise_"): {frozenset(sample.labels) - {"le"} for sample in family.samples}
        for family in text_string_to_metric_families(used().text().decode())
        if family.name.startswith("lengthwise_")
    }
    assert found == {name: {labels} for name, labels in FAMILIES.items()}


def test_process_platform_and_collector_are_there_under_the_names_that_every_board_knows():
    names = {family.name for family in text_string_to_metric_families(used().text().decode())}
    assert {"python_info", "python_gc_collections"} <= names
    if sys.platform == "linux":  # the client library reads /proc
        assert {"process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"} <= names


def test_every_reason_is_there_before_it_occurs_and_no_other():
    made = metrics()
    made.model("m", "1", INFO)
    reasons = {
        dict(labels)["reason"]: count
        for (name, labels), count in samples(made).items()
        if name == "lengthwise_rejected_total" and ("model", "m") in labels
    }
    assert reasons == dict.fromkeys(("queue_full", "inflight_full", "deadline", "draining", "not_ready"), 0.0)
    assert set(REASONS) == set(reasons)
    with pytest.raises(KeyError):
        made.unknown.request(400, 0.1, "bad_mood")


def test_calls_are_counted_by_code_and_refusals_by_reason():
    made = used()
    assert value(made, "requests_total", code="200", key="-") == 1
    assert value(made, "requests_total", code="429", key="-") == 1
    assert value(made, "rejected_total", reason="queue_full") == 1
    assert value(made, "request_duration_seconds_count") == 2
    assert value(made, "batch_failures_total") == 1
    made.unknown.request(404, 0.001)  # for nothing that is served
    assert value(made, "requests_total", model="", version="", code="404", key="-") == 1


def test_calls_are_counted_once_each_by_the_name_of_their_key():
    made = metrics()
    model = made.model("m", "1", INFO)
    for key in ("team-a", "team-a", "other", "-"):
        model.request(200, 0.001, key=key)
    model.request(429, 0.001, "queue_full", key="team-a")
    found = {key: value(made, "requests_total", code="200", key=key) for key in ("team-a", "other", "-")}
    assert found == {"team-a": 2, "other": 1, "-": 1}
    assert value(made, "requests_total", code="429", key="team-a") == 1
    assert value(made, "requests_total", code="429", key="-") == 0
    assert value(made, "requests_total", code="503", key="team-a") == 0  # from the first call on, so that it has a rate
    assert (model.codes[200], model.codes[429]) == (4, 1)


def test_gauges_are_read_at_each_scrape():
    held = {("m", "1"): Gauges(12, 3, 1, True)}
    made = Metrics(lambda: held, lambda: Bounds(2, 1000, 4, 300, 4000))
    names = ("queue_cost_steps", "queue_sequences", "inflight_batches", "ready")
    assert [value(made, name) for name in names] == [12, 3, 1, 1]
    held["m", "1"] = Gauges(0, 0, 0, False)
    assert value(made, "queue_cost_steps") == value(made, "ready") == 0
    assert samples(made)["lengthwise_refused_models", frozenset()] == 4


def test_a_model_that_is_loaded_again_keeps_its_figures_and_shows_its_new_digest():
    made = used()
    assert made.model("m", "1", {"provider": "CPUExecutionProvider", "digest": "sha256:11"}).sequences == 2
    digests = [dict(labels)["digest"] for name, labels in samples(made) if name == "lengthwise_model_info"]
    assert digests == ["sha256:11"]


def versions(made: Metrics) -> list[str]:
    """Of the versions of `m`, those on the page."""
    name = "lengthwise_sequences_total"
    return [dict(labels)["version"] for sample, labels in samples(made) if sample == name and ("model", "m") in labels]


def test_of_versions_that_are_gone_the_last_ones_stay_and_what_is_served_always():
    made = metrics()
    served = made.model("m", "served", INFO)
    for number in range(1, KEPT_GONE + 4):
        made.remove(made.model("m", str(number), INFO))
        made.model("m", "2", INFO).decoded(0.001, [1])  # it comes back and goes, so it is never the longest gone
        made.remove(made.model("m", "2"))
    kept = versions(made)
    assert len(kept) == KEPT_GONE + 1
    assert {"served", "2", str(KEPT_GONE + 3)} <= set(kept)
    assert not {"1", "3", "4"} & set(kept)
    assert made.model("m", "2").sequences == KEPT_GONE + 3
    assert made.model("m", "3").sequences == 0
    assert made.model("m", "served", INFO) is served
    page = made.text().decode()
    assert page.count("lengthwise_model_info{") == 1


@pytest.mark.parametrize("variable", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_the_directory_of_many_processes_changes_nothing_and_stays_empty(variable: str, tmp_path: Path):
    program = (
        "from tests.support.used_metrics import used; from lengthwise.bench import remote; "
        "import sys; sys.stdout.buffer.write(used().text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, variable: str(tmp_path)}, capture_output=True, check=True
    )
    assert _own(done.stdout) == _own(used().text())
    assert list(tmp_path.iterdir()) == []


def _own(page: bytes) -> list[bytes]:
    """The lines of the service's own families: those of the process differ from one to the next."""
    return [line for line in page.splitlines() if b"lengthwise_" in line]


shapes = st.tuples(st.integers(1, 300), st.integers(1, 20_000)).flatmap(
    lambda shape: st.tuples(st.just(shape[0]), st.just(shape[1]), st.integers(shape[0], shape[0] * shape[1]))
)


@given(st.lists(shapes, max_size=10), st.booleans())
def test_rows_times_width_is_valid_steps_and_padding_always(batches: list[tuple[int, int, int]], computes: bool):
    made = metrics()
    model = made.model("m", "1", INFO)
    model.computes_padding = computes
    for rows, width, valid in batches:
        model.batch(rows=rows, width=width, valid_steps=valid, waits=[0.0] * rows, seconds=0.001)
    counted = value(made, "steps_total", kind="valid") + value(made, "steps_total", kind="padding")
    assert counted == sum(rows * width for rows, width, _ in batches)
    assert value(made, "computed_padding_steps_total") == computes * value(made, "steps_total", kind="padding")
    assert value(made, "batch_rows_sum") == value(made, "queue_wait_seconds_count") == sum(b[0] for b in batches)
    assert value(made, "batch_width_steps_sum") == sum(b[1] for b in batches)


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_histogram_counts_each_observation_in_every_bucket_that_holds_it(observed: list[float]):
    made = metrics()
    model = made.model("m", "1", INFO)
    for seconds in observed:
        model.request(200, seconds)
    for (name, labels), count in samples(made).items():
        if name == "lengthwise_request_duration_seconds_bucket" and ("model", "m") in labels:
            assert count == sum(seconds <= float(dict(labels)["le"]) for seconds in observed)


def test_threads_lose_no_count():
    model = ModelMetrics("m", "1")

    def count() -> None:
        for _ in range(2000):
            model.request(200, 0.001)
            model.batch(rows=2, width=4, valid_steps=5, waits=[0.0, 0.0], seconds=0.001)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {code: count for code, count in model.codes.items() if count} == {200: 8000}
    assert (model.valid_steps, model.padding_steps, sum(model.queue_seconds.counts)) == (40_000, 24_000, 16_000)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say():
    checked = subprocess.run(["promtool", "check", "metrics"], input=used().text(), capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_a_traced_call_is_its_buckets_exemplar_in_open_metrics_only():
    made = metrics()
    model = made.model("m", "1", INFO)
    model.request(200, 0.003, trace_id="aa" * 16)
    model.request(200, 0.004, trace_id="bb" * 16)
    model.request(200, 0.7)
    page, media_type = made.exposition("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    marked = [line for line in page.decode().splitlines() if " # {" in line]
    assert len(marked) == 1
    assert marked[0].startswith('lengthwise_request_duration_seconds_bucket{le="0.005",model="m",version="1"} 2.0 # {')
    assert f'trace_id="{"bb" * 16}"' in marked[0]  # the latest
    assert b" # {" not in made.text()


@pytest.mark.parametrize(
    "accept",
    [
        *("", "*/*", "text/html", "text/plain;version=0.0.4", "application/openmetrics-text;q"),
        *("application/openmetrics-text;version=x", "text/plain;version=1.x.0", "text/plain;version=1.\xb2"),
        *("application/openmetrics-text;version=1.0.\xff", "application/openmetrics-text;version=" + "9" * 5000),
    ],
)
def test_whatever_is_asked_for_some_exposition_is_the_answer(accept: str):
    page, media_type = used().exposition(accept)
    assert b"lengthwise_requests_total{" in page
    assert media_type.startswith(("text/plain", "application/openmetrics-text"))
