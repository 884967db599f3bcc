import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lengthwise.runtime.manifest import Manifest, Promise
from lengthwise_export.checking.code_scanning import as_sarif
from lengthwise_export.checking.page import as_page
from lengthwise_export.checking.report import Report, TrialResult, on_terminal, one_per_kind
from lengthwise_export.checking.rule import Cause
from lengthwise_export.targets.graph_targets import promise_text
from tests.support.check_reports import LEAK, NODE, REPORT, SOUND


def terminal(report: Report, *, width: int = 100, **more: Any) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(on_terminal(replace(report, target="net:make", **more)), crop=False)
    return console.file.getvalue()


def test_the_json_is_the_one_that_programs_rely_on() -> None:
    told = json.loads(json.dumps(REPORT.to_dict(), allow_nan=False))
    assert told["verdict"] == "leak"
    assert told["leaks"] == [
        {
            "code": "LW201",
            "operator": "pool: mean",
            "kind": "mean",
            "place": None,
            "file": "models/net.py",
            "line": 12,
            "source": "return h.mean(1)  # <all>",
            "cause_at": "models/net.py:9",
            "cause": "It divides by the width.",
            "fix": "h.sum(1) / lengths[:, None]",
            "difference": None,
            "trial": "padded wider",
        }
    ]
    assert told["trials"][1] == {"name": "unbatched, 1 step", "difference": None, "passed": True, "raised": "too short"}
    assert (told["notes"], told["max_length"]) == (["the model raises past a width of 40"], 40)
    assert told["ran"] == {"rows": [1, 7], "widths": [1, 2, 3, 23], "lengths": [1, 2]}


def test_a_node_has_no_file_and_no_line() -> None:
    (leak,) = Report("leak", "why", (NODE,)).to_dict()["leaks"]
    assert (leak["operator"], leak["file"], leak["line"], leak["source"]) == ("Mean_3", None, None, None)
    assert "Mean_3" in terminal(Report("leak", "why", (NODE,)))


def test_the_terminal_shows_line_cause_mend_and_what_was_tried() -> None:
    told = terminal(REPORT)
    for part in (
        "leak  net:make",
        "models/net.py:12: pool: mean",
        " 12 | return h.mean(1)  # <all>",
        "It divides by the width.",
        "padding stopped being 0 at models/net.py:9",
        "h.sum(1) / lengths[:, None]",
        "note: the model raises past a width of 40",
        "moved",
        "its output is not finite with padded wider",
        "the answer moves by",
        "ran: 1, 7 rows, widths of 1 to 3, 23, sequences of 1, 2 steps",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("code", "cause_at", "said"),
    [
        ("LW201", "models/net.py:9", "padding stopped being 0 at models/net.py:9"),
        ("LW801", "models/net.py:9", "NaN got past the mask at models/net.py:9"),
        ("LW801", "models/net.py:12", None),  # the line of the leak itself
        ("LW201", None, None),
    ],
)
def test_what_happened_to_padding_before_the_leak_is_true_of_its_rule(
    code: str, cause_at: str | None, said: str | None
) -> None:
    leak = replace(LEAK, cause=Cause("why", "fix", code), cause_at=cause_at)
    report = replace(REPORT, leaks=(leak,))
    page, log = as_page(report), json.dumps(as_sarif([report], exit_code=1))
    for told in (terminal(report), re.sub("<[^>]*>", "", page), log):
        found = re.findall("[Pp]adding stopped being 0 at|NaN got past the mask at", told)
        assert len(found) == (said is not None)
        assert said is None or said[1:] in told


def test_the_fix_stands_behind_all_trials_which_are_grouped() -> None:
    many = replace(REPORT, trials=REPORT.trials * 20)
    lines = terminal(many).splitlines()
    fix = next(place for place, line in enumerate(lines) if line.strip() == "fix")
    heads = [place for place, line in enumerate(lines) if line.startswith("trial")]
    assert max(heads) < fix
    assert len(lines) - fix < 5
    assert len(lines) == len(terminal(REPORT).splitlines())


def test_a_wrapped_sentence_stays_behind_its_word() -> None:
    why = "It divides by the width, and so padding is part of the mean of every row that is not the longest."
    told = terminal(Report("leak", "why", (replace(LEAK, cause=Cause(why, "fix")),)), width=40).splitlines()
    first = next(place for place, line in enumerate(told) if line.startswith("  why"))
    column = told[first].index("It divides")
    assert told[first + 1][:column].isspace()
    assert told[first + 1][column] != " "


def test_code_is_not_wrapped() -> None:
    line = "weights = scores.masked_fill(~valid, torch.finfo(scores.dtype).min).softmax(dim=1)"
    leak = replace(LEAK, location=replace(LEAK.location, source=line), cause=Cause("why", f"if known:\n    {line}"))
    told = terminal(Report("leak", "why", (leak,)), width=40).splitlines()
    assert f" 12 | {line}" in told
    assert f"            {line}" in told


def test_a_sound_model_has_a_row_for_each_kind_of_trial_with_its_largest_difference() -> None:
    rows = [line.split() for line in terminal(SOUND).splitlines()]
    assert ["padded", "wider,", "and", "1", "more", "3e-08"] in rows
    assert ["unbatched,", "2", "steps,", "and", "1", "more", "7.8e-08"] in rows


def test_a_kind_of_which_some_trials_failed_is_named_after_one_that_failed() -> None:
    trials = [TrialResult(f"unbatched, {steps} steps", "batch", 0.1, passed=steps % 3 > 0) for steps in range(1, 8)]
    names = [row.name for row in one_per_kind((*trials, *REPORT.trials[:1], replace(trials[2], change="lengths")))]
    assert names == ["padded wider", "unbatched, 3 steps", "unbatched, 3 steps, and 1 more (2 of 7 did not hold)"]
    (row,) = one_per_kind(trials[:3])
    assert (row.name, row.passed) == ("unbatched, 3 steps (1 of 3 did not hold)", False)


def test_what_is_rounding_is_said_where_there_is_some() -> None:
    assert "Up to 1e-05 is rounding" in terminal(SOUND)
    assert "Up to 0.002 is rounding" in terminal(replace(SOUND, tolerance=2e-3))
    assert "rounding" not in terminal(replace(SOUND, trials=SOUND.trials[:1]))


@pytest.mark.parametrize(
    ("multiple", "promise", "said"),
    [
        (4, {"bits": True, "tolerance": 0}, "is a multiple of 4, as when served, the manifest promises the same bits"),
        (1, {"bits": False, "tolerance": 2e-6}, "at every width, the manifest promises answers within 2e-06"),
    ],
)
def test_a_directory_is_told_with_its_promise(multiple: int, promise: dict[str, Any], said: str) -> None:
    manifest = Manifest.read(Path("service/lengthwise/models/japanese-vowels/1"))
    update = {"width_multiple": multiple, "promises": (Promise(provider="CPU", **promise),)}
    told = terminal(SOUND, served=promise_text(manifest.model_copy(update=update)))
    assert f"{said} on CPU" in " ".join(told.split())
    assert promise_text(manifest.model_copy(update={"promises": ()})) is None


def test_a_report_without_trials_is_its_verdict() -> None:
    assert terminal(Report("uncheckable", "no lengths")).strip() == "uncheckable  net:make: no lengths"


def test_a_report_says_which_of_the_two_levels_holds() -> None:
    equal = replace(SOUND, trials=SOUND.trials[:1])
    excused = replace(SOUND, trials=(replace(SOUND.trials[0], is_rounding=True),))
    levels = [(one.padding_safe, one.batch_invariant) for one in (REPORT, SOUND, equal, excused)]
    assert levels == [(False, False), (True, False), (True, True), (True, False)]
    assert "level: not padding-safe" in terminal(REPORT)
    told = terminal(SOUND, width=1000)
    assert "level: padding-safe, but not batch-invariant as it was run here" in told
    assert "`export` measures the bits of the graph that it publishes" in told
    assert "level: padding-safe and batch-invariant" in terminal(equal)


def test_a_model_that_cannot_be_checked_has_no_level() -> None:
    record = Report("uncheckable", "no lengths").to_dict()
    assert (record["padding_safe"], record["batch_invariant"]) == (None, None)


def test_a_leak_is_told_with_its_rule() -> None:
    assert "rule  LW201 mean-over-padding" in terminal(REPORT)
