"""The exposition: the names of the design, and figures that add up."""

import gc
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import get_args

import hypothesis.strategies as st
import pytest
from hypothesis import given
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from lengthwise.processes.server import YOUNG_OBJECTS
from lengthwise.telemetry.exposition import HistogramLines, is_open_metrics, lines_of, lines_of_histogram, page
from lengthwise.telemetry.families import FIRST_CELL, REASONS, ROWS, Family, ModelHistogram, OverWorkers
from lengthwise.telemetry.metrics import KEPT_GONE, OF_LIBRARIES, Bounds, Gauges, Metrics, ModelMetrics
from lengthwise.telemetry.snapshots import Total
from tests.support.used_metrics import INFO, metrics, page_of, used

OWN = frozenset({"model", "version"})
OF_MODELS = (
    *("sequences", "computed_padding_steps", "batch_failures", "overdue_batches", "cancelled_sequences"),
    *(
        "clipped_values",
        "chunks",
        "verified_answers",
        "verify_mismatches",
        "queue_cost_steps",
        "queue_sequences",
        "inflight_batches",
        "ready",
        "breaker_open",
    ),
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
    "state_refused": OWN | {"reason"},
    "model_info": OWN | {"provider", "digest"},
    "recurrent_kernels": OWN | {"kernels"},
}
"""Every family without the prefix and, of counters, without `_total`; and its labels."""


def samples(made: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page_of(made).decode())
        for sample in family.samples
    }


def value(made: Metrics, name: str, **labels: str) -> float:
    return samples(made)[f"lengthwise_{name}", frozenset({"model": "m", "version": "1", **labels}.items())]


def test_names_and_labels_are_those_of_the_contract():
    found = {
        family.name.removeprefix("lengthwise_"): {frozenset(sample.labels) - {"le"} for sample in family.samples}
        for family in text_string_to_metric_families(page_of(used()).decode())
        if family.name.startswith("lengthwise_")
    }
    assert found == {name: {labels} for name, labels in FAMILIES.items()}


def test_metrics_of_process_platform_and_collector_have_their_usual_names():
    names = {family.name for family in text_string_to_metric_families(page_of(used()).decode())}
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
    assert (model.number("requests", "200"), model.number("requests", "429")) == (4, 1)


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
    assert made.model("m", "1", {"provider": "CPUExecutionProvider", "digest": "sha256:11"}).number("sequences") == 2
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
    assert made.model("m", "2").number("sequences") == KEPT_GONE + 3
    assert made.model("m", "3").number("sequences") == 0
    assert made.model("m", "served", INFO) is served
    page = page_of(made).decode()
    assert page.count("lengthwise_model_info{") == 1


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.process
@pytest.mark.parametrize("variable", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_the_directory_of_many_processes_changes_nothing_and_stays_empty(variable: str, tmp_path: Path):
    program = (
        "from tests.support.used_metrics import page_of, used; from lengthwise.bench import remote; "
        "import sys; sys.stdout.buffer.write(page_of(used()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, variable: str(tmp_path)}, capture_output=True, check=True
    )
    assert _own(done.stdout) == _own(page_of(used()))
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
    for rows, width, valid in batches:
        model.batch(
            rows=rows,
            width=width,
            valid_steps=valid,
            waits=[0.0] * rows,
            seconds=0.001,
            padding_cost=float(computes),
        )
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
    assert model.number("requests", "200") == 8000
    assert (model.number("steps", "valid"), model.number("steps", "padding"), sum(model.queue_seconds.counts)) == (
        40_000,
        24_000,
        16_000,
    )


@pytest.mark.process
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say():
    checked = subprocess.run(["promtool", "check", "metrics"], input=page_of(used()), capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_a_traced_call_is_its_buckets_exemplar_in_open_metrics_only():
    made = metrics()
    model = made.model("m", "1", INFO)
    model.request(200, 0.003, trace_id="aa" * 16)
    model.request(200, 0.004, trace_id="bb" * 16)
    model.request(200, 0.7)
    pieces, kind = made.exposition("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    marked = [line for line in b"".join(pieces).decode().splitlines() if " # {" in line]
    assert len(marked) == 1
    assert marked[0].startswith('lengthwise_request_duration_seconds_bucket{le="0.005",model="m",version="1"} 2.0 # {')
    assert f'trace_id="{"bb" * 16}"' in marked[0]  # the latest
    assert b" # {" not in page_of(made)


@pytest.mark.parametrize(
    "accept",
    [
        *("", "*/*", "text/html", "text/plain;version=0.0.4", "application/openmetrics-text;q"),
        *("application/openmetrics-text;version=x", "text/plain;version=1.x.0", "text/plain;version=1.\xb2"),
        *("application/openmetrics-text;version=1.0.\xff", "application/openmetrics-text;version=" + "9" * 5000),
    ],
)
def test_whatever_is_asked_for_some_exposition_is_the_answer(accept: str):
    pieces, kind = used().exposition(accept)
    assert b"lengthwise_requests_total{" in b"".join(pieces)
    assert kind.startswith(("text/plain", "application/openmetrics-text"))


labels = st.text(st.sampled_from('ab"\\\n%{} é'), max_size=6)


numbers = st.floats().map(lambda number: number + 0.0) | st.integers(0, 10**8)  # -0.0 is 0.0


@given(st.lists(st.tuples(labels, labels, numbers), max_size=20), labels, st.booleans())
def test_the_lines_of_a_family_are_those_of_prometheus_client(
    rows: list[tuple[str, str, float]], text: str, counts: bool
) -> None:
    names, samples_of = ("b", "a"), [((one, other), number) for one, other, number in rows]
    family = Family("counter" if counts else "gauge", "sum", "x", text, names, samples_of)
    metric = (CounterMetricFamily if counts else GaugeMetricFamily)("lengthwise_x", text, labels=names)
    for values, number in samples_of:
        metric.add_metric(values, float(number))
    compare(partial(lines_of, family), metric)


@given(
    st.lists(st.lists(st.integers(0, 10**8), min_size=len(ROWS) + 1, max_size=len(ROWS) + 1), max_size=5),
    st.dictionaries(st.integers(0, len(ROWS)), st.tuples(st.text("0af", min_size=1), st.floats(0), st.floats(0))),
)
def test_the_lines_of_a_histogram_are_those_of_prometheus_client(
    observed: list[list[int]], exemplars: dict[int, tuple[str, float, float]]
) -> None:
    names = [*(repr(float(bound)) for bound in ROWS), "+Inf"]
    metric = HistogramMetricFamily("lengthwise_batch_rows", "Rows.", labels=("model", "version"))
    counts = {}
    for number, buckets in enumerate(observed):
        counts['a"b', str(number)] = [*[0] * FIRST_CELL["batch_rows"], *buckets, 7.5, *[0] * 100]
        marks = {bucket: Exemplar({"trace_id": mark[0]}, *mark[1:]) for bucket, mark in exemplars.items()}
        cumulated = zip(names, accumulate(map(float, buckets)), strict=True)
        samples_of = [(*pair, marks.get(bucket)) for bucket, pair in enumerate(cumulated)]
        metric.add_metric(('a"b', str(number)), samples_of, 7.5)
    histogram = ModelHistogram("batch_rows", "Rows.", ROWS)
    texts: HistogramLines = {}
    for _ in range(2):  # the second time without a change
        compare(partial(lines_of_histogram, histogram, counts, dict.fromkeys(counts, exemplars), texts), metric)


def test_the_next_scrape_shows_what_has_changed_of_each_model() -> None:
    histogram, first = ModelHistogram("batch_rows", "Rows.", ROWS), FIRST_CELL["batch_rows"]
    counts = {("m", version): [0.0] * (first + len(ROWS) + 2) for version in "12"}
    texts: HistogramLines = {}

    def lines() -> str:
        return "".join(lines_of_histogram(histogram, counts, {}, texts, open_metrics=False))

    before = lines()
    counts["m", "2"] = [*counts["m", "2"]]
    counts["m", "2"][first] += 1
    after = lines()
    assert 'batch_rows_count{model="m",version="2"} 0.0' in before
    assert 'batch_rows_count{model="m",version="1"} 0.0' in after
    assert 'batch_rows_count{model="m",version="2"} 1.0' in after
    del counts["m", "1"]
    assert 'version="1"' not in lines()
    assert [key[:2] for key in texts] == [*counts]


def compare(lines: Callable[..., Iterator[str]], metric: Metric) -> None:
    """The page of a family is what prometheus_client writes, in both formats."""

    class One(Collector):
        def collect(self) -> list[Metric]:
            return [metric]

    registry = CollectorRegistry()
    registry.register(One())
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        open_metrics = is_open_metrics(accept)
        text = b"".join(page(lines(open_metrics=open_metrics), open_metrics=open_metrics))
        assert text == choose_encoder(accept)[0](registry)


def many(models: int) -> Metrics:
    """The metrics of so many models, each of which has answered a call."""
    keys = [("m", str(number)) for number in range(models)]
    made = Metrics(lambda: {key: Gauges(0, 0, 0, True) for key in keys}, lambda: Bounds(1, 1000, 0, 0, 100))
    for key in keys:
        made.model(*key, INFO).request(200, 0.003)
    return made


def test_a_page_of_hundreds_of_versions_starts_no_collection_of_cycles() -> None:
    made = many(500)
    threshold, generations = gc.get_threshold(), list[int]()

    def note(phase: str, facts: dict[str, int]) -> None:
        if phase == "start":
            generations.append(facts["generation"])

    gc.collect()
    gc.set_threshold(YOUNG_OBJECTS)
    gc.callbacks.append(note)
    try:
        pieces = [*made.exposition()[0]]
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*threshold)
    assert generations == []
    assert max(map(len, pieces)) < sum(map(len, pieces)) / 20, "no step writes all of it"


LARGEST = {
    *("ready", "breaker_open", "queue_seconds", "model_info", "recurrent_kernels"),
    *("refused_models", "max_inflight_bytes", "max_queue_seconds", "process_start_time_seconds", "python_info"),
}
"""The metrics whose largest number counts where several workers serve; all others are added."""


def test_every_family_says_how_it_adds_up_over_workers() -> None:
    ways = {family.name: family.over_workers for family in used().families()}
    assert {name for name, way in ways.items() if way == "largest"} == LARGEST
    assert set(ways.values()) == set(get_args(OverWorkers))


def test_figures_of_two_workers_are_added_or_the_largest_is_shown() -> None:
    one, other = metrics(), Metrics(lambda: {("m", "1"): Gauges(1, 2, 3, False)}, lambda: Bounds(3, 5, 7, 9, 11))
    for each in (one, other):
        each.model("m", "1", INFO)
    snapshots = [one.snapshot(), other.snapshot()]
    samples_of = [dict(family.samples) for made in (one, other) for family in made.families() if family.prefix]
    shown = {family.name: family for family in Total(snapshots).families() if family.prefix}
    assert len(samples_of) == 2 * len(shown)
    for family, numbers, others in zip(shown.values(), samples_of, samples_of[len(shown) :], strict=False):
        assert numbers.keys() == others.keys() == dict(family.samples).keys()
        for labels, number in family.samples:
            add = max if family.over_workers == "largest" else int.__add__
            assert number == add(int(numbers[labels]), int(others[labels])), family.name


def test_every_gauge_of_prometheus_client_is_declared() -> None:
    assert {each.name for each in metrics().families() if not each.prefix and each.kind == "gauge"} <= set(OF_LIBRARIES)
