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
from lengthwise.padding import Sample
from lengthwise.runtime.manifest import Manifest
from tests.support.numpy_models import MANIFESTS, OneModel

_VALUES: dict[str, Any] = {"features": 2}
_TOKENS: dict[str, Any] = {"kind": "tokens", "vocabulary": 10}


def _of_several(step: dict[str, Any], **further: Any) -> Manifest:
    """The manifest of a model with two sequences of up to three steps: `a` of such steps, and `b` of others."""
    first = {key: size for key, size in step.items() if key in ("features", "vocabulary")}
    several = [{"name": "a", "max_length": 3} | first, {"name": "b", "max_length": 3} | further]
    table = MANIFESTS["refuses missing"].model_dump() | {"max_length": 3, "input": step | {"sequences": several}}
    return Manifest.model_validate(table)


SEVERAL = {
    "two": _of_several(_VALUES, features=2),
    "two, tokens": _of_several(_TOKENS, vocabulary=8),
    "two, mixed": _of_several(_VALUES, vocabulary=10),
    "two, static": _of_several(_VALUES | {"static": {"count": 2}}, features=1),
}
"""Models that take several sequences."""


def _with_static(of: Manifest) -> Manifest:
    """The manifest of such a model that takes three static values as well."""
    table = of.model_dump()
    return Manifest.model_validate(table | {"input": table["input"] | {"static": {"count": 3}}})


WITH_STATIC = {
    f"{kind}, static": _with_static(MANIFESTS[kind]) for kind in ("refuses missing", "takes missing", "tokens", "head")
}
"""Models that take static values beside one sequence."""
MAX_SEQUENCES = 5
_SPACE = (b"", b"", b"", b" ", b"\n\t\r ")
_NUMBERS = (
    *(b"0", b"-0", b"-0.0", b"1", b"7", b"2.5", b"1e3", b"1E-3", b"-1.25e+2", b"1e-400", b"0e99", b"3.4028235e38"),
    *(b"0.12345678", b"-0.12300000339746475", b"0.0006369616873214543", b"-0.000000000000000000000000012"),
    *(b"3.4028235677973365e38", b"3.4028235677973366e38", b"9007199254740993", b"18446744073709551616", b"1e22"),
)
_WRONG = (
    *(b"null", b"null", b"true", b'"1"', b'"\xc3\xa4"', b"[1]", b"[]", b"{}", b'{"a": [1, "]"]}', b'"\\u00e4\\n[\\""'),
    *(b"1e39", b"1e400", b"-1e300", b"9" * 70, b"1e0", b"18446744073709551616", b"-1", b"-0", b"10"),
)
_ODD = (
    *(*_WRONG, b"nul", b"nullnull", b"-null", b"NaN", b"Infinity", b"01", b"1.", b"1 2"),
    *(b'"\\x"', b'"\\ud800"', b"'x'"),
    *(b"nulll", b"null0", b"1e", b"1e+", b"--1", b"0x1", b"1_0", b".5", b"+1", b"0." + b"1" * 70, b"1e99999"),
    *(b"\x00", b"\xff", b"", b"[1}", b'{"a":[1}', b'{"a":[1]]', b"[1,]", b"{1:2}"),
)
_ODD_ITEMS = (b"5", b"null", b'"x"', b"{}", b'{"id":"a"}', b'{"steps":5}', b'{"a":1,"a":2}', b"[]")
_NAMES = (b'"a"', b'"b/c~"')  # of the named manifests
_ODD_NAMES = (b'"\\u0061"', b'"b"', b'"A"', b'""', b'"\\ud800"', b'"' + b"x" * 300 + b'"', b"a", b"1")
_RECORD_FIELDS = (
    *(b'"label":"a"', b'"label":["]]","],["]', b'"label":5', b'"label":null', b'"label":{"a":1,"a":2}', b'"odd":[[1]]'),
    *(b'"id":"\\"steps\\":[[1]]"', b'"id":"12:30"', b'"id":"]]"', b'"id":7', b'"steps":1', b'"label":"a:b"'),
)
_IDS = (
    *(b'"a"', b'"\xc3\xbc"', b'"\\u00fc"', b'"\\""', b'"\\ud83d\\ude00"'),
    *(b'"\\ud800"', b'"' + b"x" * 257 + b'"', b'"\xff"', b'"\n"', b"1"),
)
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
    odd = rng.choice((0.0, 0.0, 0.0, 0.1, 0.1, 0.6))
    count = rng.randint(1, MAX_SEQUENCES) + (rng.random() < odd)
    item = _item_of_several if kind in SEVERAL else _sequence
    sequences = [rng.choice(_ODD_ITEMS) if rng.random() < odd / 10 else item(rng, kind, odd) for _ in range(count)]
    fields = [b'"sequences":%s[%s]' % (rng.choice(_SPACE), _joined(rng, sequences))]
    if rng.random() < 0.4:
        fields += rng.sample(_OPTIONS if rng.random() < odd else _OPTIONS[:_RIGHT_OPTIONS], rng.randint(1, 3))
        rng.shuffle(fields)
    text = rng.choice(_SPACE) + b"{%s}" % _joined(rng, fields) + rng.choice(_SPACE)
    for _ in range(rng.randint(1, 3) if rng.random() < 0.3 else 0):
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(_DAMAGE) + text[min(len(text), at + rng.randint(0, 3)) :]
    return text[: rng.randint(0, len(text))] if rng.random() < 0.05 else text


def _item_of_several(rng: random.Random, kind: str, odd: float) -> bytes:
    inputs = []
    for name, manifest in SEVERAL[kind].by_sequence.items():
        bare = manifest.input.features is None
        text = _steps(rng, "tokens" if bare else "one feature" if manifest.input.features == 1 else "short", odd)
        inputs.append(b'"%s"%s:%s' % (name.encode(), rng.choice(_SPACE), text))
    if rng.random() < odd / 2:
        odd_inputs = (
            b'"c":[[1,2]]',
            b'"a":[[1,2]]',
            b'"\\u0061":[[1,2]]',
            b'"":[1]',
            b'"ab":[[1,2]]',
            b'"b":null',
            b"b",
        )
        inputs[rng.randint(0, 1) :] = [rng.choice(odd_inputs)]
    rng.shuffle(inputs)
    fields = [b'"inputs"%s:%s{%s}' % (rng.choice(_SPACE), rng.choice(_SPACE), _joined(rng, inputs))]
    if kind == "two, static":
        fields.append(b'"static":[%s]' % _joined(rng, [_number(rng, "refuses missing", odd) for _ in "12"]))
    if rng.random() < 0.5:
        fields.append(b'"id":%s' % rng.choice(_IDS if rng.random() < odd else _IDS[:5]))
    if rng.random() < odd:
        odd_fields = (
            b'"steps":[[1,2]]',
            b'"static":[1,2]',
            b'"inputs":{}',
            b'"inputs":5',
            b'"id":"c"',
            b'"step_mask":[true]',
        )
        fields.append(rng.choice(odd_fields))
    rng.shuffle(fields)
    return b"{%s}" % _joined(rng, fields)


def _sequence(rng: random.Random, kind: str, odd: float) -> bytes:
    has_static, kind = kind in WITH_STATIC, kind.removesuffix(", static")
    text = _steps(rng, kind, odd)
    if rng.random() < (odd / 4 if has_static else 0.6):
        return text
    fields = [b'"steps"%s:%s' % (rng.choice(_SPACE), text)]
    if has_static and rng.random() >= odd / 4:
        numbers = [_number(rng, "refuses missing", odd) for _ in range(4 if rng.random() < odd / 4 else 3)]
        fields.append(b'"static"%s:%s[%s]' % (rng.choice(_SPACE), rng.choice(_SPACE), _joined(rng, numbers)))
    if rng.random() < 0.6:
        fields.append(b'"id"%s:%s' % (rng.choice(_SPACE), rng.choice(_IDS if rng.random() < odd else _IDS[:5])))
    if rng.random() < odd:
        fields.append(
            rng.choice((b'"step_mask":[true]', b'"odd":[1,{}]', b'"steps":[[1,2]]', b'"id":"c"', b'"more":[]'))
        )
    rng.shuffle(fields)
    return b"{%s}" % _joined(rng, fields)


def _steps(rng: random.Random, kind: str, odd: float) -> bytes:
    bare = kind == "tokens" or (kind == "one feature" and rng.random() < 0.5)
    features = 1 if kind == "one feature" else 2
    by_names = rng.random() < (0.5 if kind.startswith("named") else odd / 10)
    steps = []
    for _ in range(rng.randint(rng.random() >= odd / 4, 2 if kind == "short" else 3)):
        size = rng.randint(0, 3) if rng.random() < odd / 4 else features
        values = [_number(rng, kind, odd) for _ in range(1 if bare else size)]
        is_odd = rng.random() < odd / 10
        if by_names and rng.random() >= odd / 10:
            steps.append(b"{%s}" % _joined(rng, _named(rng, values, odd)))
            continue
        steps.append(rng.choice(_WRONG) if is_odd else values[0] if bare else b"[%s]" % _joined(rng, values))
    return b"[%s]" % _joined(rng, steps)


def _named(rng: random.Random, values: list[bytes], odd: float) -> list[bytes]:
    """The entries of an object with these values, in any order; some are left out."""
    names = [rng.choice(_ODD_NAMES) if rng.random() < odd / 4 else name for name in _NAMES]
    entries = [b"%s:%s" % pair for pair in zip(names, values, strict=False) if rng.random() < 0.95]
    return rng.sample(entries, len(entries))


def record(rng: random.Random, kind: str) -> bytes:
    """A line of JSON Lines, mostly right."""
    text = _sequence(rng, kind, rng.choice((0.0, 0.0, 0.1, 0.6))).replace(b"\n", b" ")
    fields = [text.strip()[1:-1] if text.startswith(b"{") else b'"steps":' + text]
    fields += rng.sample(_RECORD_FIELDS, rng.choice((0, 1, 1, 2)))
    rng.shuffle(fields)
    return b"{%s}" % b", ".join(fields)


def _number(rng: random.Random, kind: str, odd: float) -> bytes:
    if rng.random() < odd / 4:
        return rng.choice(_WRONG if rng.random() < 0.8 else _ODD)
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
    items = []
    for item in call.items:
        row = item.steps if isinstance(item.steps, Sample) else Sample(item.steps)
        arrays = {"": row.steps, **row.others, **row.beside}
        numbers = [(name, one.dtype, one.shape, one.tobytes()) for name, one in arrays.items()]
        items.append((numbers, item.sent_steps, item.id, item.step_indices is None or [*item.step_indices]))
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


def fuzz(bodies: int, seed: int) -> tuple[int, int]:
    """Reads that many bodies with both readers; returns how many of them the one in C read.

    Some of the others are made long enough that it says what is wrong with them, and their number is returned too.
    AssertionError where the readers differ.
    """
    rng, ordinary, told = random.Random(seed), 0, 0
    models = {kind: OneModel(manifest) for kind, manifest in (MANIFESTS | SEVERAL | WITH_STATIC).items()}
    kinds = [*MANIFESTS, *MANIFESTS, *SEVERAL, *WITH_STATIC]  # what is wrong is hardly ever told of the others
    for number in range(bodies):
        kind = rng.choice(kinds)
        find, text = models[kind].find, body(rng, kind)
        found = outcome(fast_json.read, text, find)
        is_read = found is not None
        ordinary += is_read
        if not is_read and rng.random() < 0.2:
            text = text.replace(b"[", b"[" + b" " * 66_000, 1)
            found = outcome(fast_json.explain, text, find)
            told += found is not None
        if found is not None:
            expected = outcome(validation.read, text, find)
            assert found == expected or (not is_read and "stands twice" in str(expected)), (
                f"body {number}, {kind}: {text!r}"
            )
    return ordinary, told


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
    ordinary, told = fuzz(bodies, seed)
    print(f"{ordinary} of {bodies} bodies were read in C, {told} explained, and all as in Python")


if __name__ == "__main__":
    sys.exit(main())
