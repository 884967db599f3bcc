"""Both readers of JSON bodies under fuzz: what the one in C returns, the one in Python returns too, bit for bit.

`python -m tests.fuzz.json_readers --bodies 1000000 --seed 1`. A body is built of right parts and some odd ones, and
many are damaged afterwards. `--module` takes another build of the module in C: `test_json_readers.py` gives it one that
watches every access to memory.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from lengthwise.decoding import fast_json, validation
from lengthwise.decoding.calls import Call
from lengthwise.decoding.validation import PREDICT
from lengthwise.errors import InvalidRequest, RequestError
from tests.support.numpy_models import MANIFESTS, OneModel

MAX_SEQUENCES = 5
_SPACE = (b"", b"", b"", b" ", b"\n\t\r ")
_NUMBERS = (
    *(b"0", b"-0", b"-0.0", b"1", b"7", b"2.5", b"1e3", b"1E-3", b"-1.25e+2", b"1e-400", b"0e99", b"3.4028235e38"),
    *(b"3.4028235677973365e38", b"3.4028235677973366e38", b"9007199254740993", b"18446744073709551616", b"1e22"),
)
_ODD = (
    *(b"null", b"nul", b"nullnull", b"-null", b"true", b'"1"', b"[1]", b"[]", b"{}", b"NaN", b"Infinity", b"01", b"1."),
    *(b"nulll", b"null0", b"1e", b"1e+", b"--1", b"0x1", b"1_0", b"1e0", b"18446744073709551616", b"-1", b"10"),
    *(b".5", b"+1", b"1e39", b"1e400", b"-1e300", b"9" * 70, b"0." + b"1" * 70, b"\x00", b"\xff", b"", b"1e99999"),
)
_IDS = (b'"a"', b'"\xc3\xbc"', b'"\\u00fc"', b'"\\""', b'"\\ud800"', b'"' + b"x" * 257 + b'"', b'"\xff"', b'"\n"', b"1")
_OPTIONS = (
    *(b'"model":"sums"', b'"version":"1"', b'"outputs":["attention"]', b'"outputs":[]', b'"timeout_ms":20'),
    *(b'"timeout_ms":0.5', b'"priority":3', b'"priority":0'),
    *(b'"model":"other"', b'"version":"01"', b'"outputs":[["attention"]]', b'"timeout_ms":null', b'"priority":3.0'),
    *(b'"more":1', b'"sequ\\u0065nces":[[[1,2]]]', b'"sequences":[[[1,2]]]', b'"a":{"b":[1,"]"]}', b'"model":null'),
)
_RIGHT_OPTIONS = 8
"""As many of them are right, if none stands twice."""
_DAMAGE = (b"", b"", b"[", b"]", b",", b":", b"{", b"}", b'"', b"\\", b" ", b"1", b"-", b".", b"e", *_ODD)


def body(rng: random.Random, kind: str) -> bytes:
    """A body, mostly right for the manifest of that name."""
    odd = rng.choice((0.0, 0.0, 0.1))
    count = rng.randint(1, MAX_SEQUENCES) + (rng.random() < odd)
    sequences = [_sequence(rng, kind, odd) for _ in range(count)]
    fields = [b'"sequences":%s[%s]' % (rng.choice(_SPACE), _joined(rng, sequences))]
    if rng.random() < 0.4:
        fields += rng.sample(_OPTIONS if rng.random() < odd else _OPTIONS[:_RIGHT_OPTIONS], rng.randint(1, 3))
        rng.shuffle(fields)
    text = rng.choice(_SPACE) + b"{%s}" % _joined(rng, fields) + rng.choice(_SPACE)
    for _ in range(rng.randint(1, 3) if rng.random() < 0.4 else 0):
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(_DAMAGE) + text[min(len(text), at + rng.randint(0, 3)) :]
    return text[: rng.randint(0, len(text))] if rng.random() < 0.05 else text


def _sequence(rng: random.Random, kind: str, odd: float) -> bytes:
    bare = kind == "tokens" or (kind == "one feature" and rng.random() < 0.5)
    features = 1 if kind == "one feature" else 2
    steps = []
    for _ in range(rng.randint(1, 2 if kind == "short" else 3)):
        values = [_number(rng, kind, odd) for _ in range(1 if bare else features)]
        steps.append(values[0] if bare else b"[%s]" % _joined(rng, values))
    text = b"[%s]" % _joined(rng, steps)
    if rng.random() < 0.6:
        return text
    fields = [b'"steps"%s:%s' % (rng.choice(_SPACE), text)]
    if rng.random() < 0.6:
        fields.append(b'"id"%s:%s' % (rng.choice(_SPACE), rng.choice(_IDS if rng.random() < odd else _IDS[:4])))
    if rng.random() < odd:
        fields.append(rng.choice((b'"step_mask":[true]', b'"steps":[[1,2]]', b'"id":"c"', b'"more":[]')))
    rng.shuffle(fields)
    return b"{%s}" % _joined(rng, fields)


def _number(rng: random.Random, kind: str, odd: float) -> bytes:
    if rng.random() < odd / 4:
        return rng.choice(_ODD)
    if kind == "tokens":
        return b"%d" % rng.randint(0, 9)
    if rng.random() < (0.2 if MANIFESTS[kind].missing != "refuse" else odd / 4):
        return b"null"
    if rng.random() < 0.3:
        return rng.choice(_NUMBERS)
    text = b"%d" % rng.randint(0, 10 ** rng.choice((1, 1, 3, 17, 19, 25)))
    if rng.random() < 0.7:
        digits = rng.choice((1, 3, 5, 16, 17, 19, 36))
        text += b".%0*d" % (digits, rng.randint(0, 10**digits - 1))
    if rng.random() < 0.3:
        text += rng.choice((b"e%d" % rng.randint(0, 12), b"E-%d" % rng.randint(0, 60), b"e+0%d" % rng.randint(0, 12)))
    return rng.choice((b"", b"-")) + text


def _joined(rng: random.Random, parts: list[bytes]) -> bytes:
    return (rng.choice(_SPACE) + b"," + rng.choice(_SPACE)).join(parts)


def shown(call: Call) -> tuple[Any, ...]:
    """A call as a value that is equal only to that of an equal call."""
    items = [
        (
            item.steps.dtype,
            item.steps.shape,
            item.steps.tobytes(),
            item.sent_steps,
            item.id,
            item.kept_places is None or [*item.kept_places],
        )
        for item in call.items
    ]
    return (items, call.attention, call.timeout_ms, call.priority, call.pointer, call.width)


def outcome(read: Any, text: bytes, find: Any) -> Any:
    """What a reader makes of a body, or everything that it says of it; None where it leaves it to the other one."""
    try:
        call = read(text, find, max_sequences=MAX_SEQUENCES, layout=PREDICT)
    except InvalidRequest as error:
        return "wrong", error.problems, error.total
    except RequestError as error:
        return type(error), error.detail
    return None if call is None else shown(call)


def fuzz(bodies: int, seed: int) -> int:
    """Reads that many bodies with both readers; returns how many of them the one in C read.

    Some of the others are made long enough that it says what is wrong with them. AssertionError where they differ.
    """
    rng, ordinary = random.Random(seed), 0
    models = {kind: OneModel(manifest) for kind, manifest in MANIFESTS.items()}
    for number in range(bodies):
        kind = rng.choice([*models])
        find, text = models[kind].find, body(rng, kind)
        found = outcome(fast_json.read, text, find)
        ordinary += found is not None
        if found is None and rng.random() < 0.2:
            text = text.replace(b"[", b"[" + b" " * 66_000, 1)
            found = outcome(fast_json.explain, text, find)
        if found is not None:
            expected = outcome(validation.read, text, find)
            assert found == expected or "stands twice" in str(expected), f"body {number}, {kind}: {text!r}"
    return ordinary


@click.command()
@click.option("--bodies", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--module", type=click.Path(exists=True, path_type=Path), help="Another build of the module in C.")
def main(bodies: int, seed: int, module: Path | None) -> None:
    """Fuzzes both readers of JSON bodies against each other."""
    if module is not None:
        loader = importlib.machinery.ExtensionFileLoader("lengthwise.decoding._fast_json", str(module))
        spec = importlib.util.spec_from_loader(loader.name, loader)
        assert spec is not None
        native = importlib.util.module_from_spec(spec)
        loader.exec_module(native)
        fast_json._fast_json = native  # type: ignore[assignment]
    np.seterr(all="raise", under="ignore")
    print(f"{fuzz(bodies, seed)} of {bodies} bodies were read in C, and all as in Python")


if __name__ == "__main__":
    sys.exit(main())
