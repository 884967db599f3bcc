"""From the figures of all rounds to medians, ratios with their ranges, a page and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import pages
from benchmarks.contenders import CONTENDERS, EMPTY, INT8, MOSEC, MOSEC_SORTED, NAIVE, SAME_KERNELS, SERVICE, Contender
from lengthwise.bench.plots import save

WorkloadResult = dict[str, Any]
"""One workload: `closed[contender][connections]` and `half_load[contender]`, each a list of figures, one a round."""

_LEGEND: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.14),
    "ncols": 3,
    "frameon": False,
    "fontsize": 7,
}
_COLORS = ("#b8322a", "#7a1f1a", "#d9837d", "#e08a1e", "#8a8a8a", "#3b6ea5", "#3a8a5f")


def spread(rounds: Sequence[float]) -> dict[str, float]:
    """Median and range of what the rounds gave."""
    return {"median": median(rounds), "low": min(rounds), "high": max(rounds)}


def throughput(result: WorkloadResult, contender: Contender, connections: int) -> list[float]:
    """Requests a second of each round."""
    return [figures["requests_per_second"] for figures in result["closed"][contender.name][str(connections)]]


def latency(figures: Sequence[dict[str, Any]], percentile: str) -> list[float]:
    """A percentile of each round, in ms; nothing of a round without an answer."""
    return [row["latency_ms"][percentile] for row in figures if row["latency_ms"]]


def per_core_second(result: WorkloadResult, contender: Contender, connections: int) -> list[float]:
    """Requests a second of the server's processor time, of each round."""
    rounds = result["closed"][contender.name][str(connections)]
    return [row["answers"].get("200", 0) / max(row["server_cpu_seconds"], 0.01) for row in rounds]


def ratios(result: WorkloadResult) -> dict[str, Any]:
    """Each round's figure over the same round's other figure, as median and range: noise of the machine cancels.

    Those under `core_second` compare processor time instead: what else runs on the machine takes none of it.
    """
    ratios: dict[str, Any] = {}
    for connections in result["connections"]:
        own, naive, by_hand = (
            result["closed"][contender.name][str(connections)] for contender in (SERVICE, NAIVE, MOSEC_SORTED)
        )
        ratios[str(connections)] = {
            **_rates(result, connections, throughput, "seconds_per_sequence"),
            "core_second": _rates(result, connections, per_core_second, "cpu_seconds_per_sequence"),
            "p50_over_naive": _over(latency(own, "p50"), latency(naive, "p50")),
            "p99_over_mosec_sorted": _over(latency(own, "p99"), latency(by_hand, "p99")),
            "padding_share": spread([row["padding_share"] for row in own]),
        }
    half = result["half_load"]
    peers_p99 = [latency(half[peer.name], "p99") for peer in (NAIVE, MOSEC, MOSEC_SORTED)]
    best = [min(round_) for round_ in zip(*peers_p99, strict=True)]
    ratios["half_load"] = {"p99_over_best_peer": _over(latency(half[SERVICE.name], "p99"), best)}
    return ratios


def _rates(
    result: WorkloadResult,
    connections: int,
    rates: Callable[[WorkloadResult, Contender, int], list[float]],
    seconds: str,
) -> dict[str, Any]:
    """The service's rate over its peers', and over the no-waste limit; and the graph's alone over its peers'.

    The last is the upper limit for any server on that machine: the best batches, run one after the other, without
    reading or answering anything.
    `rates` gives a server's figures, one a round; `seconds` is the key of the limits' times, of the clock or processor.
    """
    compute: list[float] = result["limit"]["onnxruntime"][seconds]
    own_kernels: list[float] = result["limit"]["own"][seconds]
    planned: list[float] = result["limit"]["as_they_come"][str(connections)][seconds]
    own, at_int8, same_kernels, empty, naive, mosec, by_hand = (
        rates(result, contender, connections)
        for contender in (SERVICE, INT8, SAME_KERNELS, EMPTY, NAIVE, MOSEC, MOSEC_SORTED)
    )
    alone = [1 / each for each in compute]
    best = [max(pair) for pair in zip(naive, mosec, strict=True)]

    def reach(achieved: Sequence[float], times: Sequence[float]) -> dict[str, float]:
        return spread([rate * (each + 1 / wire) for rate, each, wire in zip(achieved, times, empty, strict=True)])

    return {
        "reach": reach(own, compute),
        "reach_own_kernels": reach(own, own_kernels),
        "reach_as_they_come": reach(own, planned),
        "reach_same_kernels": reach(same_kernels, compute),
        "over_best_of_naive_and_mosec": _over(own, best),
        "same_kernels_over_best_of_naive_and_mosec": _over(same_kernels, best),
        "graph_alone_over_best_of_naive_and_mosec": _over(alone, best),
        "over_mosec": _over(own, mosec),
        "over_mosec_sorted": _over(own, by_hand),
        "int8_over_mosec_sorted": _over(at_int8, by_hand),
        "int8_over_own": _over(at_int8, own),
        "same_kernels_over_mosec_sorted": _over(same_kernels, by_hand),
        "graph_alone_over_mosec_sorted": _over(alone, by_hand),
        "over_naive": _over(own, naive),
    }


def page(results: dict[str, Any]) -> str:
    """The whole run as a page: for each workload a table of medians, and the ratios."""
    parts = [
        f"`python -m benchmarks.bench`: medians of {results['settings']['rounds']} rounds in which the servers take "
        "turns, by number of connections; ratios are taken within a round, with their range."
    ]
    for result in results["workloads"].values():
        parts += [f"## {result['title']}", _medians(result), *_ratio_parts(result), _checked(result), *_silent(result)]
    return pages.page(results["machine"], "The service beside its peers", *parts)


def _medians(result: WorkloadResult) -> str:
    """A line for each server. Processor time and latency are those of the middle number of connections."""
    connections = result["connections"]
    middle = connections[len(connections) // 2]
    heads = ["", *(f"requests/s at {count}" for count in connections)]
    heads += [f"per core-second at {middle}", f"p50 / p99 ms at {middle}"]
    heads.append(f"p50 / p99 / p99.9 ms, Poisson {result['half_load_rate']:,.0f}/s")
    lines = []
    for contender in (*CONTENDERS, EMPTY):
        cells = [f"{median(throughput(result, contender, count)):,.0f}" for count in connections]
        cells.append(f"{median(per_core_second(result, contender, middle)):,.0f}")
        cells.append(_percentiles(result["closed"][contender.name][str(middle)], "p50", "p99"))
        cells.append(_percentiles(result["half_load"].get(contender.name, []), "p50", "p99", "p99_9"))
        lines.append((contender.title, *cells))
    return pages.table(heads, lines)


def _percentiles(rows: Sequence[dict[str, Any]], *names: str) -> str:
    """Medians of the rounds; a dash without a round."""
    return " / ".join(f"{median(latency(rows, name)):.1f}" for name in names) if rows else "-"


def _checked(result: WorkloadResult) -> str:
    """Batch invariance, as this run saw it."""
    rounds = [*result["closed"][SERVICE.name].values(), result["half_load"][SERVICE.name]]
    figures = [row for rows in rounds for row in rows]
    answers = sum(row["answers"].get("200", 0) for row in figures)
    wrong = sum(row["wrong"] or 0 for row in figures)
    return (
        f"Answers of Lengthwise compared with the same sequence unbatched: {answers:,}; different in a bit: {wrong:,}."
    )


def _silent(result: WorkloadResult) -> list[str]:
    """Servers that lost a request, answered nothing and were asked again."""
    lines = []
    for contender in CONTENDERS:
        rounds = [*result["closed"][contender.name].values(), result["half_load"][contender.name]]
        if silent := sum(row.get("silent_loads", 0) for rows in rounds for row in rows):
            lines.append(f"Asked again after no answer: {contender.title}, {silent} times.")
    return lines


def _ratio_parts(result: WorkloadResult) -> list[str]:
    """The graph's own time, the ratios by connections, and the tail at half load."""
    limit = result["limit"]
    planned = ", ".join(
        f"{median(each['seconds_per_sequence']) * 1e6:.0f} us at {count}"
        for count, each in limit["as_they_come"].items()
    )
    alone = "; ".join(
        f"in {whose} kernels {median(each['seconds_per_sequence']) * 1e6:.0f} us a sequence, padding "
        f"{each['padding_share']:.1%}, {each['rows_per_batch']:.1f} rows a batch"
        for whose, each in (("onnxruntime's", limit["onnxruntime"]), ("Lengthwise's", limit["own"]))
    )
    connections = [str(count) for count in result["connections"]]
    names = {
        "reach": "reach",
        "reach_own_kernels": "reach, of the limit in its own kernels",
        "reach_as_they_come": "the same, as they come",
        "reach_same_kernels": "reach in onnxruntime's kernels",
        "over_best_of_naive_and_mosec": "over the best of FastAPI and mosec as documented",
        "same_kernels_over_best_of_naive_and_mosec": "the same in onnxruntime's kernels",
        "graph_alone_over_best_of_naive_and_mosec": "(the graph alone in these over them)",
        "over_mosec_sorted": "over mosec sorted by hand",
        "int8_over_mosec_sorted": "the same at int8",
        "int8_over_own": "(int8 over float32)",
        "same_kernels_over_mosec_sorted": "the same in onnxruntime's kernels",
        "graph_alone_over_mosec_sorted": "(the graph alone in these over it)",
    }
    ratios = [result["ratios"][count] for count in connections]
    lines = [(title, *(_shown(each[name], "{:.2f}") for each in ratios)) for name, title in names.items()]
    lines += [
        (f"{title}, in core-seconds", *(_shown(each["core_second"][name], "{:.2f}") for each in ratios))
        for name, title in names.items()
        if not name.startswith("graph_alone")
    ]
    lines.append(("p50 over FastAPI's", *(_shown(each["p50_over_naive"], "{:.2f}") for each in ratios)))
    lines.append(
        ("p99 over that of mosec sorted by hand", *(_shown(each["p99_over_mosec_sorted"], "{:.2f}") for each in ratios))
    )
    lines.append(("padding", *(_shown(each["padding_share"], "{:.1%}") for each in ratios)))
    tail = _shown(result["ratios"]["half_load"]["p99_over_best_peer"], "{:.2f}")
    return [
        f"The graph alone, best partition: {alone}. In Lengthwise's kernels, planned as they come: {planned}.",
        pages.table(("Lengthwise, by connections", *connections), lines),
        f"p99 at half of the best peer's capacity, over the best peer's: {tail}.",
    ]


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Two plots a workload: throughput by connections, and latency at half load."""
    paths = []
    for name, result in results["workloads"].items():
        paths += [folder / f"{name}-throughput.png", folder / f"{name}-half-load.png"]
        save(partial(_draw_throughput, result=result), paths[-2])
        save(partial(_draw_half_load, result=result), paths[-1])
    return paths


def _draw_throughput(axes: Any, result: WorkloadResult) -> None:
    connections = result["connections"]
    places = range(len(connections))
    width = 0.8 / len(CONTENDERS)
    for number, (contender, color) in enumerate(zip(CONTENDERS, _COLORS, strict=True)):
        rounds = [spread(throughput(result, contender, count)) for count in connections]
        middle = [each["median"] for each in rounds]
        below = [each["median"] - each["low"] for each in rounds]
        above = [each["high"] - each["median"] for each in rounds]
        at = [place + (number - (len(CONTENDERS) - 1) / 2) * width for place in places]
        axes.bar(at, middle, width, yerr=[below, above], label=contender.title, color=color, error_kw={"linewidth": 1})
    limit = result["limit"]
    for place, count in zip(places, connections, strict=True):
        wire = 1 / median(throughput(result, EMPTY, count))
        for each, name, style in (
            (limit["onnxruntime"], "no-waste limit, onnxruntime's kernels", "--"),
            (limit["own"], "no-waste limit, Lengthwise's kernels", "-."),
            (limit["as_they_come"][str(count)], "the same, planned as they come", ":"),
        ):
            height = 1 / (median(each["seconds_per_sequence"]) + wire)
            label = None if place else name
            axes.hlines(height, place - 0.45, place + 0.45, color="black", linestyle=style, label=label)
    axes.set_xticks(list(places), [str(count) for count in connections])
    axes.set_xlabel("connections")
    axes.set_ylabel("requests/s")
    axes.set_title(result["title"], fontsize=9)
    axes.legend(**_LEGEND)


def _draw_half_load(axes: Any, result: WorkloadResult) -> None:
    names = {"p50": "p50", "p95": "p95", "p99": "p99", "p99_9": "p99.9"}
    for contender, color in zip(CONTENDERS, _COLORS, strict=True):
        rows = result["half_load"][contender.name]
        values = [median(latency(rows, name)) for name in names]
        axes.plot(list(names.values()), values, "o-", label=contender.title, color=color)
    axes.set_yscale("log")
    axes.set_ylabel("latency from the moment due, ms")
    axes.set_title(f"{result['title']}: Poisson, {result['half_load_rate']:,.0f}/s", fontsize=9)
    axes.legend(**_LEGEND)


def _over(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])


def _shown(values: dict[str, float], form: str) -> str:
    """A median with its range, where there is one."""
    middle, low, high = (form.format(values[name]) for name in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low}-{high})"
