"""The study of other libraries' encoders: what it judges, what it keeps, and the leaks that are ready to be filed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import encoders
from benchmarks.encoders import Judged
from benchmarks.encoders_models import DATA, FEATURES, Called, Encoder, Packed
from benchmarks.encoders_time_series import ENCODERS, WHOLE

LEAKS = Path(encoders.__file__).with_name("leaks")
PAGES = sorted(LEAKS.glob("*.md"))
GRU = Encoder(
    library="torch",
    path="torch.nn:GRU",
    arguments={"input_size": FEATURES, "hidden_size": 8, "batch_first": True},
    answer=0,
)
BOTH = Encoder(
    library="torch",
    path="torch.nn:GRU",
    note="both directions",
    arguments=GRU.arguments | {"bidirectional": True},
    answer=0,
)
ENTRIES = [Encoder(**one) for one in DATA["encoders"] if "encoders_time_series" in one["path"]]


def code_of(page: Path) -> str:
    found = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_a_layer_whose_valid_steps_never_read_padding_is_sound() -> None:
    assert encoders.judge(GRU, "right").verdict == "sound"


def test_a_layer_that_begins_in_the_padding_leaks_with_its_rule_and_operator() -> None:
    judged = encoders.judge(BOTH, "right")
    assert (judged.verdict, judged.rule, judged.operator) == ("leak", "LW301", "module: gru")
    assert judged.difference > 0.01


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["Transformer", "TimesNet", "DLinear"])
def test_a_classifier_of_time_series_leaks_unless_it_gets_the_longest_width_always(name: str) -> None:
    (entry,) = (one for one in ENTRIES if one.arguments == {"encoder": name})
    assert encoders.judge(entry, "right").verdict == ("sound" if name in WHOLE else "leak")
    assert encoders.judge(entry, "any values").verdict == "leak"


def test_each_encoder_of_time_series_has_its_row() -> None:
    assert [entry.arguments["encoder"] for entry in ENTRIES] == [*ENCODERS]


def test_a_class_that_cannot_be_made_is_a_row_with_its_reason() -> None:
    judged = encoders.judge(Encoder(library="torch", path="torch.nn:GRU"), "right")
    assert judged.verdict == "not made"
    assert "TypeError" in judged.reason


def test_a_long_reason_is_cut_between_two_words() -> None:
    words = [f"word{number}" for number in range(100)]
    record = {"verdict": "uncheckable", "one_row": False, "reason": " ".join(words)}
    *kept, end = encoders.cells(GRU, {f"{GRU.name}, right": record})[-1].split()
    assert kept == words[: len(kept)]
    assert len(kept) > 10
    assert end == "..."


def test_a_layer_without_a_mask_is_not_tried_with_padding_on_the_left() -> None:
    assert encoders.applies("right", GRU)
    assert not encoders.applies("left", GRU)


class Base(nn.Module):
    """What a class of `transformers` is made around: a model that asks for steps of its decoder, if it has one."""

    def __init__(self, *, has_decoder: bool) -> None:
        super().__init__()
        self.base_model = self
        self.config = SimpleNamespace(is_encoder_decoder=has_decoder)

    def get_encoder(self) -> nn.Module:
        return Base(has_decoder=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor, *, use_cache: bool) -> tuple[Tensor]:
        assert not self.config.is_encoder_decoder
        return (input_ids + position_ids,)


def packed(*, has_decoder: bool) -> Packed:
    return Packed(Called(Base(has_decoder=has_decoder), GRU, own_padding=True))


@pytest.mark.parametrize("has_decoder", [False, True])
def test_the_encoder_alone_is_called_with_packed_sequences(has_decoder: bool) -> None:
    row = torch.arange(3)[None]
    assert torch.equal(packed(has_decoder=has_decoder)(row, row), 2 * row)


def test_packed_sequences_without_a_row_are_refused_for_cubic_scores() -> None:
    with pytest.raises(ValueError, match="one row"):
        packed(has_decoder=False)(torch.arange(3), torch.arange(3))


def test_only_what_the_file_lacks_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def answer(entry: Encoder, mode: str) -> Judged:
        asked.append((entry.name, mode))
        return Judged("sound")

    monkeypatch.setattr(encoders, "judge_apart", answer)
    file = tmp_path / "records.json"
    encoders.judge_missing(file, [GRU], jobs=1, keep=False)
    assert sorted(asked) == [("GRU", "any values"), ("GRU", "right")]
    asked.clear()
    encoders.judge_missing(file, [GRU, BOTH], jobs=1, keep=False)
    assert {name for name, _ in asked} == {"GRU, both directions"}


def test_another_version_of_the_checker_judges_again_unless_it_is_told_to_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(entry: Encoder, mode: str) -> Judged:
        asked.append(mode)
        return Judged("sound")

    monkeypatch.setattr(encoders, "judge_apart", answer)
    file = tmp_path / "records.json"
    records: dict[str, Any] = encoders.judge_missing(file, [GRU], jobs=1, keep=False)
    file.write_text(json.dumps({key: record | {"checker": "another"} for key, record in records.items()}))
    asked.clear()
    encoders.judge_missing(file, [GRU], jobs=1, keep=True)
    assert not asked
    encoders.judge_missing(file, [GRU], jobs=1, keep=False)
    assert sorted(asked) == ["any values", "right"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_reproduction_is_short_and_needs_nothing_of_this_project(page: Path) -> None:
    code = code_of(page)
    compile(code, page.name, "exec")
    calls = [line for line in code.partition("\n\n")[2].splitlines() if not line.startswith((" ", ")"))]
    assert len(calls) <= 7
    assert "lengthwise" not in code


def test_each_new_leak_has_its_page_and_each_page_its_class() -> None:
    linked = {Path(found).name for known in DATA["upstream"].values() for found in re.findall(r"\((\S+)\)", known)}
    assert linked == {page.name for page in PAGES}


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_reproduction_prints_what_its_page_says(page: Path) -> None:
    code = code_of(page)
    libraries = set(re.findall(r"^from (\w+)", code, re.MULTILINE)) - {"torch"}
    if not all(map(find_spec, libraries)):
        pytest.skip(f"{libraries} are not installed")
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=page.parent)
    printed = float(re.findall(r"tensor\(([\d.e-]+)", done.stdout)[-1])
    said = float(re.findall(r"It prints ([\d.]+)\. ", page.read_text(encoding="utf-8"))[0])
    assert printed == pytest.approx(said, rel=0.1)
