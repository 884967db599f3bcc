"""Which versions are wanted, and in which order they are tried."""

import pytest

from lengthwise.errors import ConfigurationError
from lengthwise.settings import Settings
from lengthwise.versions import Key, Policy

PRESENT = [Key("a", 2), Key("b", 10), Key("a", 1), Key("b", 9), Key("b", 1)]


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_the_highest_of_each_name_comes_before_the_second_of_any(policy: str) -> None:
    tried = Policy.parse(policy).candidates(PRESENT)
    assert [str(key) for key in tried] == ["a/2", "b/10", "a/1", "b/9", "b/1"]


def test_of_named_versions_only_these_are_tried() -> None:
    policy = Policy.parse("b/9, a/1,b/1,c/7")
    assert [str(key) for key in policy.candidates(PRESENT)] == ["a/1", "b/9", "b/1"]
    assert policy.absent(PRESENT) == [Key("c", 7)]
    assert not policy.one_per_name


def test_one_version_of_a_name_is_enough_where_the_latest_is_wanted() -> None:
    assert Policy.parse("latest").one_per_name
    assert not Policy.parse("all").one_per_name
    assert Policy.parse("latest").absent([]) == []


@pytest.mark.parametrize("text", ["", "newest", "a", "a/", "a/0", "a/01", "a/latest", "/1", "a/1,", "a/b/1", "a/1 b/2"])
def test_what_is_no_policy_is_said_with_what_one_looks_like(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--versions: must be latest, all, or NAME/VERSION"):
        Settings.load(versions=text)
