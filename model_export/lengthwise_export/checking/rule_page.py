"""The page of a rule in Markdown, for `check --explain`, SARIF and `docs/rules/`, and the table of all rules."""

from __future__ import annotations

from pathlib import Path

from lengthwise.reports.templates import render
from lengthwise_export.checking.rule import LeakRule, rules


def as_markdown(rule: LeakRule) -> str:
    """The page of a rule: its cause, its cure, and the smallest examples."""
    return str(render(Path(__file__).with_name("rule_page.md"), rule=rule))


def as_table() -> str:
    """The tables of all rules in Markdown: one table for each hundred of the codes."""
    return str(render(Path(__file__).with_name("rule_table.md"), rules=rules()))
