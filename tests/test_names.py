"""A class name stands for one thing, in both packages together."""

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_class_name_is_defined_once() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for package in (ROOT / "service" / "lengthwise", ROOT / "model_export" / "lengthwise_export"):
        for path in package.rglob("*.py"):
            names = r"^(?:class (?=\w+[(:])|(?=\w+(?:: \w+)? = ))(_?[A-Z]\w*[a-z]\w*)"
            for name in re.findall(names, path.read_text(), re.MULTILINE):
                found[name].append(str(path.relative_to(ROOT)))
    assert len(found["Manifest"]) == len(found["SequenceClassifier"]) == len(found["Steps"]) == 1
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
