"""The page of `GET /metrics`, in Prometheus's own text format or as OpenMetrics.

With hundreds of models the page has tens of thousands of lines, and while they are made the event loop waits for its
turns of the interpreter. So they are made of format strings, one for each family, in a tenth of the time that
prometheus_client takes; a property test compares the lines of both. And the page is made in pieces of about a
millisecond, between which the event loop runs. Few objects are alive at a time: else Python's collector of reference
cycles would run again and again, and stop all threads.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from operator import itemgetter
from typing import Final

from prometheus_client.utils import floatToGoString

from lengthwise.telemetry.families import FIRST_CELL, OF_A_MODEL, Family, LabelValues, ModelHistogram

PIECE_CHARACTERS: Final = 100_000  # size of a piece of the page, made in about a millisecond
_OPEN_METRICS: Final = re.compile(r"application/openmetrics-text(?!\s*;\s*version=0)")

Exemplars = Mapping[int, tuple[str, float, float]]  # by bucket: (trace id, value, seconds since 1970)
HistogramLines = dict[tuple[str, str, bytes], str]  # lines of a histogram, by (model, version, cells as float64)

_number = lru_cache(4096)(floatToGoString)


@lru_cache(4096)
def _escaped(text: str) -> str:
    """The value of a label as the format writes it."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def is_open_metrics(accept: str) -> bool:
    """Whether the header `accept` asks for OpenMetrics, which has exemplars."""
    return _OPEN_METRICS.search(accept) is not None


def page(lines: Iterable[str], *, open_metrics: bool) -> Iterator[bytes]:
    """Joins the lines of all families into a page of the Prometheus or OpenMetrics text format; yields its pieces."""
    texts, characters = list[str](), 0
    for text in lines:
        texts.append(text)
        characters += len(text)
        if characters > PIECE_CHARACTERS:
            yield "".join(texts).encode()
            texts, characters = [], 0
    yield "".join([*texts, "# EOF\n" if open_metrics else ""]).encode()


def _head(name: str, kind: str, description: str, open_metrics: bool) -> str:
    """The lines `# HELP` and `# TYPE` of a family."""
    escaped = _escaped(description) if open_metrics else description.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {escaped}\n# TYPE {name} {kind}\n"


def lines_of(family: Family, *, open_metrics: bool) -> Iterator[str]:
    """Yields the lines of a family: `# HELP` and `# TYPE`, and then its samples."""
    name = family.prefix + family.name
    sample = f"{name}_total" if family.kind == "counter" else name
    yield _head(name if open_metrics else sample, family.kind, family.help, open_metrics)
    # A format string with the labels in alphabetical order, and what takes a sample's values in the same order.
    order = sorted(range(len(family.labels)), key=family.labels.__getitem__)
    labels = ",".join(f'{family.labels[label]}="%s"' for label in order)
    pattern, arguments = sample + (f"{{{labels}}}" if labels else "") + " %s\n", itemgetter(*order, -1)
    for values, number in family.samples:
        yield pattern % arguments([*map(_escaped, values), _number(number + 0.0)])  # -0.0 is 0.0


def lines_of_histogram(
    histogram: ModelHistogram,
    counts: Mapping[LabelValues, Sequence[float]],
    exemplars: Mapping[LabelValues, Exemplars],
    texts: HistogramLines,
    *,
    open_metrics: bool,
) -> Iterator[str]:
    """Yields the lines of a histogram: a head, and then one text for each model.

    Most of hundreds of models do nothing between two scrapes. So the texts of the last scrape are kept, and a text is
    made anew only if the counts of its model have changed, or if it has exemplars.

    Args:
        histogram: The histogram.
        counts: The cells of each model.
        exemplars: The exemplars of each model; they are on the page only if `open_metrics`.
        texts: The texts of the last scrape; afterwards, those of this one.
        open_metrics: Whether the page is OpenMetrics.
    """
    name, first = f"lengthwise_{histogram.name}", FIRST_CELL[histogram.name]
    yield _head(name, "histogram", histogram.help, open_metrics)
    # 1. The format string of the lines of one model
    of_a_model = ",".join(f'{label}="%s"' for label in OF_A_MODEL)
    bounds = [*map(repr, map(float, histogram.bounds)), "+Inf"]
    buckets = [f'{name}_bucket{{le="{bound}",{of_a_model}}} %s\n' for bound in bounds]
    pattern = "".join([*buckets, f"{name}_count{{{of_a_model}}} %s\n", f"{name}_sum{{{of_a_model}}} %s\n"])
    # 2. The text of each model
    latest: HistogramLines = {}
    for labels, cells in counts.items():
        histogram_cells = cells[first : first + len(bounds) + 1]
        model_exemplars = exemplars.get(labels, {}) if open_metrics else {}
        key = (labels[0], labels[1], array("d", histogram_cells).tobytes())
        if key in texts and not model_exemplars:
            latest[key] = texts[key]
            yield texts[key]
            continue
        # Buckets of the page are cumulative: each counts the values up to its bound.
        *bucket_counts, total = histogram_cells
        numbers = [*map(_number, (*accumulate(bucket_counts), sum(bucket_counts), total))]
        for bucket, (trace, value, seconds) in model_exemplars.items():
            numbers[bucket] += f' # {{trace_id="{trace}"}} {_number(value)} {seconds}'
        model = [*map(_escaped, labels)]
        text = pattern % (*chain.from_iterable((*model, number) for number in numbers),)
        if not model_exemplars:
            latest[key] = text
        yield text
    texts.clear()
    texts.update(latest)
