"""The results in words and tables, and which figures are missing and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.throughput import FAMILIES

Found = dict[str, Any]
_NOT_FIGURES = ("failures", "left_out", "cut_short")
TITLES = {
    "service": "the service (no HTTP)",
    "partition": "best batches, all known in advance",
    "alone": "one run a sequence",
    "arrival": "padded in the order of arrival",
    "torch": "torch, packed sequences",
}


def text(results: dict[str, Any]) -> str:
    """Everything, as Markdown."""
    held = results["sections"]
    lines = [f"# {results['device']}", "", f"{results['label']}."]
    if results["quick"]:
        lines.append("A quick look: too short for any figure to be used.")
    for name, tell in _TOLD.items():
        figures = held.get(name, {}).get("figures")
        if not figures:
            continue
        lines += ["", f"## {name}", ""]
        try:
            lines += tell(figures, held)
        except Exception as error:  # figures that are cut short may lack any part
            lines.append(f"(these figures are not all there: {error!r})")
    lines += ["", "## Missing", "", *missing(held)]
    return "\n".join(lines) + "\n"


def missing(held: Found) -> list[str]:
    """Every section without all of its figures, and every contender that failed, with the reason."""
    lines = []
    for section in SECTIONS:
        found = held.get(section.name)
        if found is None:
            lines.append(f"- {section.name}: not asked for")
            continue
        if found["status"] not in ("measured", "in part"):
            reason = (found.get("reason") or "").strip().splitlines()
            lines.append(f"- {section.name}: {found['status']}: {reason[-1] if reason else '?'}")
        for kind in _NOT_FIGURES:
            told = found.get("figures", {}).get(kind)
            if isinstance(told, dict):
                lines += [f"- {section.name}, {name}: {why}" for name, why in told.items()]
            elif told:
                lines.append(f"- {section.name}: {told}")
    return lines or ["Nothing: every figure is there."]


def _device(figures: Found, _held: Found) -> Iterator[str]:
    packages = ", ".join(f"{name} {version}" for name, version in figures["packages"].items() if version)
    what = figures.get("nvidia_smi") or figures["machine"]["processor"]
    yield f"{figures['name']}; {what}; Python {figures['python']}"
    yield f"{packages}; CUDA of torch {figures.get('torch_cuda')}, cuDNN {figures.get('torch_cudnn')}"


def _placement(figures: Found, _held: Found) -> Iterator[str]:
    for graph, found in figures["graphs"].items():
        nodes = ", ".join(f"{count} on {provider}" for provider, count in found["nodes"].items())
        yield f"- {graph}: {nodes}; elsewhere: {', '.join(found['elsewhere']) or 'none'}"
    yield f"- a node that the device cannot take: {figures.get('refusal', 'not tried')}"


def _parity(figures: Found, _held: Found) -> Iterator[str]:
    largest = " and ".join(f"{_short(logit)} ({graph})" for graph, logit in figures["largest_logit"].items())
    yield f"{figures['sequences']} sequences against the CPU in float32; the largest logit is {largest}."
    yield ""
    yield from _table(
        ("", "logit, largest", "logit, median", "attention", "equal bits", "another class"),
        [
            (
                name,
                *(_short(found[key]) for key in ("logits", "logits_median", "attention")),
                f"{found['equal_bits']:.1%}",
                f"{found['other_class']:.2%}",
            )
            for kind in ("against_cpu", "torch_against_cpu")
            for name, found in (
                (f"torch {key}" if "torch" in kind else key, each) for key, each in figures.get(kind, {}).items()
            )
        ],
    )


def _isolation(figures: Found, _held: Found) -> Iterator[str]:
    rows = []
    for graph, found in _parts(figures):
        kinds = {
            name.replace("_", " "): each
            for name, each in found.items()
            if name not in ("padding", "neighbour", "promise")
        }
        for what in ("padding", "neighbour"):
            kinds |= {f"{what} of {junk}": each for junk, each in found.get(what, {}).items()}
        rows += [
            (graph, name, _short(each["logits"]), _short(each["attention"]), f"{each['equal_bits']:.1%}")
            for name, each in kinds.items()
        ]
    yield from _table(("", "varied", "logit, largest", "attention", "equal bits"), rows)
    yield ""
    for graph, found in _parts(figures):
        promise = found.get("promise")
        if promise is not None:
            what = "the same bits" if promise["bits"] else f"within {_short(promise['tolerance'])}"
            yield f"- {graph}: the service promises {what} alone and in company on {promise['provider']}"


def _limits(figures: Found, _held: Found) -> Iterator[str]:
    flops, copies = figures["flops"], figures.get("copies", {})
    for precision, rate in flops.items():
        if precision != "size":
            yield f"- matrix product, {precision}: {rate / 1e12:,.2f} TFLOP/s"
    for name, rate in copies.items():
        if name != "mib":
            yield f"- copy, {name.replace('_', ' ')}: {rate / 1e9:,.1f} GB/s"
    yield f"- smallest piece of work: {figures['launch']['seconds'] * 1e6:,.1f} us"


def _costs(figures: Found, _held: Found) -> Iterator[str]:
    rows = [
        (
            precision,
            f"{found['smallest_ms']:.3f}",
            f"{found['step_of_one_row_us']:.2f}",
            f"{found['rows_64_over_1_at_64']:.2f}",
            f"{found['rows_256_over_1_at_64']:.2f}",
        )
        for precision, found in figures["tables"].items()
    ]
    heads = ("", "smallest batch, ms", "a step of one row, us", "64 rows over 1", "256 rows over 1")
    yield from _table(heads, rows)


def _throughput(figures: Found, held: Found) -> Iterator[str]:
    families = [family for family in FAMILIES if any(family in best for best in figures["best"].values())]
    rows = []
    for name, best in figures["best"].items():
        cells = [
            f"{best[family]['median']:,.0f} ({best[family]['low']:,.0f}-{best[family]['high']:,.0f})"
            if family in best
            else "-"
            for family in families
        ]
        others = [best[family]["median"] for family in ("alone", "arrival", "torch") if family in best]
        ratio = f"{best['service']['median'] / max(others):.2f}" if others and "service" in best else "-"
        rows.append((name, *cells, ratio))
    yield from _table(("sequences/s", *(TITLES[family] for family in families), "service over the best other"), rows)
    yield ""
    operations, peaks = figures.get("operations_per_step"), held.get("limits", {}).get("figures", {}).get("flops", {})
    for name, best in figures["best"].items():
        distribution, _, precision = name.rpartition(" ")
        length, peak = figures["mean_length"][distribution], peaks.get(precision)
        if operations and "service" in best:
            useful = best["service"]["median"] * length * operations
            share = f", {useful / peak:.1%} of the device's matrix products" if peak else ""
            batches = _batches(best["service"])
            yield f"- {name}: the service's useful work is {useful / 1e12:.3f} TFLOP/s{share}; {batches}"


def _latency(figures: Found, _held: Found) -> Iterator[str]:
    for load in ("half_load", "own_half_load"):
        found = figures.get(load)
        if not found:
            continue
        of = "the best other" if load == "half_load" else "the service"
        yield f"Poisson, {found['rate']:,.0f} sequences/s, half of what {of} takes:"
        yield ""
        rows = [
            (
                name,
                *(_short(middle(rounds, key)) for key in ("p50_ms", "p99_ms", "p99_9_ms")),
                f"{middle(rounds, 'answered') or 0:.1%}",
            )
            for name, rounds in found.items()
            if name != "rate" and rounds
        ]
        yield from _table(("", "p50, ms", "p99, ms", "p99.9, ms", "answered"), rows)
        yield ""


def middle(rounds: Sequence[Found], key: str) -> float | None:
    """The median of a figure over the rounds that have it."""
    found = [each[key] for each in rounds if each[key] is not None]
    return median(found) if found else None


def _busy(figures: Found, _held: Found) -> Iterator[str]:
    for name, found in _parts(figures):
        shares = {
            "kernel_share": "kernels run",
            "driver_share": "the driver says it is busy",
            "copy_share": "copies run",
            "processor_share": "processor time over the clock",
        }
        said = [f"{title} {found[key]:.1%}" for key, title in shares.items() if found.get(key) is not None]
        yield f"- {name}: {', '.join(said) or 'nothing read'}"


def _memory(figures: Found, _held: Found) -> Iterator[str]:
    mib = [*figures["mib"].values()]
    yield (
        f"{figures['shapes']:,} shapes: {figures['before_load_mib']:,.0f} MiB before the graph was loaded, "
        f"{figures['after_load_mib']:,.0f} after, {mib[0]:,.0f} after the first tenth of the shapes, {mib[-1]:,.0f} at "
        f"the end: growth {figures['growth_after_first_tenth']:.1%}."
    )


def _over_http(figures: Found, _held: Found) -> Iterator[str]:
    rows = []
    loads = {f"{count} connections": seen for count, seen in figures.get("closed", {}).items()}
    if "half_load" in figures:
        loads[f"Poisson, {figures['half_load']['rate']:,.0f}/s"] = figures["half_load"]
    for name, seen in loads.items():
        latency = seen["latency_ms"] or {}
        cells = (_short(latency.get(key)) for key in ("p50", "p99"))
        rows.append((name, f"{seen['requests_per_second']:,.0f}", *cells, f"{seen['client_core_share']:.2f}"))
    yield from _table(("", "requests/s", "p50, ms", "p99, ms", "cores of the client"), rows)


def _parts(figures: Found) -> Iterator[tuple[str, Found]]:
    """The figures by what they are of, without what is said of those that are missing."""
    yield from ((name, found) for name, found in figures.items() if name not in _NOT_FIGURES)


def _batches(found: Found) -> str:
    return f"{found.get('rows_per_batch', 0):.1f} rows a batch, {found.get('padding_share', 0):.1%} padding"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + " --- |" * len(heads)
    for row in rows:
        yield f"| {' | '.join(row)} |"


_TOLD = {
    "device": _device,
    "placement": _placement,
    "parity": _parity,
    "isolation": _isolation,
    "limits": _limits,
    "costs": _costs,
    "throughput": _throughput,
    "latency": _latency,
    "busy": _busy,
    "memory": _memory,
    "over_http": _over_http,
}
