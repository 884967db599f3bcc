"""From the figures of all rounds to medians with ranges, ratios, a Markdown table and plots."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contenders import CONTENDERS, EMPTY, MOSEC, MOSEC_SORTED, NAIVE, SERVICE, Contender
from service.plots import save

Result = dict[str, Any]
"""One workload: `closed[contender][connections]` and `half_load[contender]`, each a list of figures, one a round."""

_LEGEND: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.14),
    "ncols": 3,
    "frameon": False,
    "fontsize": 7,
}
_COLORS = ("#b8322a", "#e08a1e", "#8a8a8a", "#3b6ea5", "#3a8a5f")


def spread(rounds: Sequence[float]) -> dict[str, float]:
    """Median and range of what the rounds gave."""
    return {"median": median(rounds), "low": min(rounds), "high": max(rounds)}


def throughput(result: Result, contender: Contender, connections: int) -> list[float]:
    """Requests a second of each round."""
    return [figures["requests_per_second"] for figures in result["closed"][contender.name][str(connections)]]


def latency(figures: Sequence[dict[str, Any]], percentile: str) -> list[float]:
    """A percentile of each round, in ms; nothing of a round without an answer."""
    return [row["latency_ms"][percentile] for row in figures if row["latency_ms"]]


def ratios(result: Result) -> dict[str, Any]:
    """Each round's figure over the same round's other figure, as median and range: noise of the machine cancels."""
    found: dict[str, Any] = {}
    compute = result["limit"]["seconds_per_sequence"]
    for connections in result["connections"]:
        own = throughput(result, SERVICE, connections)
        peers = {name.name: throughput(result, name, connections) for name in (NAIVE, MOSEC, MOSEC_SORTED)}
        untuned = [max(pair) for pair in zip(peers[NAIVE.name], peers[MOSEC.name], strict=True)]
        wire = throughput(result, EMPTY, connections)
        found[str(connections)] = {
            "reach": spread([rate * (each + 1 / empty) for rate, each, empty in zip(own, compute, wire, strict=True)]),
            "over_best_of_naive_and_mosec": _over(own, untuned),
            "over_mosec": _over(own, peers[MOSEC.name]),
            "over_mosec_sorted": _over(own, peers[MOSEC_SORTED.name]),
            "over_naive": _over(own, peers[NAIVE.name]),
            "p50_over_naive": _over(
                latency(result["closed"][SERVICE.name][str(connections)], "p50"),
                latency(result["closed"][NAIVE.name][str(connections)], "p50"),
            ),
            "padding_share": spread([row["padding_share"] for row in result["closed"][SERVICE.name][str(connections)]]),
        }
    half = result["half_load"]
    peers_p99 = [latency(half[peer.name], "p99") for peer in (NAIVE, MOSEC, MOSEC_SORTED)]
    best = [min(round_) for round_ in zip(*peers_p99, strict=True)]
    found["half_load"] = {"p99_over_best_peer": _over(latency(half[SERVICE.name], "p99"), best)}
    return found


def markdown(results: dict[str, Any]) -> str:
    """The whole run, for people."""
    facts = results["machine"]
    lines = [
        f"Measured on {facts['processor']}, {facts['cores']} cores, Python {facts['python']}, onnxruntime "
        f"{facts['packages']['onnxruntime']}; {results['settings']['rounds']} rounds, interleaved, median (range).",
    ]
    for result in results["workloads"].values():
        lines += ["", f"### {result['title']}", "", *_throughput_table(result), "", *_latency_table(result)]
        lines += ["", *_half_load_table(result), "", *_ratio_table(result), "", _checked(result)]
    return "\n".join(lines) + "\n"


def _throughput_table(result: Result) -> list[str]:
    connections = result["connections"]
    lines = [_row("requests/s", *(f"{count} connections" for count in connections)), _rule(len(connections) + 1)]
    for contender in (*CONTENDERS, EMPTY):
        cells = (_cell(throughput(result, contender, count), "{:,.0f}") for count in connections)
        lines.append(_row(contender.title, *cells))
    return lines


def _latency_table(result: Result) -> list[str]:
    connections = result["connections"]
    lines = [_row("p50 / p99, ms", *(f"{count} connections" for count in connections)), _rule(len(connections) + 1)]
    for contender in CONTENDERS:
        rounds = [result["closed"][contender.name][str(count)] for count in connections]
        cells = (f"{median(latency(rows, 'p50')):.1f} / {median(latency(rows, 'p99')):.1f}" for rows in rounds)
        lines.append(_row(contender.title, *cells))
    return lines


def _checked(result: Result) -> str:
    """The promise that a neighbour never changes an answer, as it was seen here."""
    rounds = [*result["closed"][SERVICE.name].values(), result["half_load"][SERVICE.name]]
    figures = [row for rows in rounds for row in rows]
    answers = sum(row["answers"].get("200", 0) for row in figures)
    wrong = sum(row["wrong"] or 0 for row in figures)
    return f"Answers of Lengthwise held against the same sequence alone: {answers:,}; different in any bit: {wrong:,}."


def _half_load_table(result: Result) -> list[str]:
    lines = [_row(f"Poisson, {result['half_load_rate']:,.0f}/s", "p50, ms", "p99, ms", "p99.9, ms"), _rule(4)]
    for contender in CONTENDERS:
        rows = result["half_load"][contender.name]
        lines.append(_row(contender.title, *(_cell(latency(rows, name), "{:.1f}") for name in ("p50", "p99", "p99_9"))))
    return lines


def _ratio_table(result: Result) -> list[str]:
    limit = result["limit"]
    lines = [
        f"The graph alone, best partition: {median(limit['seconds_per_sequence']) * 1e6:.0f} us a sequence, padding "
        f"{limit['padding_share']:.1%}, {limit['rows_per_batch']:.1f} rows a batch.",
        "",
    ]
    connections = [str(count) for count in result["connections"]]
    lines += [_row("Lengthwise", *(f"{count} connections" for count in connections)), _rule(len(connections) + 1)]
    names = {
        "reach": "reach",
        "over_best_of_naive_and_mosec": "over the best of FastAPI and mosec as documented",
        "over_mosec_sorted": "over mosec sorted by hand",
        "p50_over_naive": "p50 over FastAPI's",
        "padding_share": "padding",
    }
    for name, title in names.items():
        form = "{:.1%}" if name == "padding_share" else "{:.2f}"
        lines.append(_row(title, *(_said(result["ratios"][count][name], form) for count in connections)))
    tail = _said(result["ratios"]["half_load"]["p99_over_best_peer"], "{:.2f}")
    return [*lines, "", f"p99 at half of the best peer's capacity, over the best peer's: {tail}"]


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Two plots a workload: throughput by connections, and latency at half load."""
    paths = []
    for name, result in results["workloads"].items():
        paths += [folder / f"{name}-throughput.png", folder / f"{name}-half-load.png"]
        save(partial(_draw_throughput, result=result), paths[-2])
        save(partial(_draw_half_load, result=result), paths[-1])
    return paths


def _draw_throughput(axes: Any, result: Result) -> None:
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
    compute = median(result["limit"]["seconds_per_sequence"])
    limits = [1 / (compute + 1 / median(throughput(result, EMPTY, count))) for count in connections]
    for place, limit in zip(places, limits, strict=True):
        axes.hlines(
            limit, place - 0.45, place + 0.45, color="black", linestyle="--", label=None if place else "no-waste limit"
        )
    axes.set_xticks(list(places), [str(count) for count in connections])
    axes.set_xlabel("connections")
    axes.set_ylabel("requests/s")
    axes.set_title(result["title"], fontsize=9)
    axes.legend(**_LEGEND)


def _draw_half_load(axes: Any, result: Result) -> None:
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


def _cell(rounds: Sequence[float], form: str) -> str:
    return _said(spread(rounds), form) if rounds else "-"


def _said(found: dict[str, float], form: str) -> str:
    middle, low, high = (form.format(found[name]) for name in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low}-{high})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|" + " --- |" * columns
