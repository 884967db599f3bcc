"""What the world's encoders do with padding: `python -m benchmarks.encoders`.

    class --tiny configuration, random weights--> module --`check`, padded right, left, both ...--> verdicts --> page

Each module is checked in a process of its own with a limit of time, once for each mode. What has been judged is kept in
a file, so that the next run judges only what is new: another checker, another version of the library, another way to
call the class. Libraries that are not installed are left out; `encoders.txt` has those of the page with their versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import click
import torch
from rich.console import Console
from rich.progress import track

import lengthwise_export
from benchmarks import machine, output, pages
from benchmarks.encoders_models import DATA, Encoder, Packed, encoders
from benchmarks.machine import version_of
from lengthwise.commands.command import Command
from lengthwise.errors import LengthwiseError

PAGE = pages.RESULTS / "encoders.md"
CHECKER: Final = Path(lengthwise_export.__file__).parent
MAX_LENGTH: Final = 100
SECONDS: Final = 60
"""The limit of time of one check."""

LONGEST_REASON: Final = 100

MODES: Final[dict[str, dict[str, Any]]] = {
    "right": {},
    "left": {"padding": "left"},
    "both": {"padding": "both"},
    "packed": {"packed": "position_ids"},
    "any values": {},
}
"""The options of `check`; `any values` is padding on the right with other values than the library itself writes."""

CONTEXT: Final = get_context("forkserver")
PRELOADED: Final = ("__main__", "lengthwise_export.exporting.flow", "transformers.modeling_utils")

Record = dict[str, Any]
"""A judgement in the file: the fields of `Judged`, and what it is of."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a check of one class in one mode says."""

    verdict: str  # that of the report, or `past N s`
    reason: str = ""
    rule: str = ""  # the code of the first leak
    operator: str = ""
    line: str = ""  # of the library
    difference: float = 0.0  # the largest of a trial
    one_row: bool = True  # whether an answer in a batch of one row stays the same
    seconds: float = 0.0
    mebibytes: float = 0.0


def judge(entry: Encoder, mode: str) -> Judged:
    """Checks a class in one mode."""
    begun = time.perf_counter()
    try:
        called = entry.make(own_padding=mode != "any values")
        module = Packed(called) if mode == "packed" else called
        report = lengthwise_export.check(module, max_length=MAX_LENGTH, **entry.options, **MODES[mode])
    except LengthwiseError as error:
        return Judged("uncheckable", str(error))
    except Exception as error:  # of the library; the others go on
        return Judged("not made", f"{type(error).__name__}: {error}")
    leak = next(iter(report.leaks), None)
    moved = [trial for trial in report.trials if not trial.passed]
    return Judged(
        report.verdict,
        report.reason,
        "" if leak is None else getattr(leak.cause, "code", ""),
        "" if leak is None else leak.operator,
        "" if leak is None else _line(str(leak.location)),
        max((trial.difference or 0.0 for trial in moved), default=0.0),
        not any("one row" in trial.name for trial in moved),
        time.perf_counter() - begun,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    )


def _line(location: str) -> str:
    """The library's own line of a location such as `encoders_models.py:90 (transformers/models/...py:12)`."""
    inner = re.search(r"\((\S+:\d+)\)$", location)
    return location if inner is None else inner[1]


def _answer(sender: Connection, entry: Encoder, mode: str) -> None:
    """The judgement of a process of its own, which the system ends past its time."""
    signal.alarm(SECONDS)
    torch.set_num_threads(1)
    sender.send(judge(entry, mode))


def judge_apart(entry: Encoder, mode: str) -> Judged:
    """Checks a class in one mode, in a process of its own."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_answer, args=(sender, entry, mode))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return Judged(f"past {SECONDS} s", f"ended after {SECONDS} s, or by a signal")
    finally:
        process.join()


def digest(*parts: str | bytes) -> str:
    """A short digest of texts."""
    return hashlib.sha256(b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)).hexdigest()


def subject(entry: Encoder, mode: str) -> str:
    """What a judgement is of: the class, its library's version, how it is called, the mode."""
    own = {one.name: value for one in fields(entry) if (value := getattr(entry, one.name)) not in (one.default, {})}
    return digest(repr(own), str(version_of(entry.library)), repr(MODES[mode]))


def applies(mode: str, entry: Encoder) -> bool:
    """Whether a class can be called in a mode: padding on the left needs a mask, packing needs positions."""
    if mode == "packed":
        return entry.config is not None and entry.kind == "tokens"
    return entry.takes_mask or "padding" not in MODES[mode]


def judge_missing(file: Path, chosen: Sequence[Encoder], *, jobs: int, keep: bool) -> dict[str, Record]:
    """The records of the file, with those added that it lacks, each written as soon as it is there.

    With `keep`, a record of another version of the checker is good enough.
    """
    records: dict[str, Record] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    sources = sorted(path for path in CHECKER.rglob("*") if path.suffix in (".py", ".toml"))
    checker = digest(*(path.read_bytes() for path in sources))
    known = {(key, record["subject"]) for key, record in records.items() if keep or record["checker"] == checker}
    every = [(entry, mode) for mode in MODES for entry in chosen if applies(mode, entry)]
    todo = [one for one in every if (f"{one[0].name}, {one[1]}", subject(*one)) not in known]
    file.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(jobs)
        running = {pool.submit(judge_apart, *one): one for one in todo}
        stack.callback(pool.shutdown, cancel_futures=True)  # of a run that is interrupted
        for done in track(as_completed(running), "checks", total=len(todo), console=Console(stderr=True)):
            entry, mode = running[done]
            facts = {"subject": subject(entry, mode), "checker": checker}
            records[f"{entry.name}, {mode}"] = asdict(done.result()) | facts
            written = file.with_suffix(".new")
            written.write_text(json.dumps(dict(sorted(records.items())), indent=1), "utf-8")
            written.replace(file)
    return records


def cells(entry: Encoder, records: dict[str, Record]) -> tuple[str, ...]:
    """One line of the table: the verdict of each mode, then the first leak, and where it is documented."""
    found = {mode: records[key] for mode in MODES if (key := f"{entry.name}, {mode}") in records}
    verdicts = [str(found[mode]["verdict"]) if mode in found else "-" for mode in MODES]
    verdicts.insert(1, verdicts[0] if verdicts[0] != "leak" else "sound" if found["right"]["one_row"] else "leak")
    leaky = next((mode for mode, record in found.items() if record["verdict"] == "leak"), None)
    unsaid = next((record["reason"] for record in found.values() if record["verdict"] not in ("sound", "leak")), "")
    library = f"{entry.library} {version_of(entry.library)}"
    if leaky is None:
        unsaid = textwrap.shorten(unsaid.replace("|", "\\|"), LONGEST_REASON, placeholder=" ...")
        return library, entry.name, *verdicts, "", "", "", unsaid
    worst, upstream = found[leaky], DATA["upstream"]
    where = f"`{worst['line']}` {worst['operator']}" if worst["line"] else ""
    known = upstream.get(entry.name, upstream.get(leaky, "not found"))
    return library, entry.name, *verdicts, worst["rule"], where, f"{worst['difference']:.1e}", known


def page(facts: dict[str, Any], chosen: Sequence[Encoder], records: dict[str, Record]) -> str:
    """The counts by mode, and the table of all classes."""
    kept = [records[key] for entry in chosen for mode in MODES if (key := f"{entry.name}, {mode}") in records]
    seconds, mebibytes = sum(record["seconds"] for record in kept), max(record["mebibytes"] for record in kept)
    how = (
        f"`python -m benchmarks.encoders`: {len(chosen)} classes of {len({entry.library for entry in chosen})} "
        f"libraries, with random weights and small configurations, each called as its library calls it and checked "
        f"with up to {MAX_LENGTH} steps: padded on the right, a row alone against the same in a batch, on the left, on "
        "both sides, packed in one row with positions that begin again (the states of the encoder, without a mask and "
        "a decoder), and on the right with any values. In all modes but the last, padding is what the library itself "
        "writes (its padding id, zeros), and no valid step has the padding's id. The rule, the line and the largest "
        "difference are those of the first mode in this order that leaks. A class *re-made* is Time-Series-Library's, "
        "written again from its paper: that library pads every batch to the longest sequence of a data set, so that "
        "its answers read padding but do not change with it; here the encoder gets a batch as wide as it is, and zeros "
        "follow up to that length before the classes are computed, which changes nothing if no step reads padding. "
        "Those with a weight for each step get the zeros first. A *warning* is a leak of NaN, Inf and overflows only."
    )
    run = (
        f"{len(kept)} checks took {seconds:.0f} s in all, beside other work on the machine; the largest process had "
        f"{mebibytes:.0f} MiB. Their checker was of {len({record['checker'] for record in kept})} commits of its day. "
        "`benchmarks/encoders.txt` has the libraries. *Upstream* says what was found there on that day: the number of "
        "an issue or pull request, `documented` where the class says so itself, `new` where nothing was found and "
        "`leaks/` has a reproduction without this tool."
    )
    counts = {
        mode: Counter(records[key]["verdict"] for entry in chosen if (key := f"{entry.name}, {mode}") in records)
        for mode in MODES
    }
    verdicts = sorted({verdict for count in counts.values() for verdict in count})
    summary = pages.table(
        ("padding", *verdicts), [(mode, *(str(counts[mode][each]) for each in verdicts)) for mode in MODES]
    )
    modes = [*MODES]
    heads = ("library", "class", modes[0], "one row", *modes[1:], "rule", "line", "difference", "upstream")
    table = pages.table(heads, (cells(entry, records) for entry in chosen))
    return pages.page(facts, "Encoders of other libraries", how, run, summary, table)


@click.command(cls=Command)
@click.option("--only", default="", help="Only the classes in whose library or name this word is.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Classes checked at the same time.")
@click.option("--keep", is_flag=True, help="Do not check again because the checker has changed.")
@click.option("--records", default=Path("runs/encoders.json"), show_default=True, type=click.Path(path_type=Path))
@output.as_json_or_page(PAGE)
def main(only: str, jobs: int, keep: bool, records: Path, as_json: bool, out: Path | None) -> None:
    """Checks encoders and classifiers of other libraries with padding on each side."""
    facts = machine.facts()
    os.environ |= {"HF_HUB_OFFLINE": "1", "KERAS_BACKEND": "torch"}
    CONTEXT.set_forkserver_preload([*PRELOADED])
    chosen = [entry for entry in encoders() if only.lower() in f"{entry.library} {entry.name}".lower()]
    judged = judge_missing(records, chosen, jobs=jobs, keep=keep)
    output.tell(page(facts, chosen, judged), judged, as_json=as_json, out=out)


if __name__ == "__main__":
    main()
