"""The results as a page: a table for each section, and the missing figures with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import pages
from benchmarks.gpu.section import SECTIONS
from benchmarks.gpu.throughput import FAMILIES

Figures = dict[str, Any]
NO_GPU = "Measured on the CPU, to see that the code runs: no figure here is of a GPU."
_NOT_FIGURES = ("failures", "left_out", "cut_short")
TITLES = {
    "service": "the service (no HTTP)",
    "overlapping": "the same, two batches at once",
    "unbatched": "one run a sequence",
    "arrival": "padded in order of arrival",
    "alone": "the same, one batch at a time",
    "torch": "torch, packed sequences",
}


def page(results: dict[str, Any]) -> str:
    """Everything, as Markdown."""
    parts = [NO_GPU] if results["provider"] == "cpu" else []
    if results["quick"]:
        parts.append("A quick run: too short for any figure to be used.")
    parts.append("; ".join(f"{name} {value}" for name, value in results["installed"].items()))
    if "note" in results:
        parts.append(results["note"])
    for name, shown in _SHOWN.items():
        figures = results["sections"].get(name, {}).get("figures")
        if figures:
            parts.append(f"## {name}")
            try:
                parts += shown(figures)
            except Exception as error:  # figures that are cut short may lack any part
                parts.append(f"(these figures are incomplete: {error!r})")
    parts += ["## Missing", "\n".join(missing(results["sections"]))]
    return pages.page(results["machine"], results["device"], *parts)


def missing(sections: Figures) -> list[str]:
    """Every section without all of its figures, and every contender that failed, with the reason."""
    lines = []
    for section in SECTIONS:
        entry = sections.get(section.name)
        if entry is None:
            lines.append(f"- {section.name}: not asked for")
            continue
        if entry["status"] not in ("measured", "in part"):
            reason = (entry.get("reason") or "").strip().splitlines()
            lines.append(f"- {section.name}: {entry['status']}: {reason[-1] if reason else '?'}")
        for kind in _NOT_FIGURES:
            notes = entry.get("figures", {}).get(kind, {})
            lines += [f"- {section.name}, {name}: {why}" for name, why in notes.items()]
    return lines or ["Nothing: every figure is there."]


def _placement(figures: Figures) -> Iterator[str]:
    rows = [
        (
            graph,
            ", ".join(f"{count} on {provider}" for provider, count in found["nodes"].items()),
            ", ".join(found["elsewhere"]) or "none",
        )
        for graph, found in figures["graphs"].items()
    ]
    yield pages.table(("graph", "nodes", "elsewhere"), rows)
    yield f"A node that the device cannot run: {figures.get('rejection', 'not tried')}."


def _parity(figures: Figures) -> Iterator[str]:
    largest = " and ".join(f"{_short(logit)} ({graph})" for graph, logit in figures["largest_logit"].items())
    yield f"{figures['sequences']} sequences against the CPU in float32; the largest logit is {largest}."
    rows = [
        (
            name,
            *(_short(found[key]) for key in ("logits", "logits_median", "attention")),
            f"{found['equal_bits']:.1%}",
            f"{found['other_class']:.2%}",
        )
        for name, found in figures["against_cpu"].items()
    ]
    yield pages.table(("", "logit, largest", "logit, median", "attention", "equal bits", "another class"), rows)


def _isolation(figures: Figures) -> Iterator[str]:
    rows, tolerances = [], []
    for graph, found in figures.items():
        if graph in _NOT_FIGURES:
            continue
        cases = {name: each for name, each in found.items() if name not in ("padding", "neighbour", "promise")}
        for what in ("padding", "neighbour"):
            cases |= {f"{what} of {junk}": each for junk, each in found.get(what, {}).items()}
        rows += [
            (graph, name, _short(each["logits"]), _short(each["attention"]), f"{each['equal_bits']:.1%}")
            for name, each in cases.items()
        ]
        if promise := found.get("promise"):
            tolerance = "the same bits" if promise["bits"] else f"within {_short(promise['tolerance'])}"
            tolerances.append(f"- {graph}: the service promises {tolerance} on {promise['provider']}")
    yield pages.table(("", "varied", "logit, largest", "attention", "equal bits"), rows)
    yield "\n".join(tolerances)


def _throughput(figures: Figures) -> Iterator[str]:
    families = [family for family in FAMILIES if any(family in best for best in figures["best"].values())]
    rows = []
    for name, best in figures["best"].items():
        cells = [
            f"{best[family]['median']:,.0f} ({best[family]['low']:,.0f}-{best[family]['high']:,.0f})"
            if family in best
            else "-"
            for family in families
        ]
        others = [found["median"] for family, found in best.items() if family not in {"service", "overlapping"}]
        own = best.get("service", {})
        cells.append(f"{own['median'] / max(others):.2f}" if others and own else "-")
        cells.append(f"{own['rows_per_batch']:.1f} / {own['padding_share']:.1%}" if own else "-")
        rows.append((name, *cells))
    heads = ("sequences/s", *(TITLES[family] for family in families))
    yield pages.table((*heads, "service over the best other", "its rows a batch / padding"), rows)


def _over_http(figures: Figures) -> Iterator[str]:
    servers = figures.get("servers", {}).values()
    if not servers:  # as without wrk; the page says so under Missing
        return
    peers = {server["model"]: server["loads"] for server in servers if server["is_peer"]}
    connections = [*dict.fromkeys(count for server in servers for count in server["loads"])]
    rows = []
    for server in servers:
        cells = [server["model"], server["server"], ", ".join(f"{seconds:.1f}" for seconds in server["ready_seconds"])]
        for count in connections:
            load, peer = server["loads"].get(count), peers.get(server["model"], {}).get(count)
            ratios = ""
            if load and peer and peer["rate"] and not server["is_peer"]:
                ratios = f" ({load['rate'] / peer['rate']:.2f}, {load['p99'] / peer['p99']:.2f})"
            failed = f", {load['refused'] + load['lost']:.0f} failed" if load and load["refused"] + load["lost"] else ""
            cells.append(f"{load['rate']:,.0f}, {load['p50']:.1f}, {load['p99']:.1f}{ratios}{failed}" if load else "-")
        rows.append(cells)
    yield (
        f"The servers have {figures['cores']} cores, wrk the others. Answers a second, p50 and p99 in ms; in brackets "
        "the answers a second and the p99 over those of the peer. Ready: seconds of a start, and of the service first "
        "without stored costs."
    )
    yield pages.table(["model", "server", "ready, s", *(f"{count} connections" for count in connections)], rows)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


_SHOWN = {
    "placement": _placement,
    "parity": _parity,
    "isolation": _isolation,
    "throughput": _throughput,
    "over_http": _over_http,
}
