"""Nothing that waits is lost, none is had twice, and what left is let go."""

import random
import weakref

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import lengthwise.batching.pending
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PRIORITY_SECONDS, PendingSequences, WaitingSequence
from lengthwise.batching.plan import plan
from tests.support.costs import linear_table

TABLE = linear_table(0.001, 0.0001)


@pytest.mark.parametrize(
    ("waiting", "arrive", "leave", "divided"),
    [
        (1000, 0, 0, True),  # few wait: always
        (4000, 0, 0, False),
        (4000, 999, 999, False),
        (4000, 1000, 1000, True),  # a quarter has arrived since
        (4000, 0, 790, False),
        (4000, 0, 810, True),  # so many fewer wait that they are a quarter of the rest
    ],
)
def test_of_many_the_classes_stay_until_much_has_changed(waiting: int, arrive: int, leave: int, divided: bool) -> None:
    pool, calls = PendingSequences(), list[int]()

    def divide() -> list[int]:
        calls.append(len(pool))
        return [4, 8]

    for _ in range(waiting):
        pool.add(WaitingSequence(8))
    pool.classes(divide).append(12)  # the list is the caller's own
    for _ in range(arrive):
        pool.add(WaitingSequence(8))
    pool.take([*pool][:leave])
    assert pool.classes(divide) == [4, 8]
    assert len(calls) == 1 + divided


def test_a_priority_overtakes_few_sequences_where_no_cost_is_predicted() -> None:
    pool, first = PendingSequences(), WaitingSequence(8)
    pool.add(first)
    for _ in range(int(PRIORITY_SECONDS / 1e-4) + 1):
        pool.add(waiting := WaitingSequence(8, priority=1))
        pool.remove(waiting)
    pool.add(WaitingSequence(8, priority=1))
    assert pool.most_urgent() is first


class PoolAgainstASet(RuleBasedStateMachine):
    """A pool whose horizon is easily passed, and beside it the set of what must be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(lengthwise.batching.pending, "PRIORITY_SECONDS", 3.0)  # so that priority and arrival mix
        self.pool = PendingSequences(horizon=4)
        self.waits: list[WaitingSequence] = []

    @rule(
        width=st.integers(1, 8).map(lambda quarter: 4 * quarter),
        deadline=st.sampled_from([float("inf"), 0.0, 0.002, 5.0]),
        priority=st.sampled_from([0, 0, 0, 1, 9]),
    )
    def add(self, width: int, deadline: float, priority: int) -> None:
        waiting = WaitingSequence(width, deadline, priority, seconds=1.0)
        self.pool.add(waiting)
        self.waits.append(waiting)

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        waiting = self.waits.pop(data.draw(st.integers(0, len(self.waits) - 1)))
        assert self.pool.remove(waiting)
        assert not self.pool.remove(waiting)

    @rule(rows=st.integers(1, 4))
    def run(self, rows: int) -> None:
        chosen = plan(self.pool, TABLE, BatchLimits(rows=rows), now=0.0)
        assert bool(chosen) == bool(self.waits)
        assert len(chosen) <= rows
        for waiting in chosen:
            self.waits.remove(waiting)

    def teardown(self) -> None:
        self.patch.undo()

    @invariant()
    def holds_what_waits(self) -> None:
        assert len(self.pool) == len(self.waits)
        assert sorted(map(id, self.pool)) == sorted(map(id, self.waits))
        assert all(waiting in self.pool for waiting in self.waits)

    @invariant()
    def the_most_urgent_is_known_however_much_waits(self) -> None:
        assert self.pool.most_urgent() is min(self.waits, key=lambda waiting: waiting.urgency, default=None)

    @invariant()
    def the_earliest_deadline_is_known_however_much_waits(self) -> None:
        hurried = [waiting for waiting in self.waits if waiting.deadline < float("inf")]
        first = self.pool.earliest_deadline()
        assert (first is not None) == bool(hurried)
        assert first is None or first.deadline == min(waiting.deadline for waiting in hurried)

    @invariant()
    def the_nearest_are_the_most_urgent(self) -> None:
        ordered = sorted(self.waits, key=lambda waiting: waiting.urgency)
        assert list(self.pool.near()) == ordered[:4]
        assert not any(self.pool.is_near(waiting) and waiting.urgency > ordered[:4][-1].urgency for waiting in ordered)


class TestPoolAgainstASet(PoolAgainstASet.TestCase):
    settings = settings(stateful_step_count=40)


def test_priority_overtakes_those_that_came_earlier_by_its_head_start():
    pool = PendingSequences()
    first = [WaitingSequence(4, seconds=PRIORITY_SECONDS / 256) for _ in range(256 + 1)]
    for waiting in first:
        pool.add(waiting)
    urgent = WaitingSequence(4, priority=1)
    pool.add(urgent)
    assert pool.most_urgent() is first[0]
    pool.remove(first[0])
    pool.remove(first[1])
    assert pool.most_urgent() is urgent


def test_only_those_that_ran_have_passed_over_one_that_waits():
    pool, first, *others = PendingSequences(), *(WaitingSequence(4, priority=number // 5) for number in range(6))
    list(map(pool.add, (first, *others)))
    assert pool.remove(others[0])
    assert (pool.passed_over(first), pool.passed_over(others[-1])) == (0, -5)
    pool.take(others[1:3])
    assert (pool.passed_over(first), pool.passed_over(others[-1])) == (2, -3)


class Tracked(WaitingSequence):
    """One that can be seen to be gone."""


@pytest.mark.parametrize("horizon", [2, 2048], ids=["far", "near"])
@pytest.mark.parametrize("order", [1, -1], ids=["first to last", "last to first"])
def test_what_is_withdrawn_is_let_go_at_once_though_nobody_looks(horizon: int, order: int) -> None:
    pool = PendingSequences(horizon)
    waits = [Tracked(4 * (i % 3), deadline=i % 5) for i in range(60)]
    gone = [weakref.ref(waiting) for waiting in waits]
    list(map(pool.add, waits))
    while waits:
        pool.remove(waits.pop(0 if order == 1 else -1))
        assert sum(one() is not None for one in gone) == len(waits)
    assert len(pool) == 0


def test_what_ran_is_let_go_at_once_though_one_before_it_waits_long():
    pool = PendingSequences()
    pool.add(WaitingSequence(8, deadline=0.0, priority=9))  # most urgent and first deadline, but of another width
    for _ in range(200):
        waiting = Tracked(4, deadline=9.0)
        gone = weakref.ref(waiting)
        pool.add(waiting)
        pool.take([waiting])
        del waiting
        assert gone() is None
    assert len(pool) == 1


def test_the_most_urgent_of_some_widths_are_those_of_the_order_of_urgency():
    pool = PendingSequences()
    waits = [WaitingSequence(4 * (i % 5 + 1), priority=i % 3 // 2) for i in range(900)]
    list(map(pool.add, waits))
    pool.take(waits[::7])
    ordered = [each for each in pool.near() if 4 < each.width <= 16]
    assert pool.most_urgent_of(4, 16, 50) == ordered[:50]
    assert pool.most_urgent_of(4, 16, 1000) == ordered


@pytest.mark.parametrize("count", [3, 50])
def test_of_some_widths_none_is_chosen_that_is_not_near(count: int) -> None:
    pool = PendingSequences(horizon=20)
    waits = [WaitingSequence(4 * (i % 5 + 1)) for i in range(100)]
    list(map(pool.add, waits))
    assert pool.most_urgent_of(0, 4, count) == waits[0:20:5][:count]
    assert [pool.is_near(each) for each in waits] == [True] * 20 + [False] * 80


def test_a_width_of_which_none_waits_any_more_is_not_the_widest() -> None:
    pool = PendingSequences()
    narrow, wide = WaitingSequence(4), WaitingSequence(400)
    list(map(pool.add, (narrow, wide)))
    pool.take([wide])
    assert max(pool.alike)[0] == 4


def test_no_two_that_wait_have_the_same_urgency_whatever_their_priorities() -> None:
    pool = PendingSequences()
    waits = [WaitingSequence(4, priority=priority) for priority in random.Random(0).choices(range(10), k=3000)]
    list(map(pool.add, waits))
    assert list(pool) == waits


@pytest.mark.parametrize(
    ("priority", "deadline", "share"), [(0, 2.0, 0.75), (0, 1.5, 0.25), (0, 0.5, 0.0), (1, 2.0, 0.5), (2, 2.0, 0.0)]
)
def test_before_a_new_one_runs_the_smaller_of_the_more_urgent_parts(
    priority: int, deadline: float, share: float
) -> None:
    pool = PendingSequences()
    assert pool.work_before(0.0, priority, deadline) == (0, 0)
    for i in range(2 * 256):
        pool.add(WaitingSequence(4, deadline=[1.0, 2.0, 2.0, float("inf")][i % 4], seconds=PRIORITY_SECONDS / 256))
    assert min(pool.work_before(2 * PRIORITY_SECONDS, priority, deadline)) / 2 == pytest.approx(share, abs=1 / 512)


def test_keys_of_removed_ones_are_dropped_in_small_parts_and_stay_few():
    pool = PendingSequences()
    pool.add(WaitingSequence(4, priority=9))
    waits = []
    for _ in range(100):
        waits += [WaitingSequence(8) for _ in range(64)]
        list(map(pool.add, waits[-64:]))
        pool.take(waits[-48:])  # the last first: what came before stays in the order
        del waits[-48:]
        assert len(pool.urgent) <= 2 * len(pool) + 200
    waiting = {each.urgency for each in pool}
    assert [key for key in pool.urgent if key in waiting] == sorted(waiting)


def test_the_orders_drop_entries_of_sequences_that_left():
    pool = PendingSequences()
    pool.add(WaitingSequence(8, deadline=0.0, priority=9))
    for _ in range(2000):
        waiting = WaitingSequence(4, deadline=9.0)
        pool.add(waiting)
        pool.take([waiting])
    assert len(pool.urgent) < 200
    assert len(pool.deadlines) < 200
