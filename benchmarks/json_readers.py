"""Processor time that reading a JSON body of `POST /predict` takes: `python -m benchmarks.json_readers`.

Each body is read by the reader in C, and by the one in Python, which reads what the first leaves to it and every body
of an installation without a compiler. They take turns in one thread; the figure is the fastest of several rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from lengthwise.decoding import json_body, validation
from lengthwise.runtime.manifest import Manifest, StepInput

_SIZES = ((1, 12, 10), (1, 50, 12), (1, 500, 12), (8, 50, 12), (64, 50, 12), (64, 10, 4))
"""Sequences, steps and features."""
_FIELDS = {"model": "bench", "version": "1", "timeout_ms": 500, "priority": 3}


class _Bench:
    """A model that has a manifest and nothing else."""

    def __init__(self, features: int | None) -> None:
        step = StepInput(kind="tokens", vocabulary=30_000) if features is None else StepInput(features=features)
        self.manifest = Manifest(
            name="bench", version=1, input=step, labels=("a", "b"), missing="zero", max_length=10_000
        )

    def find(self, name: str | None, version: str | None) -> Any:
        """It answers for every name."""
        return self


def bodies(seed: int) -> Iterator[tuple[str, bytes, _Bench]]:
    """A name, a body and the model that it is for."""
    rng = np.random.default_rng(seed)
    for count, steps, features in _SIZES:
        values = [rng.normal(0, 1, (steps, features)).astype(np.float32).tolist() for _ in range(count)]
        rounded = [np.round(one, 5).tolist() for one in values]
        size = f"{count} x {steps} x {features}"
        yield size, _dump({"sequences": rounded}), _Bench(features)
        if (steps, features) != (50, 12):
            continue
        yield f"{size}, all digits", _dump({"sequences": values}), _Bench(features)
        yield f"{size}, options first", _dump(_FIELDS | {"sequences": rounded}), _Bench(features)
        yield f"{size}, options last", _dump({"sequences": rounded} | _FIELDS), _Bench(features)
        named = [{"id": f"row-{i}", "steps": one} for i, one in enumerate(rounded)]
        yield f"{size}, objects", _dump({"sequences": named}), _Bench(features)
        gaps = [[[None if i % 9 == 0 else x for i, x in enumerate(step)] for step in one] for one in rounded]
        yield f"{size}, nulls", _dump({"sequences": gaps}), _Bench(features)
    for count in (1, 64):
        tokens = [rng.integers(0, 30_000, 50).tolist() for _ in range(count)]
        yield f"{count} x 50 tokens", _dump({"sequences": tokens}), _Bench(None)
        bare = [np.round(rng.normal(0, 1, 50), 5).tolist() for _ in range(count)]
        yield f"{count} x 50 bare", _dump({"sequences": bare}), _Bench(1)


def _dump(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document)


def measure(seed: int, seconds: float) -> list[dict[str, Any]]:
    """One row for each body.

    Args:
        seed: Of the numbers in the bodies.
        seconds: For each body.
    """
    rows = []
    for name, body, model in bodies(seed):
        readers: dict[str, Callable[[], object]] = {
            "c": lambda body=body, model=model: json_body.decode_ordinary(body, model.find, max_sequences=1000),
            "python": lambda body=body, model=model: validation.read(body, model.find, max_sequences=1000),
        }
        rows.append({"body": name, "bytes": len(body)} | _fastest(readers, seconds))
    return rows


def _fastest(readers: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Microseconds of processor time that each reader takes, in turns."""
    fastest = dict.fromkeys(readers, float("inf"))
    times = {}
    for name, read in readers.items():
        assert read() is not None, f"the reader {name} left the body to another"
        started = time.thread_time()
        read()
        times[name] = max(1, int(0.002 / max(time.thread_time() - started, 1e-6)))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, read in readers.items():
            started = time.thread_time()
            for _ in range(times[name]):
                read()
            fastest[name] = min(fastest[name], (time.thread_time() - started) / times[name])
    return {f"{name}_us": round(least * 1e6, 2) for name, least in fastest.items()}


@click.command()
@click.option("--seconds", type=click.FloatRange(0.01), default=1.0, show_default=True, help="For each body.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Writes the figures as JSON, too.")
def main(seconds: float, seed: int, out: Path | None) -> None:
    """Measures both readers of JSON bodies."""
    rows = measure(seed, seconds)
    table = Table("body", "bytes", *(name.removesuffix("_us") + ", us" for name in list(rows[0])[2:]))
    for row in rows:
        table.add_row(row["body"], *(f"{value}" for value in list(row.values())[1:]))
    Console().print(table)
    if out is not None:
        figures = {"machine": machine.facts(), "seed": seed, "seconds": seconds, "rows": rows}
        out.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


if __name__ == "__main__":
    main()
