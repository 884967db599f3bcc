"""Arrow streams under fuzz, through the whole service, in a process of its own: pyarrow reads them in C++.

`python -m tests.fuzz.arrow_streams --bodies 10000 --seed 1`. A stream has right columns or columns of other types, and
in many of them bytes are changed afterwards: offsets, lengths and the tables of the metadata among them. Whatever is
sent, the process goes on, no answer is a 5xx, and an answer as Arrow can be read. The last body is kept in a file, so
that the one that ends the process is known.
"""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import httpx
import orjson
import pyarrow as pa

from lengthwise.runtime.manifest import Manifest
from tests.fuzz.cases import MODELS
from tests.support.arrow_streams import ARROW, Form, batches, table_of, written
from tests.support.numpy_models import model, serving

_NUMBERS: Final = (
    *(pa.float16(), pa.float32(), pa.float64()),
    *(pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64()),
)
_WIDE: Final[tuple[Callable[[random.Random], float], ...]] = (
    lambda rng: rng.uniform(-1e3, 1e3),
    lambda rng: rng.randint(-(2**53), 2**53),
    lambda rng: rng.choice([0.0, -0.0, 1e-45, 3.4028235e38]),
)
_ODD_COLUMNS: Final = (
    *(pa.array([[1.0]]), pa.array([[[[1.0]]]]), pa.array([None]), pa.array([[None]]), pa.array([{"a": 1}])),
    *(pa.array([b"a"]), pa.array([[True]]), pa.array(["a"]).dictionary_encode(), pa.array(["a"], pa.string_view())),
    *(pa.array([1], pa.decimal128(5)), pa.array([[1]], pa.list_view(pa.int8()))),
    pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())),
    *(pa.array([[1.0]], pa.list_(pa.float32(), 1)), pa.array([[[]]], pa.list_(pa.list_(pa.float32(), 0)))),
    pa.RunEndEncodedArray.from_arrays([1], pa.array([1.0])),
    pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
    pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [1]), pa.array([[1.0]], pa.list_(pa.float32(), 1))
    ),
)
_INT32: Final = (0, 1, -1, 2, 3, 7, 8, 255, 65_536, 2**31 - 1, -(2**31), 2**30)
_INT64: Final = (0, 1, -1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
_ACCEPT: Final = ("", ARROW, f"{ARROW};q=0.5, */*", "application/json", f"{ARROW};q=x")
_QUERY: Final = ("", "&outputs=attention", "&priority=3", "&timeout_ms=6e4", "&outputs=x", "&version=1", "&version=0")


def body(rng: random.Random, rules: Manifest) -> bytes:
    """A stream for a model, mostly right."""
    chance = rng.random()
    if chance < 0.1:
        return _odd(rng)
    compression = rng.choice(("lz4", "zstd")) if chance < 0.12 else None
    return written(batches(*sequences(rng, rules, wide=False)), compression=compression)


def sequences(rng: random.Random, rules: Manifest, *, wide: bool) -> tuple[list[dict[str, Any]], Form]:
    """Sequences for a model, half of them right in everything but their masks, and how they are written.

    Their numbers are digits, which every type has; `wide`: any that a double has.
    """
    features, takes_missing = rules.input.features, rules.missing != "refuse"
    faults = rng.choice((0.0, 0.0, 0.05, 0.3 if wide else 0.05))
    bare = features is None or (features == 1 and rng.random() < 0.5)
    step = "bare" if bare else rng.choice(("list", "large_list", "fixed"))
    if wide:
        kind = pa.int64() if features is None else pa.float64()
    else:
        kind = rng.choice(_NUMBERS[3:] if features is None else _NUMBERS)
    wrong: tuple[Any, ...] = (None,) if not wide else (-1, 10, 2**40, None)
    if wide and features is not None:
        wrong = (1e300, -1e39, 3.4028235677973366e38, *(() if takes_missing else (None,)))

    def rarely(other: Callable[[], Any], right: Any) -> Any:
        return other() if rng.random() < faults else right

    def number() -> Any:
        if features is not None and takes_missing and rng.random() < 0.2:
            return None
        right = rng.choice(_WIDE)(rng) if wide and features is not None else rng.randint(0, 9)
        return rarely(lambda: rng.choice(wrong), right)

    def one_step() -> Any:
        if bare:
            return number()
        size = features if step == "fixed" else rarely(lambda: rng.randint(0, 3), features)
        made = [number() for _ in range(size)]
        return rarely(lambda: None, made)

    found: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 4)):
        length = rarely(lambda: rng.randint(0, 20), rng.randint(rules.min_length, rules.min_length + 1))
        one: dict[str, Any] = {"steps": [one_step() for _ in range(length)]}
        if rng.random() < 0.5:
            one["id"] = rarely(lambda: "x" * 257, rng.choice(("a", "", "ü", "x" * 256)))
        for mask, count in (("step_mask", length), ("feature_mask", features or 1)):
            if rng.random() < 0.2:
                kept, count = rng.choice((0.8, 1.0)), rarely(lambda: rng.randint(0, 4), count)
                one[mask] = [rarely(lambda: None, rng.random() < kept) for _ in range(count)]
        found.append(one)
    if step == "fixed" and not any(made for one in found for made in one["steps"]):
        step = "list"
    return found, Form(
        kind, step, rng.random() < 0.3, wide and features is not None and rng.random() < 0.5, rng.choice((1, 2, 1000))
    )


def _odd(rng: random.Random) -> bytes:
    names = rng.sample(("steps", "id", "step_mask", "feature_mask", "other"), rng.randint(1, 4))
    return written([pa.RecordBatch.from_arrays([rng.choice(_ODD_COLUMNS) for _ in names], names=names)])


def damaged(rng: random.Random, text: bytes, other: bytes) -> bytes:
    """A stream with some of its bytes changed."""
    found = bytearray(text)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        kind, size = rng.randrange(8), len(found)
        at = rng.randrange(max(1, size - 8)) & ~3
        if size < 16:
            break
        if kind in (0, 1, 2):
            struct.pack_into("<i", found, at, rng.choice(_INT32))
        elif kind == 3:
            struct.pack_into("<q", found, at, rng.choice(_INT64))
        elif kind == 4:
            found[rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif kind == 5:
            del found[rng.randrange(size) :]
        elif kind == 6:
            del found[at : at + rng.choice((1, 4, 8, 64))]
        else:
            found[at:at] = other[rng.randrange(len(other)) & ~7 :][: rng.choice((8, 64, 4096))]
    return bytes(found)


async def send_all(bodies: int, seed: int, last: Path) -> dict[str, Any]:
    """Sends that many streams to a service: how many got which status, and the first bodies that broke a rule."""
    rng = random.Random(seed)
    answers: Counter[str] = Counter()
    failures: list[str] = []
    before = b"\0" * 64
    async with serving(*map(model, MODELS), max_sequences=8) as service:
        with last.open("wb") as kept:
            for _ in range(bodies):
                rules = rng.choice(MODELS)
                good = body(rng, rules)
                text = damaged(rng, good, before) if rng.random() < 0.5 else good
                before = good or before
                kept.seek(0)
                kept.truncate()
                kept.write(text)
                kept.flush()
                accept = rng.choice(_ACCEPT)
                path = f"/predict?model={rules.name}{rng.choice(_QUERY)}"
                why = await _failure(service.client, path, text, accept, answers)
                if why is not None and len(failures) < 5:
                    failures.append(f"{why}: {path} {accept} {text.hex()}")
        if service.serving.inflight.bytes:
            failures.append(f"{service.serving.inflight.bytes} bytes are counted at the end")
    return {"answers": dict(answers), "failures": failures}


async def _failure(client: httpx.AsyncClient, path: str, text: bytes, accept: str, answers: Counter[str]) -> str | None:
    """What must not happen, if it does."""
    try:
        answer = await client.post(path, content=text, headers={"content-type": ARROW, "accept": accept})
        answers[str(answer.status_code)] += 1
        if answer.status_code >= 500:
            return f"{answer.status_code} {answer.text}"
        if answer.headers["content-type"] == ARROW:
            table = table_of(answer.content)
            table.validate(full=True)
            return None if table.column("length").to_numpy().min() >= 1 else "a length of 0"
        orjson.loads(answer.content)
    except Exception as error:  # whatever it is, it is what is looked for
        return f"{type(error).__name__}: {error}"
    return None


def fuzz(bodies: int, seed: int) -> dict[str, Any]:
    """Runs `send_all` in a process of its own; a process that ended early is a failure with the body that ended it."""
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "last"
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.arrow_streams", "--child", str(last)]
        command += ["--bodies", str(bodies), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, check=False, cwd=Path(__file__).parents[2])
        if done.returncode:
            said = done.stderr.decode(errors="replace")[-3000:]
            body_text = last.read_bytes().hex() if last.exists() else ""
            return {"answers": {}, "failures": [f"exit {done.returncode} at {body_text}\n{said}"]}
        found: dict[str, Any] = orjson.loads(done.stdout)
        return found


@click.command()
@click.option("--bodies", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--child", type=click.Path(path_type=Path), hidden=True)
def main(bodies: int, seed: int, child: Path | None) -> None:
    """Fuzzes Arrow streams."""
    if child is not None:
        print(orjson.dumps(asyncio.run(send_all(bodies, seed, child))).decode())
        return
    found = fuzz(bodies, seed)
    answers = ", ".join(f"{status}: {count}" for status, count in sorted(found["answers"].items()))
    print(f"{bodies} Arrow streams: {answers}")
    for failure in found["failures"]:
        print(failure, file=sys.stderr)
    sys.exit(bool(found["failures"]))


if __name__ == "__main__":
    main()
