"""Generates the Grafana dashboard: `python deploy/grafana/dashboard.py` writes dashboards/lengthwise.json.

The JSON of a dashboard is long and repeats itself; here each panel is its title, its queries and its unit. There are
three panels in a row, in the order of a request: what comes in, how long it takes, what waits, what is computed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "dashboards" / "lengthwise.json"
COLUMNS, WIDTH, HEIGHT = 3, 8, 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF_JOB = 'job=~"$job"'
CHOSEN = f'{OF_JOB}, model=~"$model|"'  # calls that found no model count under an empty name


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: Above it.
        queries: Each PromQL expression with the legend of its curves.
        unit: One of Grafana's unit ids.
        description: What a reader should take from it.
        kind: Grafana's name of the visualisation.
        stacked: Whether the curves add up to something.
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str
    description: str = ""
    kind: str = "timeseries"
    stacked: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def rate(metric: str, *by: str, where: str = "") -> str:
    """The rate of a counter, summed but for some labels, over the series that `where` leaves."""
    chosen = f"{CHOSEN}, {where}" if where else CHOSEN
    return f"sum by ({', '.join(by)}) (rate(lengthwise_{metric}{{{chosen}}}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """The share of a rate in another; 0 where the first has no series yet."""
    return f"({part} or 0 * {whole}) / {whole}"


def mean(histogram: str) -> str:
    """The mean of a histogram's observations."""
    return f"{rate(histogram + '_sum')} / {rate(histogram + '_count')}"


def quantile(part: float, histogram: str) -> str:
    """A quantile of a histogram, interpolated within its bucket."""
    return f"histogram_quantile({part}, {rate(histogram + '_bucket', 'le')})"


def heat_map(title: str, histogram: str, description: str) -> Panel:
    """A histogram's buckets over time."""
    query = f"sum by (le) (increase(lengthwise_{histogram}_bucket{{{CHOSEN}}}[$__rate_interval]))"
    return Panel(title, [(query, "{{le}}")], "short", description, kind="heatmap", options=HEAT_MAP)


HEAT_MAP = {
    "calculate": False,
    "cellGap": 1,
    "color": {
        "mode": "scheme",
        "scheme": "Viridis",
        "steps": 64,
        "exponent": 0.5,
        "fill": "dark-blue",
        "reverse": False,
    },
    "yAxis": {"axisPlacement": "left", "unit": "short", "reverse": False},
    "rowsFrame": {"layout": "auto"},
    "legend": {"show": True},
    "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
    "filterValues": {"le": 1e-9},
    "showValue": "never",
    "exemplars": {"color": "rgba(255,0,255,0.7)"},
}

UNAVAILABLE = rate("requests_total", where='code=~"5..|429"')
MISTAKEN = rate("requests_total", where='code=~"4..", code!="429"')
OF_SEQUENCES = 'kind="valid"'
CLIPPED = f"sum by () (rate(lengthwise_clipped_values_total{{{OF_JOB}}}[$__rate_interval]))"  # one count of all models
PADDING = rate("steps_total", where='kind="padding"')

PANELS = (
    Panel(
        "Requests", [(rate("requests_total", "code"), "{{code}}")], "reqps", "Inference calls by status.", stacked=True
    ),
    Panel(
        "Errors",
        [
            (share(UNAVAILABLE, rate("requests_total")), "unavailable (5xx, 429)"),
            (share(MISTAKEN, rate("requests_total")), "the caller's (other 4xx)"),
        ],
        "percentunit",
        "Shares of all calls. The first one uses up the error budget.",
    ),
    Panel(
        "Rejections by reason",
        [
            (rate("rejected_total", "reason"), "{{reason}}"),
            (rate("batch_failures_total"), "failed batches"),
            (rate("overdue_batches_total"), "batches that take far too long"),
            (rate("cancelled_sequences_total"), "sequences whose client left"),
        ],
        "reqps",
        "Calls rejected although nothing was wrong with them, batches that the runtime failed or does not end, and "
        "sequences that did not run because nobody waits for them.",
        stacked=True,
    ),
    Panel(
        "Latency",
        [(quantile(part, "request_duration_seconds"), f"p{part * 100:g}") for part in (0.5, 0.95, 0.99)],
        "s",
        "From the first byte of a call to its answer.",
    ),
    Panel(
        "Latency by stage",
        [(mean(f"{stage}_duration_seconds"), stage) for stage in ("decode", "inference")]
        + [(mean("queue_wait_seconds"), "queue")],
        "s",
        "Means of reading a body, of a sequence's wait, and of one batch in the runtime.",
        stacked=True,
    ),
    Panel(
        "Sequences",
        [(rate("sequences_total", "model", "version", where='model!=""'), "{{model}}/{{version}}")],
        "ops",
        "Decoded.",
    ),
    Panel(
        "Queue",
        [
            (f"sum by (instance) (lengthwise_queue_cost_steps{{{CHOSEN}}})", "{{instance}}"),
            (f"max(lengthwise_max_queue_cost_steps{{{OF_JOB}}})", "bound"),
        ],
        "short",
        "Padded steps that wait, and the most that may.",
    ),
    Panel(
        "Predicted wait",
        [
            (f"sum by (instance) (lengthwise_queue_seconds{{{CHOSEN}}})", "{{instance}}"),
            (f"max(lengthwise_max_queue_seconds{{{OF_JOB}}})", "bound"),
        ],
        "s",
        "How long what waits now will take, and at which wait the queue is full: then requests are refused.",
    ),
    Panel(
        "Waiting and running",
        [
            (f"sum(lengthwise_queue_sequences{{{CHOSEN}}})", "sequences waiting"),
            (f"sum(lengthwise_inflight_batches{{{CHOSEN}}})", "batches running"),
        ],
        "short",
    ),
    Panel(
        "Bytes in memory",
        [
            (f"lengthwise_inflight_bytes{{{OF_JOB}}}", "{{instance}}"),
            (f"max(lengthwise_max_inflight_bytes{{{OF_JOB}}})", "bound"),
        ],
        "bytes",
        "Bodies and answers that are read, inflated, waiting or written, and the most that may be held.",
    ),
    Panel(
        "Runners busy",
        [
            (
                f"{rate('inference_duration_seconds_sum', 'instance')}"
                f" / sum by (instance) (lengthwise_runners{{{OF_JOB}}})",
                "{{instance}}",
            )
        ],
        "percentunit",
        "Share of the runners' time that went into batches. Near 1, more load waits.",
    ),
    Panel(
        "Batch shape",
        [(mean("batch_rows"), "rows"), (mean("batch_width_steps"), "width in steps")],
        "short",
        "Means over batches.",
    ),
    Panel(
        "Padding share",
        [
            (share(rate("computed_padding_steps_total"), rate("steps_total")), "computed"),
            (share(PADDING, rate("steps_total")), "in the rectangle"),
        ],
        "percentunit",
        "Of the steps of batches, rows x width. Lengthwise's kernels compute none of the padding.",
    ),
    Panel(
        "Steps of batches",
        [(rate("steps_total", "kind"), "{{kind}}")],
        "short",
        "Steps a second, rows x width: valid ones, and padding, whether it was computed or skipped.",
        stacked=True,
    ),
    heat_map("Lengths", "sequence_length_steps", "How many sequences of which length came; steps, by bucket."),
    heat_map("Rows of a batch", "batch_rows", "How many sequences a batch had, by bucket."),
    Panel(
        "Clipped values",
        [(f"{CLIPPED} / {rate('steps_total', where=OF_SEQUENCES)}", "values clipped of a step")],
        "short",
        "How many values of a step lay beyond the grid of their model: new data that is unlike that of the training.",
    ),
    Panel(
        "Answers compared",
        [
            (rate("verified_answers_total"), "computed again, alone"),
            (rate("verify_mismatches_total"), "not the same alone"),
        ],
        "ops",
        "Answers that were computed again, and those that differed.",
    ),
    Panel(
        "States",
        [
            (rate("chunks_total"), "chunks of sequences that go on"),
            (rate("state_refused_total", "reason"), "states refused: {{reason}}"),
        ],
        "ops",
        "Answered sequences that came with a state or asked for one, and those whose state was refused.",
    ),
    Panel(
        "Records",
        [
            (rate("recorded_sequences_total"), "sequences in complete files"),
            (rate("record_lost_sequences_total"), "sequences that could not be written"),
            (rate("monitoring_dropped_calls_total", "consumer"), "calls dropped by {{consumer}}"),
            (f"sum(lengthwise_record_bytes{{{OF_JOB}}}) / 1e6", "megabytes of files"),
        ],
        "short",
        "Sampled calls that were written to files, and those that were lost or dropped.",
    ),
    Panel(
        "Models and versions",
        [
            (
                f"count by (model, version, provider, digest) (lengthwise_model_info{{{OF_JOB}}})",
                "{{model}}/{{version}} {{provider}}",
            ),
            (
                f"count by (model, version, kernels) (lengthwise_recurrent_kernels{{{OF_JOB}}})",
                "{{model}}/{{version}} {{kernels}}",
            ),
        ],
        "short",
        "How many instances serve each version, and in which kernels its recurrent layers run.",
        kind="table",
    ),
    Panel(
        "Instances",
        [
            (f"count(max by (instance) (lengthwise_ready{{{OF_JOB}}}) == 1)", "ready"),
            (f"max(lengthwise_refused_models{{{OF_JOB}}})", "versions refused"),
            (f"sum(lengthwise_breaker_open{{{OF_JOB}}})", "models that do not work"),
            (f"sum(increase(lengthwise_worker_restarts_total{{{OF_JOB}}}[$__rate_interval]))", "workers replaced"),
        ],
        "short",
        "Instances that serve, model versions that failed their verification, and models whose every batch fails.",
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana reads it."""
    return {
        "uid": "lengthwise",
        "title": "Lengthwise",
        "tags": ["lengthwise"],
        "description": "One service, or several: what comes in, how long it takes, what waits, what is computed.",
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": _variables()},
        "panels": [_panel(place, panel) for place, panel in enumerate(PANELS)],
    }


def _variables() -> list[dict[str, Any]]:
    source: dict[str, Any] = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    jobs = _variable("job", "label_values(lengthwise_ready, job)")
    return [source, jobs, _variable("model", f"label_values(lengthwise_model_info{{{OF_JOB}}}, model)")]


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(place: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(place, COLUMNS)
    table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": DATASOURCE,
            "expr": expr,
            "legendFormat": legend,
            "format": {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series"),
            "instant": table,
            "range": not table,
        }
        for number, (expr, legend) in enumerate(panel.queries)
    ]
    made: dict[str, Any] = {
        "id": place + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": column * WIDTH, "y": row * HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": panel.options,
        "targets": targets,
    }
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        made["fieldConfig"]["defaults"] |= {
            "min": 0,
            "custom": {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 25 if panel.stacked else 0,
                "stacking": stacking,
            },
        }
        made["options"] = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return made


def text() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
    print(f"{FILE}: {len(PANELS)} panels")
