"""The rules of `check`: one file each in `rules/`, which says what leaks, why, what selects it, and code that fixes it.

The file of a rule is a table as of `LeakRule`:

    code = "LW201"                      # with `name` and `severity`
    why = "The mean over the steps ..." # a sentence
    message = "The rows of id $id ..."  # if there is one, a report says it instead of `why`, with words of the run

    [[operators]]                       # an entry for operators of torch and ONNX; `[[layers]]` for layers of Keras
    order = 220                         # of all entries of all rules, the first that matches is used
    kinds = "mean|reducemean"           # a regular expression of operator types in lower case, or of classes of Keras
    fix = "..."                         # code, with words such as `$inputs` (see `causes.py`)

An entry may also name the `changes` of trials and the `layouts` of rows for which it is. Special entries have a lower
`order` than general ones. A rule without entries is chosen by how the trials differ, with `LeakRule.cause`. The page in
`docs/rules/` is made from the same file.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Final, Literal

from lengthwise_export.checking.trials import Change
from lengthwise_export.errors import ConfigurationError, nearest
from lengthwise_export.options import RULES

OTHER: Final = "LW900"
"""The rule of an operator that no other rule has an entry for."""

TO_ADAPT: Final = "# to adapt, not to paste: more than this statement has to change"
"""How a fix begins that is no code to put in the place of the statement that leaks."""

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Cause:
    """The cause of a leak."""

    why: str  # a sentence
    fix: str  # code of the user's framework
    code: str = OTHER  # of its rule, such as `LW201`


@dataclass(frozen=True, slots=True)
class Entry:
    """What selects a rule, kinds of operators or layers with kinds of changes, and a fix for these."""

    code: str  # of the rule
    why: str
    order: int  # the lowest that fits is used
    kinds: str  # a regular expression
    fix: str
    changes: tuple[Change, ...] = ()  # empty for any
    mask: str | None = None  # of a layer of Keras: the mask that it gets; None for any
    layouts: tuple[str, ...] = ()  # where rows are padded (left, both), or what packs them; empty for any

    def fits(self, kind: str, change: Change, mask: str | None, layout: str) -> bool:
        """Whether the entry is for this kind of operator or layer, with this mask, in a trial of this change.

        `mask` is the mask that a layer of Keras gets, None for an operator; `layout` is `StepLayout.option`.
        """
        return (
            self.mask in (None, mask)
            and (not self.changes or change in self.changes)
            and (not self.layouts or layout in self.layouts)
            and re.fullmatch(self.kinds, kind) is not None
        )


@dataclass(frozen=True, slots=True)
class LeakRule:
    """One cause of leaks: the contents of its file."""

    code: str
    name: str
    severity: Severity
    why: str
    message: str = ""  # What a report says in the place of `why`, with words of the run; empty: `why`
    fix: str = ""  # The fix of a rule without entries
    cure: str = ""  # What to write instead, as a sentence
    mend: bool | None = None  # Whether `export --mend` cures the example of torch; None if that was not tried
    examples: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # code `bad` and `good`, by framework
    options: Mapping[str, str] = field(default_factory=dict)  # The options of `check` for its examples
    see: Sequence[str] = ()  # Addresses of issues that show it
    operators: tuple[Entry, ...] = ()
    layers: tuple[Entry, ...] = ()

    @property
    def title(self) -> str:
        """`LW201 mean-over-padding`."""
        return f"{self.code} {self.name}"

    @property
    def address(self) -> str | None:
        """The address of the rule's page; None if the folder of pages is not known."""
        folder = address_of_pages()
        return None if folder is None else f"{folder}/{self.code}.md"

    def cause(self, words: Mapping[str, Any] | None = None, fix: str | None = None) -> Cause:
        """The rule as the cause of a leak that the trials have shown.

        Args:
            words: What stands in the place of the `$words` of the message and the fix.
            fix: The fix; None for that of the rule, which is marked as one to adapt.
        """
        message, own_fix = (Template(text).substitute(words or {}) for text in (self.message or self.why, self.fix))
        return Cause(message, f"{TO_ADAPT}\n{own_fix}" if fix is None else fix, self.code)


@functools.cache
def rules() -> Mapping[str, LeakRule]:
    """All rules by their codes."""
    return {path.stem: _read_rule(path) for path in sorted(RULES.glob("LW*.toml"))}


NOT_CHECKED: Final = LeakRule(
    "padding-not-checked",
    "padding-not-checked",
    "warning",
    "Whether padding changes an answer could not be checked: the model cannot be run on padded batches, or takes "
    "neither lengths nor a mask. The message says why.",
)
"""What SARIF and annotations show as the rule of a model that is uncheckable."""


def known_rule(code: str) -> LeakRule:
    """The rule of a code.

    Raises:
        ConfigurationError: There is none.
    """
    if code not in rules():
        raise ConfigurationError(f"there is no rule {code}{nearest(code, rules())}")
    return rules()[code]


def select(
    table: Literal["operators", "layers"], kind: str, change: Change, mask: str | None = None, layout: str = "right"
) -> Entry:
    """The entry with the lowest `order` that fits an operator or a layer; the last one fits everything."""
    return next(entry for entry in _entries_in_order(table) if entry.fits(kind, change, mask, layout))


@functools.cache
def _entries_in_order(table: str) -> tuple[Entry, ...]:
    """The entries of all rules, by their `order`; `table` is `operators` or `layers`."""
    entries = (entry for rule in rules().values() for entry in getattr(rule, table))
    return tuple(sorted(entries, key=lambda entry: entry.order))


@functools.cache
def address_of_pages() -> str | None:
    """The address of the folder of the rules' pages: in the repository of the release, or else in this checkout.

    None if neither is known.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.metadata("lengthwise").get_all("Project-URL") or ():
            label, _, address = line.partition(", ")
            if label == "Source":
                return f"{address}/blob/main/docs/rules"
    folder = Path(__file__).parents[3] / "docs" / "rules"
    return folder.as_uri() if folder.is_dir() else None


def _read_rule(path: Path) -> LeakRule:
    """The rule in a file. Its entries get its code, and its `why` and `fix` where they have none."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    shared = {"code": table["code"], "why": table["why"], "fix": table.get("fix", "")}
    for name in ("operators", "layers"):
        table[name] = tuple(Entry(**shared | entry) for entry in table.get(name, []))
    return LeakRule(**table)
