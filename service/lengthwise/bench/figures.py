"""The figures of a load: latencies from the moment a request was due, and throughput of answers of status 200 only.

Percentiles are latencies that occurred, not interpolated ones. Metrics *grow*: `growth` is the difference between the
server's counters after and before the load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from lengthwise.bench.load import Measurement
from lengthwise.bench.remote import Totals

COMPUTED_PADDING: Final = "lengthwise_computed_padding_steps_total"
PADDING_NOTE: Final = "padding: of all computed steps (and of rows x width, whether computed or skipped)"


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the milliseconds from the moment a request was due until its answer."""

    p50: float
    p95: float
    p99: float
    p99_9: float
    mean: float
    max: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Latency:
        """The percentiles of `[answers]` latencies in seconds; there must be at least one."""
        p50, p95, p99, p99_9 = np.percentile(seconds * 1e3, [50, 95, 99, 99.9], method="inverted_cdf").tolist()
        return cls(p50, p95, p99, p99_9, float(seconds.mean() * 1e3), float(seconds.max() * 1e3))


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one load."""

    load: str  # its name, in words
    offered_rate: float | None  # requests due per second; None for a closed loop
    seconds: float  # how long it lasted
    requests_per_second: float  # those answered with 200
    sequences_per_second: float
    latency_ms: Latency | None  # of answers of status 200
    answers: dict[int, int]  # by status
    unsent: int  # due but never sent: the server was too far behind
    unanswered: int  # requests without an answer when the client gave up waiting
    broken: int  # requests whose connection broke before the answer
    wrong: int | None  # answers that differ from the unbatched ones; None if they are not compared
    padding_share: float | None  # padding over rows x width; None without the metric
    computed_padding_share: float | None  # computed padding over all computed steps; None without the metric
    rows_per_batch: float | None  # mean; None without the metric
    late_ms: float  # p99 of the time between due and sent: the client was late, or no connection was free
    client_core_share: float  # the client's processor time over the load's time
    client_us_per_request: float  # the client's processor time for a request, in microseconds

    @property
    def is_sound(self) -> bool:
        """Whether every request that was sent was answered, and no answer was wrong. A refusal is an answer."""
        return not (self.unanswered or self.broken or self.wrong)

    def to_json(self) -> dict[str, Any]:
        """The figures as a JSON object; statuses are strings there."""
        return asdict(self) | {"answers": {str(status): count for status, count in self.answers.items()}}


def figures(
    measurement: Measurement,
    growth: Totals | None,
    *,
    load: str,
    seconds: float,
    offered_rate: float | None = None,
    sequences_per_request: float = 1,
    checked: bool = True,
) -> Figures:
    """Computes the figures of one load from what the client measured and how the server's metrics grew.

    Args:
        measurement: What the client measured.
        growth: The growth of the server's metrics; None if they cannot be read.
        load: The name of the load.
        seconds: For how long requests were due. In a closed loop, answers after that do not count for the throughput,
            since fewer and fewer requests are under way then. In an open loop all answers count, and the throughput is
            over the time until the last one.
        offered_rate: Requests due per second; None for a closed loop.
        sequences_per_request: How many sequences a request has.
        checked: Whether answers were compared with the unbatched ones.
    """
    is_ok = measurement.status == 200
    answered = measurement.answered[is_ok]
    # A closed loop with a number of requests may end before its time.
    counted_seconds = min(seconds, measurement.seconds) if offered_rate is None else measurement.seconds
    throughput = float((answered <= counted_seconds).sum()) / counted_seconds
    lateness = measurement.sent - measurement.due
    return Figures(
        load=load,
        offered_rate=offered_rate,
        seconds=measurement.seconds,
        requests_per_second=throughput,
        sequences_per_second=throughput * sequences_per_request,
        latency_ms=Latency.of(measurement.latency[is_ok]) if is_ok.any() else None,
        answers=dict(sorted(Counter(measurement.status.tolist()).items())),
        unsent=measurement.unsent,
        unanswered=measurement.unanswered,
        broken=measurement.broken,
        wrong=measurement.wrong if checked else None,
        padding_share=_padding_share(growth, computed=False) if growth else None,
        computed_padding_share=_padding_share(growth, computed=True) if growth else None,
        rows_per_batch=_rows_per_batch(growth) if growth else None,
        late_ms=float(np.percentile(lateness, 99) * 1e3) if lateness.size else 0.0,
        client_core_share=measurement.cpu_seconds / measurement.seconds,
        client_us_per_request=measurement.cpu_seconds / max(len(lateness), 1) * 1e6,
    )


def _padding_share(growth: Totals, *, computed: bool) -> float | None:
    """The share of padding in a load, 0 to 1; None without the metric.

    `computed`: of the steps that were computed; else of rows x width, in which padding counts even if it was skipped.
    """
    padding = growth.get((COMPUTED_PADDING, "") if computed else ("lengthwise_steps_total", "padding"))
    total = growth.get(("lengthwise_steps_total", "valid"), 0.0) + (padding or 0.0)
    return padding / total if padding is not None and total else None


def _rows_per_batch(growth: Totals) -> float | None:
    """The mean number of rows of a batch; None without the metric."""
    batches = growth.get(("lengthwise_batch_rows_count", ""))
    return growth["lengthwise_batch_rows_sum", ""] / batches if batches else None


def padding(row: Figures) -> str:
    """The share of padding as text: `1.2% (3.4%)`, in computed steps and in rows x width; '-' if it is not known.

    An older service does not count the first: the text is `(3.4%)` then.
    """
    shares = [f"{share:.1%}" for share in (row.computed_padding_share, row.padding_share) if share is not None]
    return f"{shares[0]} ({shares[1]})" if len(shares) == 2 else f"({shares[0]})" if shares else "-"


def table(rows: Sequence[Figures], *, title: str) -> Table:
    """The figures as a table of at most 80 columns, with one row for each load."""
    client = max(row.client_core_share for row in rows)
    checked = "compared" if all(row.wrong is not None for row in rows) else "not compared"
    caption = (
        f"latency in ms from the moment due; answers {checked} with those alone; "
        f"the client took up to {client:.0%} of a core; {PADDING_NOTE}"
    )
    headings = ("req/s", "p50", "p95", "p99", "p99.9", "padding", "rows", "errors")
    columns = (Column("load", no_wrap=True), *(Column(heading, justify="right") for heading in headings))
    result = Table(*columns, title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for row in rows:
        latency = row.latency_ms
        result.add_row(
            row.load,
            f"{row.requests_per_second:,.0f}",
            *(milliseconds(getattr(latency, name) if latency else None) for name in ("p50", "p95", "p99", "p99_9")),
            padding(row),
            "-" if row.rows_per_batch is None else f"{row.rows_per_batch:.1f}",
            errors(row),
        )
    return result


def milliseconds(value: float | None) -> str:
    """Milliseconds as text with about three digits; '-' for None."""
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def errors(row: Figures) -> str:
    """How many errors of each kind a load had, as text; '0' if there was none."""
    counts = {str(status): count for status, count in row.answers.items() if status != 200}
    counts |= {"unsent": row.unsent, "broken": row.broken, "unanswered": row.unanswered, "wrong": row.wrong or 0}
    return ", ".join(f"{name}: {count}" for name, count in counts.items() if count) or "0"
