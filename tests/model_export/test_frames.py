import contextlib

import pytest
import torch

from model_export import frames
from model_export.frames import current_place, is_users, shown, users_place


def test_torch_python_and_this_package_are_not_the_users() -> None:
    assert is_users(__file__)
    for file in (torch.__file__, frames.__file__, "<string>", contextlib.__file__):
        assert not is_users(file, installed=True)


def test_an_installed_package_is_the_users_where_nothing_nearer_is() -> None:
    assert not is_users(pytest.__file__)
    assert is_users(pytest.__file__, installed=True)


def test_an_error_is_placed_where_the_users_code_raised_it() -> None:
    try:
        torch.ones(2) @ torch.ones(3)
    except RuntimeError as error:
        place = users_place(error)
    assert place is not None
    assert place.file == __file__
    assert place.source == "torch.ones(2) @ torch.ones(3)"


def test_an_error_that_another_caused_is_placed_by_its_cause() -> None:
    try:
        raise ValueError("inside")
    except ValueError as inner:
        outer = RuntimeError("outside")
        outer.__cause__ = inner
    place = users_place(outer)
    assert place is not None
    assert place.source == 'raise ValueError("inside")'
    assert users_place(RuntimeError("nowhere")) is None


def test_the_running_line_is_found() -> None:
    place = current_place()
    assert place is not None
    assert place.source == "place = current_place()"
    assert str(place).endswith(f"test_frames.py:{place.line}")


def test_paths_are_shown_from_the_working_directory_where_they_lie_below_it(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(str(tmp_path / "net.py")) == "net.py"
    assert shown(torch.__file__) == torch.__file__
