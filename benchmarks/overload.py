"""Three times as many requests as the service can answer: `python -m benchmarks.overload`.

One runner on one core serves the skewed workload, several sequences in each request. First its capacity is measured in
a closed loop. Then requests arrive in a Poisson process at three times that rate for a minute, whatever happens to
them, and each of them is answered or refused. Meanwhile a few callers come back after a refusal:

| caller | after a 429 |
|---|---|
| obedient | sleeps for exactly `Retry-After`, and tries again |
| impatient | tries again every quarter of a second: shows how soon a retry succeeds |

Once accepted, a caller waits for a random time before it begins anew: otherwise all of them would come at the same
moment of each cycle in which the queue fills and drains.

The run passes if the goodput is at least 92 % of the capacity; 99 % of the accepted requests are answered within the
longest wait that the service promises (`--max-queue-seconds`), and 99 % of the refusals within 50 ms; and the time
after which a retry succeeds is within a factor of 1.5 of `Retry-After` for half of the callers, and of 2 for 90 %.

All of this is done several times, each time with its own capacity before and after, because the speed of a machine
changes from minute to minute. The figures are medians of the rounds; the callers who came back are taken together.
"""

from __future__ import annotations

import http.client
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks import machine, output, pages, processes
from benchmarks.workloads import WORKLOADS
from lengthwise.bench import launch
from lengthwise.bench.connection import ServerAddress
from lengthwise.bench.load import Load, Measurement, Schedule
from lengthwise.bench.trial import LoadSpec, groups_of, json_requests, prepare
from lengthwise.bench.workload import arrival_moments
from lengthwise.padding import Steps

PAGE = pages.RESULTS / "overload.md"
LEAST_GOODPUT = 0.92
MOST_REFUSAL_SECONDS = 0.05
MOST_FACTORS = {50: 1.5, 90: 2.0}
"""Percentile of the callers: how far from `Retry-After` the time may be after which a retry succeeds."""
POLL_SECONDS = 0.25
_CALLERS = 8
_LEAST_WARM_SECONDS = 3.0
_CAPACITY_CONNECTIONS = 256
_MEDIANS = ("capacity", "offered", "goodput", "goodput_share", "accepted_seconds", "refusal_seconds")


@dataclass
class Returning:
    """Callers of one kind, who come back after each refusal until they are accepted."""

    target: ServerAddress
    requests: list[bytes]  # what they send, in turns
    pause_seconds: float | None  # how long they wait before a retry; None for `Retry-After`
    until: float  # when they stop, on the clock of `time.monotonic`
    rest_seconds: float  # how long they wait at most before they begin anew
    promised: list[float] = field(default_factory=list)  # `[retries]`, the `Retry-After` of the first refusal
    # `[retries]`, the time from the first refusal to the sending of the retry that was accepted
    needed: list[float] = field(default_factory=list)
    tries: list[int] = field(default_factory=list)  # `[retries]`, how many times they tried
    unlike: list[int] = field(default_factory=list)  # statuses other than 200 and 429

    def start(self, count: int) -> list[threading.Thread]:
        """Starts `count` callers."""
        threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def _run(self, number: int) -> None:
        random = np.random.default_rng(number)
        while time.monotonic() < self.until:
            number += _CALLERS
            body = self.requests[number % len(self.requests)].partition(b"\r\n\r\n")[2]
            first, promised, tries = 0.0, 0.0, 0
            while True:
                connection = http.client.HTTPConnection(self.target.host, self.target.port, timeout=120)
                sent = time.monotonic()
                connection.request("POST", "/predict", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                connection.close()
                tries += 1
                if answer.status != 429:
                    break
                if tries == 1:
                    first, promised = sent, float(answer.headers["retry-after"])
                if time.monotonic() >= self.until:
                    return  # the end of the load would let it in
                time.sleep(self.pause_seconds or float(answer.headers["retry-after"]))
            if answer.status != 200:
                self.unlike.append(answer.status)
            elif tries > 1:
                self.promised.append(promised)
                self.needed.append(sent - first)
                self.tries.append(tries)
            time.sleep(random.uniform(0, self.rest_seconds))

    def add(self, other: Returning) -> None:
        """Adds what callers of the same kind saw in another round."""
        for mine, more in (
            (self.promised, other.promised),
            (self.needed, other.needed),
            (self.tries, other.tries),
            (self.unlike, other.unlike),
        ):
            mine += more  # type: ignore[operator]  # each has the type of its own pair

    def figures(self) -> dict[str, Any]:
        """How far the promised times are from the needed ones."""
        promised, needed = np.array(self.promised), np.array(self.needed)
        if not len(promised):
            return {"retries": 0}
        factors = np.maximum(promised / needed, needed / promised)
        return {
            "retries": len(promised),
            "promised": np.percentile(promised, [50, 90]).tolist(),
            "needed": np.percentile(needed, [50, 90]).tolist(),
            "factors": {str(share): float(np.percentile(factors, share)) for share in MOST_FACTORS},
            "first_try": float(np.mean(np.array(self.tries) == 2)),
            "unlike": self.unlike,
        }


@dataclass(frozen=True)
class Overload:
    """What is measured."""

    work: str
    per_request: int  # sequences in each request
    factor: float  # how many times the capacity arrives
    seconds: float
    bound_seconds: float  # the service's `--max-queue-seconds`


def measure(spec: Overload, core: int, rounds: int, each: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The figures of so many overloads of a service on a core; calls `each` after each of them."""
    found, everybody = [], dict[str, Returning]()
    for _ in range(rounds):
        figures, callers = _round(spec, core)
        found.append(figures)
        for kind, callers_of_kind in callers.items():
            everybody.setdefault(kind, replace(callers_of_kind, promised=[], needed=[], tries=[], unlike=[]))
            everybody[kind].add(callers_of_kind)
        each()
    return {
        "rounds": found,
        "answers": dict(sum((Counter(figures["answers"]) for figures in found), Counter[str]())),
        "lost": np.sum([figures["lost"] for figures in found], axis=0).tolist(),
        "callers": {kind: callers_of_kind.figures() for kind, callers_of_kind in everybody.items()},
        **{name: np.median([figures[name] for figures in found], axis=0).tolist() for name in _MEDIANS},
    }


def _round(spec: Overload, core: int) -> tuple[dict[str, Any], dict[str, Returning]]:
    work = WORKLOADS[spec.work](0, 2000 if spec.work == "lognormal" else 370)
    port = launch.free_port()
    options = {
        "runners": "1",
        "log_level": "error",
        "max_queue_seconds": f"{spec.bound_seconds:g}",
        "max_queue_cost_steps": "1000000000",
        "max_inflight_bytes": str(2**31),
        "max_connections": "16384",
    }
    command = launch.serve_command(work.repository, port, options)
    with launch.running(command, port, cores=[core]) as server:
        trial = prepare(server.target, work.sequences, per_request=spec.per_request, check=False)
        load = LoadSpec(concurrency=_CAPACITY_CONNECTIONS, seconds=max(5.0, spec.seconds / 6))
        before = trial.run(load).requests_per_second
        seen, callers = _overloaded(spec, server.target, work.sequences, before)
        after = trial.run(load).requests_per_second
    return _figures(spec, seen, before, after), callers


def _overloaded(
    spec: Overload, target: ServerAddress, sequences: list[Steps], capacity: float
) -> tuple[Measurement, dict[str, Returning]]:
    requests = json_requests(target, groups_of(sequences, spec.per_request))
    moments = arrival_moments(spec.factor * capacity, spec.seconds, np.random.default_rng(1)).tolist()
    until = time.monotonic() + spec.seconds
    callers = {
        "obedient": Returning(target, requests, None, until, spec.bound_seconds / 2),
        "impatient": Returning(target, requests, POLL_SECONDS, until, spec.bound_seconds / 2),
    }
    threads = [thread for kind in callers.values() for thread in kind.start(_CALLERS)]
    patience = spec.bound_seconds + 10
    load = Load(target, requests, Schedule(moments), patience_seconds=patience, limit_seconds=spec.seconds)
    seen = load.run(100 + round(0.9 * capacity * spec.bound_seconds))  # connections: enough for all that wait
    for thread in threads:
        thread.join()
    return seen, callers


def _figures(spec: Overload, seen: Measurement, before: float, after: float) -> dict[str, Any]:
    good, refused = seen.status == 200, seen.status == 429
    start = max(_LEAST_WARM_SECONDS, spec.bound_seconds)  # the first requests fill the queue
    inside = good & (seen.answered >= start) & (seen.answered < spec.seconds)
    accepted, refusals = (seen.answered - seen.sent)[good], (seen.answered - seen.sent)[refused]
    statuses, counts = np.unique(seen.status, return_counts=True)
    goodput = float(inside.sum()) / (spec.seconds - start)
    return {
        "answers": {str(status): int(number) for status, number in zip(statuses, counts, strict=True)},
        "lost": [seen.unsent, seen.unanswered, seen.broken],
        "capacity": [before, after],
        "offered": (len(seen.status) + seen.unsent) / spec.seconds,
        "goodput": goodput,
        "goodput_share": goodput / ((before + after) / 2),
        "accepted_seconds": np.percentile(accepted, [50, 99]).tolist(),
        "refusal_seconds": np.percentile(refusals, [50, 99]).tolist() if len(refusals) else [0.0, 0.0],
    }


def shortcomings(spec: Overload, figures: dict[str, Any]) -> list[str]:
    """What the rounds lack; empty if they pass."""
    lacking = []
    if figures["goodput_share"] < LEAST_GOODPUT:
        lacking.append(f"goodput is {figures['goodput_share']:.1%} of the capacity")
    if figures["accepted_seconds"][1] > spec.bound_seconds:
        lacking.append(f"p99 of accepted requests is {figures['accepted_seconds'][1]:.2f} s")
    if figures["refusal_seconds"][1] > MOST_REFUSAL_SECONDS:
        lacking.append(f"p99 of refusals is {figures['refusal_seconds'][1] * 1e3:.0f} ms")
    if any(figures["lost"]):
        lacking.append(f"{sum(figures['lost'])} requests without an answer")
    for kind, each in figures["callers"].items():
        if not each["retries"]:
            lacking.append(f"no {kind} caller came back")
            continue
        for share, most in MOST_FACTORS.items():
            if each["factors"][str(share)] > most:
                lacking.append(f"{kind} callers, percentile {share}: a factor of {each['factors'][str(share)]:.2f}")
    return lacking


def page(facts: dict[str, Any], spec: Overload, figures: dict[str, Any]) -> str:
    """The figures as a page."""
    accepted, refusals = figures["accepted_seconds"], figures["refusal_seconds"]
    shares = [each["goodput_share"] for each in figures["rounds"]]
    lines = [
        ("capacity, before and after", ", ".join(f"{rate:,.0f}" for rate in figures["capacity"]) + " requests/s"),
        ("offered", f"{figures['offered']:,.0f} requests/s for {spec.seconds:g} s"),
        ("answers by status", ", ".join(f"{status}: {count:,}" for status, count in figures["answers"].items())),
        ("requests not sent, not answered, broken", ", ".join(f"{count}" for count in figures["lost"])),
        (
            "goodput",
            f"{figures['goodput']:,.0f} requests/s, {figures['goodput_share']:.1%} of the capacity "
            f"({min(shares):.1%} to {max(shares):.1%})",
        ),
        ("longest wait (`--max-queue-seconds`)", f"{spec.bound_seconds:g} s"),
        ("accepted requests, p50, p99", f"{accepted[0]:.2f}, {accepted[1]:.2f} s"),
        ("refusals, p50, p99", f"{refusals[0] * 1e3:.1f}, {refusals[1] * 1e3:.1f} ms"),
    ]
    callers = [
        (
            kind,
            f"{each['retries']}",
            f"{each['promised'][0]:.1f}, {each['promised'][1]:.1f} s",
            f"{each['needed'][0]:.1f}, {each['needed'][1]:.1f} s",
            ", ".join(f"{value:.2f}" for value in each["factors"].values()),
            f"{each['first_try']:.0%}",
        )
        for kind, each in figures["callers"].items()
        if each["retries"]
    ]
    heads = ("callers who came back", "times", "`Retry-After`, p50, p90", "needed, p50, p90", "factor, p50, p90")
    lacking = shortcomings(spec, figures)
    return pages.page(
        facts,
        f"{spec.factor:g} times more requests than can be answered",
        f"`python -m benchmarks.overload`: {WORKLOADS_TITLES[spec.work]}, {spec.per_request} sequences a request; "
        f"medians of {len(figures['rounds'])} rounds.",
        pages.table(("", "value"), lines),
        pages.table((*heads, "accepted at the first retry"), callers),
        "The factor is how far the needed time is from `Retry-After`, in either direction.",
        "Passed: " + ("yes." if not lacking else f"no: {'; '.join(lacking)}."),
    )


WORKLOADS_TITLES = {"lognormal": "lognormal lengths of median 50", "japanese-vowels": "JapaneseVowels"}


@click.command()
@click.option("--quick", is_flag=True, help="One round of a sixth of the time: to see that it runs.")
@click.option("--work", type=click.Choice(sorted(WORKLOADS)), default="lognormal", show_default=True)
@click.option("--per-request", type=click.IntRange(1), default=8, show_default=True, help="Sequences in a request.")
@click.option("--factor", type=float, default=3.0, show_default=True, help="Times the capacity.")
@click.option("--seconds", type=float, default=60.0, show_default=True)
@click.option("--bound", type=float, default=20.0, show_default=True, help="The service's --max-queue-seconds.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True)
def main(
    quick: bool, work: str, per_request: int, factor: float, seconds: float, bound: float, rounds: int, out: Path
) -> None:
    """Overloads the service, and checks what accepted, refused and returning callers see."""
    facts = machine.facts()
    server = processes.first_core()
    shorter, rounds = (6.0, 1) if quick else (1.0, rounds)
    spec = Overload(work, per_request, factor, seconds / shorter, bound / shorter)
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as shown:
        task = shown.add_task("rounds", total=rounds)
        figures = measure(spec, server, rounds, lambda: shown.advance(task))
    text = page(facts, spec, figures)
    output.tell(text, out=out)
    sys.exit(bool(shortcomings(spec, figures)))


if __name__ == "__main__":
    main()
