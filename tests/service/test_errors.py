import inspect
import re

from lengthwise import errors
from lengthwise.errors import InvalidSequences, LengthwiseError, Problem, Refused, RequestError
from lengthwise.telemetry.families import REASONS

TREE = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LengthwiseError)}


def drawn() -> dict[str, tuple[int, int | None]]:
    """The tree of the module's docstring: each class with its depth and its status."""
    found = re.findall(
        r"^((?:[│ ]   )*(?:[├└]── )?)(\w+Error|[A-Z]\w+)(?: +(\d{3}))?", inspect.getdoc(errors) or "", re.M
    )
    return {
        name: (len(indent) // 4, int(status) if status else None)
        for indent, name, status in found
        if hasattr(errors, name)
    }


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    tree = drawn()
    assert set(tree) == {kind.__name__ for kind in TREE}
    for kind in TREE:
        depth, status = tree[kind.__name__]
        assert depth == kind.__mro__.index(LengthwiseError)
        if status is not None:
            assert issubclass(kind, RequestError)
            assert kind.status == status


def test_a_cause_names_each_place_once() -> None:
    for places, told in (
        ("0 0 0 0 0", "sequence 0, step 0: is null (and 4 more like it)"),
        ("0 0 1 1 2", "sequence 0, step 0: is null (and 4 more like it: sequence 1, step 0, sequence 2, step 0, ...)"),
    ):
        problems = [Problem(f"/sequences/{place}/0/{value}", "is null") for value, place in enumerate(places.split())]
        assert str(InvalidSequences(problems)) == told


def test_dots_stand_for_places_that_are_left_out() -> None:
    for count in (5, 40):
        told = str(InvalidSequences([Problem(f"/sequences/{place}", "has no step") for place in range(count)]))
        assert f"(and {count - 1} more like it: sequence 1, sequence 2, sequence 3, sequence 4" in told
        assert ("..." in told) == (count == 40)


def test_the_reasons_are_a_closed_set() -> None:
    assert sorted(kind.reason for kind in Refused.__subclasses__()) == sorted(REASONS)
