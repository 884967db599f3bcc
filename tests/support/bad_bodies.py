"""Bodies that must be refused, each with the status and the pointer of what is wrong with it.

They are for `numpy_models.manifest()`: two features, three labels, missing values refused.
"""

from typing import NamedTuple


class Bad(NamedTuple):
    """A body, and how it is refused: status, the first problem's pointer, and words of its detail."""

    name: str
    body: bytes
    pointer: str
    words: str


def sequences(text: str) -> bytes:
    """A body with one sequence of that text."""
    return f'{{"sequences": [{text}]}}'.encode()


def option(text: str) -> bytes:
    """A body with a good sequence and that text as a further field."""
    return f'{{"sequences": [[[1, 2]]], {text}}}'.encode()


NOT_JSON = [
    Bad("nothing", b"", "", "the body is empty"),
    Bad("white space", b" \n", "", "the body is empty, but for white space"),
    Bad("a word", b"hello", "", "not JSON"),
    Bad("truncated", b'{"sequences": [[[1, 2], [3', "", "the body ends in the middle of the JSON text, at byte 26"),
    Bad("truncated in a string", b'{"sequences', "", "the body ends in the middle of the JSON text, at byte 11"),
    Bad("trailing junk", b'{"sequences": [[[1, 2]]]} x', "", "not JSON"),
    Bad("two documents", b'{"sequences": [[[1, 2]]]}{"sequences": [[[1, 2]]]}', "", "not JSON"),
    Bad("trailing comma", b'{"sequences": [[[1, 2],]]}', "", "not JSON"),
    Bad("single quotes", b"{'sequences': [[[1, 2]]]}", "", "not JSON"),
    Bad("a comment", b'{"sequences": [[[1, 2]]]} // why', "", "not JSON"),
    Bad("a bare NUL", b'{"sequences": [[[1, 2]]]}\x00', "", "not JSON"),
    Bad("a control character in a string", b'{"model": "a\nb", "sequences": [[[1, 2]]]}', "", "not JSON"),
    Bad("a leading zero", sequences("[[01, 2]]"), "", "not JSON"),
    Bad("a leading plus", sequences("[[+1, 2]]"), "", "not JSON"),
    Bad("hexadecimal", sequences("[[0x10, 2]]"), "", "not JSON"),
    Bad("NaN", sequences("[[NaN, 2]]"), "", "NaN is not JSON"),
    Bad("Infinity", sequences("[[Infinity, 2]]"), "", "Infinity is not JSON"),
    Bad("-Infinity", sequences("[[1, -Infinity]]"), "", "-Infinity is not JSON"),
    Bad("duplicate keys", option('"priority": 1, "priority": 2'), "", "'priority' stands twice"),
    Bad("duplicate sequences", option('"sequences": [[[1, 2]]]'), "", "'sequences' stands twice"),
    Bad("duplicate keys in an item", sequences('{"id": "a", "steps": [[1, 2]], "id": "b"}'), "", "'id' stands twice"),
    Bad("a duplicate key that is no text", option('"\\ud800": 1, "\\ud800": 2'), "", "stands twice"),
    Bad("10,000 arrays deep", b"[" * 10_000 + b"]" * 10_000, "", "nested too deeply"),
    Bad("10,000 arrays deep in a step", sequences("[" * 10_000 + "]" * 10_000), "", "nested too deeply"),
    Bad("10,000 objects deep", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "", "nested too deeply"),
    Bad("invalid UTF-8", b'{"sequences": [{"id": "\xff", "steps": [[1, 2]]}]}', "", "not UTF-8: byte 23"),
    Bad("overlong UTF-8", b'{"sequences": [{"id": "\xc0\xaf", "steps": [[1, 2]]}]}', "", "not UTF-8"),
    Bad("a surrogate in UTF-8", b'{"model": "\xed\xa0\x80", "sequences": [[[1, 2]]]}', "", "not UTF-8"),
    Bad("UTF-16", '{"sequences": [[[1, 2]]]}'.encode("utf-16"), "", "not UTF-8"),
    Bad("a byte order mark", b"\xef\xbb\xbf" + sequences("[[1, 2]]"), "", "byte order mark"),
    Bad("a lone surrogate in an id", sequences('{"id": "\\ud800", "steps": [[1, 2]]}'), "", "lone surrogate"),
    Bad("surrogates the wrong way round", option('"model": "\\ude00\\ud83d"'), "", "lone surrogate"),
    Bad("a lone surrogate in a key", option('"\\udc00": 1'), "", "lone surrogate"),
    Bad("a lone surrogate in an item's key", sequences('{"\\udc00": 1, "steps": [[1, 2]]}'), "", "lone surrogate"),
]

WRONG_SHAPE = [
    Bad("an array", b"[[[1, 2]]]", "", "must be an object"),
    Bad("a string", b'"sequences"', "", "must be an object"),
    Bad("null", b"null", "", "must be an object"),
    Bad("a number", b"7", "", "must be an object"),
    Bad("no sequences", b"{}", "", "'sequences' is missing"),
    Bad("sequences null", b'{"sequences": null}', "/sequences", "got null"),
    Bad("sequences an object", b'{"sequences": {"a": [[1, 2]]}}', "/sequences", "got an object"),
    Bad("sequences a string", b'{"sequences": "[[1, 2]]"}', "/sequences", "got a string"),
    Bad("an empty list", b'{"sequences": []}', "/sequences", "at least one"),
    Bad("an empty sequence", b'{"sequences": [[[1, 2]], []]}', "/sequences/1", "at least one step"),
    Bad("a sequence null", sequences("null"), "/sequences/0", "got null"),
    Bad("a sequence a number", sequences("5"), "/sequences/0", "got a number"),
    Bad("a sequence a string", sequences('"abc"'), "/sequences/0", "got a string"),
    Bad("a sequence a boolean", sequences("true"), "/sequences/0", "got a boolean"),
    Bad("an empty step", sequences("[[1, 2], []]"), "/sequences/0/1", "this one has 0"),
    Bad("a step null", sequences("[[1, 2], null]"), "/sequences/0/1", "got null"),
    Bad("a step a number", sequences("[5]"), "/sequences/0/0", "level of brackets"),
    Bad("a number among steps", sequences("[[1, 2], 5]"), "/sequences/0/1", "got a number"),
    Bad("a flat item", sequences('{"steps": [1, 2]}'), "/sequences/0/steps/0", "level of brackets"),
    Bad("a step a string", sequences('["12"]'), "/sequences/0/0", "the first is a string"),
    Bad("a step an object", sequences('[{"a": 1}]'), "/sequences/0/0", "the first is an object"),
    Bad("ragged features", sequences("[[1, 2], [1, 2, 3]]"), "/sequences/0/1", "takes 2 features"),
    Bad("one level too deep", sequences("[[[1, 2]]]"), "/sequences/0/0", "has 1; a level of brackets may be too many"),
    Bad("a sequence too deep", sequences("[[[1, 2], [1, 2], [1, 2]]]"), "/sequences/0/0", "3; a level of brackets"),
    Bad("a nested value", sequences("[[1, [2]]]"), "/sequences/0/0/1", "got an array"),
    Bad("a string for a number", sequences('[[1, "2"]]'), "/sequences/0/0/1", "got a string"),
    Bad("a boolean for a number", sequences("[[true, 2]]"), "/sequences/0/0/0", "got a boolean"),
    Bad("a missing value where it is refused", sequences("[[1, 2], [1, null]]"), "/sequences/0/1/1", "refuses missing"),
    Bad("400 digits", sequences(f"[[{'9' * 400}, 2]]"), "/sequences/0/0/0", "beyond the range"),
    Bad("5,000 digits", sequences(f"[[1, {'9' * 5000}]]"), "/sequences/0/0/1", "beyond the range"),
    Bad("minus 5,000 digits", sequences(f"[[1, -{'9' * 5000}]]"), "/sequences/0/0/1", "beyond the range"),
    Bad("1e400", sequences("[[1e400, 2]]"), "/sequences/0/0/0", "beyond the range"),
    Bad("1e39", sequences("[[1e39, 2]]"), "/sequences/0/0/0", "beyond the range"),
    Bad("just past float32", sequences("[[3.4028235677973366e38, 2]]"), "/sequences/0/0/0", "beyond the range"),
    Bad("an unknown field", option('"sequence": 1'), "/sequence", "unknown field"),
    Bad("an unknown field to be escaped", option('"a/b~c": 1'), "/a~1b~0c", "unknown field"),
    Bad("an unknown field of no name", option('"": 1'), "/", "unknown field"),
    Bad("an item without steps", sequences('{"id": "a"}'), "/sequences/0", "'steps' is missing"),
    Bad("an empty item", sequences("{}"), "/sequences/0", "'steps' is missing"),
    Bad("an item's unknown field", sequences('{"steps": [[1, 2]], "x/y": 1}'), "/sequences/0/x~1y", "unknown field"),
    Bad("an item's steps null", sequences('{"steps": null}'), "/sequences/0/steps", "got null"),
    Bad("an item's steps empty", sequences('{"steps": []}'), "/sequences/0/steps", "at least one step"),
    Bad("an item's steps ragged", sequences('{"steps": [[1, 2], [3]]}'), "/sequences/0/steps/1", "this one has 1"),
    Bad("an id that is a number", sequences('{"id": 5, "steps": [[1, 2]]}'), "/sequences/0/id", "got a number"),
    Bad("an id that is null", sequences('{"id": null, "steps": [[1, 2]]}'), "/sequences/0/id", "got null"),
    Bad("an id of 257 characters", sequences(f'{{"id": "{"x" * 257}", "steps": [[1, 2]]}}'), "/sequences/0/id", "256"),
    Bad(
        "a step mask that is too long",
        sequences('{"steps": [[1, 2]], "step_mask": [true, true]}'),
        "/sequences/0/step_mask",
        "each of the 1 steps, it has 2",
    ),
    Bad("an empty step mask", sequences('{"steps": [[1, 2]], "step_mask": []}'), "/sequences/0/step_mask", "it has 0"),
    Bad(
        "a step mask of numbers",
        sequences('{"steps": [[1, 2], [3, 4]], "step_mask": [true, 1]}'),
        "/sequences/0/step_mask/1",
        "got a number",
    ),
    Bad("a step mask null", sequences('{"steps": [[1, 2]], "step_mask": null}'), "/sequences/0/step_mask", "got null"),
    Bad(
        "a step mask that leaves nothing",
        sequences('{"steps": [[1, 2], [3, 4]], "step_mask": [false, false]}'),
        "/sequences/0/step_mask",
        "leaves no step",
    ),
    Bad(
        "a feature mask that is too short",
        sequences('{"steps": [[1, 2]], "feature_mask": [true]}'),
        "/sequences/0/feature_mask",
        "each of the 2 features",
    ),
    Bad(
        "a feature mask where missing is refused",
        sequences('{"steps": [[1, 2]], "feature_mask": [true, false]}'),
        "/sequences/0/feature_mask",
        "refuses missing",
    ),
    Bad(
        "a feature mask that is a string",
        sequences('{"steps": [[1, 2]], "feature_mask": "10"}'),
        "/sequences/0/feature_mask",
        "got a string",
    ),
    Bad(
        "a string in a feature mask",
        sequences('{"steps": [[1, 2]], "feature_mask": [true, "no"]}'),
        "/sequences/0/feature_mask/1",
        "got a string",
    ),
]

WRONG_OPTION = [
    Bad("a model null", option('"model": null'), "/model", "got null"),
    Bad("a model that is a number", option('"model": 1'), "/model", "got a number"),
    Bad("a version that is a number", option('"version": 7'), "/version", 'write "version": "7"'),
    Bad("a version that is a fraction", option('"version": 7.5'), "/version", "got a number"),
    Bad("a version of no digits", option('"version": ""'), "/version", "ASCII digits"),
    Bad("a version 0", option('"version": "0"'), "/version", "ASCII digits"),
    Bad("a version 01", option('"version": "01"'), "/version", "ASCII digits"),
    Bad("a version -1", option('"version": "-1"'), "/version", "ASCII digits"),
    Bad("a version 1.0", option('"version": "1.0"'), "/version", "ASCII digits"),
    Bad("a version of other digits", option('"version": "\\u0661"'), "/version", "ASCII digits"),
    Bad("a version of superscripts", option('"version": "\\u00b9"'), "/version", "ASCII digits"),
    Bad("a version with white space", option('"version": "1\\n"'), "/version", "ASCII digits"),
    Bad("outputs null", option('"outputs": null'), "/outputs", "got null"),
    Bad("outputs a string", option('"outputs": "attention"'), "/outputs", "got a string"),
    Bad("an unknown output", option('"outputs": ["attention", "logits"]'), "/outputs/1", "'logits'"),
    Bad("an output that is an array", option('"outputs": [["attention"]]'), "/outputs/0", "an array"),
    Bad("a timeout 0", option('"timeout_ms": 0'), "/timeout_ms", "above 0"),
    Bad("a timeout -0.0", option('"timeout_ms": -0.0'), "/timeout_ms", "above 0"),
    Bad("a negative timeout", option('"timeout_ms": -5'), "/timeout_ms", "above 0"),
    Bad("a timeout 1e400", option('"timeout_ms": 1e400'), "/timeout_ms", "finite"),
    Bad("a timeout true", option('"timeout_ms": true'), "/timeout_ms", "got a boolean"),
    Bad("a timeout null", option('"timeout_ms": null'), "/timeout_ms", "got null"),
    Bad("a timeout as a string", option('"timeout_ms": "5"'), "/timeout_ms", "got a string"),
    Bad("a priority 10", option('"priority": 10'), "/priority", "0 to 9"),
    Bad("a priority -1", option('"priority": -1'), "/priority", "0 to 9"),
    Bad("a priority 1.0", option('"priority": 1.0'), "/priority", "0 to 9"),
    Bad("a priority true", option('"priority": true'), "/priority", "0 to 9"),
    Bad("a priority null", option('"priority": null'), "/priority", "0 to 9"),
    Bad("a priority as a string", option('"priority": "1"'), "/priority", "0 to 9"),
    Bad("a priority of 5,000 digits", option(f'"priority": {"9" * 5000}'), "/priority", "0 to 9"),
]

BAD_BODIES = [*NOT_JSON, *WRONG_SHAPE, *WRONG_OPTION]
