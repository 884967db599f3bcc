"""Runs the examples of the rules of `check`: their code as a file, or as a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx.parser

import lengthwise_export
from lengthwise_export.checking.rule import rules

EXAMPLES = [(code, framework) for code, rule in rules().items() for framework in rule.examples if framework != "pytest"]
"""The rule and the framework of each example of a model; the plugin of pytest runs those of tests."""


def check_example(code: str, framework: str, which: str, folder: Path, **options: Any) -> lengthwise_export.CheckReport:
    """The report of an example, `bad` or `good`; its code becomes a file in a folder."""
    text, options = rules()[code].examples[framework][which], {**rules()[code].options, **options}
    if framework == "onnx":
        return lengthwise_export.check(onnx.parser.parse_model(text), max_length=24, **options)
    file = folder / f"{framework}_{which}_{code}.py"
    file.write_text(text)
    return lengthwise_export.check(f"{file}:{'Net' if 'class Net' in text else 'make'}", max_length=24, **options)


def marked_line(code: str, framework: str) -> int | None:
    """The line of a bad example that is marked with the rule; None of a graph, and of layers."""
    lines = rules()[code].examples[framework]["bad"].splitlines()
    return next((number for number, line in enumerate(lines, 1) if line.endswith(f"# {code}")), None)
