import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lengthwise_export.tracing import source_lines
from lengthwise_export.tracing.source_lines import current_location, is_users, location_of, relative_path

ROOT = Path(__file__).parents[2]


def test_torch_python_and_this_package_are_not_the_users() -> None:
    assert is_users(__file__)
    for file in (torch.__file__, source_lines.__file__, "<string>", contextlib.__file__):
        assert not is_users(file, installed=True)


def test_an_installed_package_is_the_users_where_nothing_nearer_is() -> None:
    assert not is_users(pytest.__file__)
    assert is_users(pytest.__file__, installed=True)


def test_an_error_is_placed_where_the_users_code_raised_it() -> None:
    try:
        torch.ones(2) @ torch.ones(3)
    except RuntimeError as error:
        place = location_of(error)
    assert place is not None
    assert place.file == __file__
    assert place.source == "torch.ones(2) @ torch.ones(3)"


def test_an_error_that_another_caused_is_placed_by_its_cause() -> None:
    try:
        raise ValueError("inside")
    except ValueError as inner:
        outer = RuntimeError("outside")
        outer.__cause__ = inner
    place = location_of(outer)
    assert place is not None
    assert place.source == 'raise ValueError("inside")'
    assert location_of(RuntimeError("nowhere")) is None


def test_the_running_line_is_found() -> None:
    place = current_location()
    assert place is not None
    assert place.source == "place = current_location()"
    assert str(place).endswith(f"test_source_lines.py:{place.line}")


def test_paths_are_shown_from_the_working_directory_where_they_lie_below_it(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative_path(str(tmp_path / "net.py")) == "net.py"
    assert relative_path(torch.__file__) == torch.__file__


PROBE = """
import sys, library, torchlike
from lengthwise_export.tracing import source_lines
source_lines._MACHINERY = (*source_lines._MACHINERY, "torchlike")
print(*(source_lines._owner(file) for file in (torchlike.__file__, library.__file__, {users!r})))
print([source_lines.is_users(library.__file__), source_lines.is_users(library.__file__, installed=True)])
"""


@pytest.mark.process
@pytest.mark.sampled(3)  # a process with torch for each
@pytest.mark.parametrize("way", ["PYTHONPATH", "a .pth file", "a link"])
def test_libraries_are_known_wherever_they_are_imported_from(way: str, tmp_path) -> None:
    target = tmp_path / "target"
    for name in ("torchlike", "library"):
        (target / name).mkdir(parents=True)
        (target / name / "__init__.py").write_text("")
        (target / f"{name}-1.0.dist-info").mkdir()
    begin, folder = "", target
    if way == "a link":
        folder = tmp_path / "linked"
        folder.symlink_to(target)
    if way == "a .pth file":
        (tmp_path / "extra").mkdir()
        (tmp_path / "extra" / "more.pth").write_text(f"{target}\n")
        begin = f"import site; site.addsitedir({str(tmp_path / 'extra')!r})\n"
    users = tmp_path / "users.py"
    users.write_text("")
    told = subprocess.run(
        [sys.executable, "-c", begin + PROBE.format(users=str(users))],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{'' if begin else folder}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split("\n")[:2] == ["0 1 2", "[False, True]"]


@pytest.mark.process
@pytest.mark.long
def test_torch_by_way_of_a_link_outside_the_environment_is_not_the_users(tmp_path) -> None:
    (tmp_path / "torch").symlink_to(os.path.dirname(torch.__file__))
    (tmp_path / "users.py").write_text(
        "import torch\n\n\ndef run():\n    return torch.nn.functional.cross_entropy(torch.ones(2, 3), torch.ones(5))\n"
    )
    code = (
        "import torch, users\nfrom lengthwise_export.tracing.source_lines import location_of\n"
        "assert torch.__file__.startswith("
        f"{str(tmp_path)!r}), torch.__file__\ntry:\n    users.run()\nexcept Exception as error:\n"
        "    print(location_of(error))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "users.py:5"
