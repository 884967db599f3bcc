"""The page of a rule in Markdown, for `check --explain`, SARIF and `docs/rules/`, and the table of all rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lengthwise_export.checking.rule import LeakRule, rules

FRAMEWORKS: Final = {
    "torch": ("torch", "Leaks", "Sound"),
    "keras": ("Keras", "Leaks", "Sound"),
    "onnx": ("ONNX", "Leaks", "Sound"),
    "pytest": ("pytest", "Passes whatever the model does", "Fails where the model reads padding"),
}
"""The frameworks of examples, and their bad and good ones, as pages name them."""

_GROUPS: Final = {
    "0": "Tests of padding",
    "1": "Attention and masks",
    "2": "Reductions and pooling",
    "3": "Recurrence and order",
    "4": "Convolution and shifting",
    "5": "Normalisation and scales",
    "6": "Positions",
    "7": "Packing",
    "8": "Numbers",
    "9": "Others",
}
_MENDS: Final = {True: "cures it", False: "does not cure it", None: ""}


def as_markdown(rule: LeakRule) -> str:
    """The page of a rule: its cause, its cure, and the smallest examples."""
    return "\n".join(_lines(rule))


def as_table() -> str:
    """The tables of all rules, by their hundreds."""
    return "\n".join(_table_lines())


def _lines(rule: LeakRule) -> Iterator[str]:
    yield from (f"# {rule.code}: {rule.name}", "", rule.why, "")
    mend = "" if rule.mend is None else f" `lengthwise export --mend` {_MENDS[rule.mend]}."
    comment = f" At one statement, `# lengthwise: ignore[{rule.code}]` leaves it out."
    yield f"Severity: {rule.severity}.{mend}{'' if 'pytest' in rule.examples else comment}"
    if rule.cure:
        yield from ("", "## Cure", "", rule.cure)
    if rule.options:
        options = " ".join(f"--{option} {word}" for option, word in rule.options.items())
        yield from ("", f"The examples are checked with `{options}`.")
    if rule.fix and not rule.examples:
        yield from ("", "```python", rule.fix.strip("\n"), "```")
    for framework, example in rule.examples.items():
        title, bad, good = FRAMEWORKS[framework]
        yield from ("", f"## {title}", "")
        fence = "```" if framework == "onnx" else "```python"
        yield from (f"{bad}:", "", fence, example["bad"].strip("\n"), "```", "")
        yield from (f"{good}:", "", fence, example["good"].strip("\n"), "```")
    if rule.see:
        yield from ("", "## See", "", *(f"- <{address}>" for address in rule.see))
    yield ""


def _table_lines() -> Iterator[str]:
    mends = [rule.mend for rule in rules().values() if rule.mend is not None]
    yield f"There are {len(rules())} rules. Of the {len(mends)} whose example was mended, the mend cures {sum(mends)}."
    group = ""
    for code, rule in rules().items():
        if code[2] != group:
            group = code[2]
            yield from ("", f"### {group}xx: {_GROUPS[group]}", "", "| rule | name | cause | severity | `--mend` |")
            yield "|---|---|---|---|---|"
        yield f"| [{code}]({code}.md) | {rule.name} | {rule.why} | {rule.severity} | {_MENDS[rule.mend]} |"
    yield ""
