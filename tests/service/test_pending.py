"""Nothing that waits is lost, none is had twice, and what left is let go."""

import gc
import weakref

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import lengthwise.batching.pending
from lengthwise.batching.pending import PRIORITY_HEAD_START, PendingSequences, WaitingSequence
from lengthwise.batching.plan import BatchLimits, plan
from tests.support.costs import linear_table

TABLE = linear_table(0.001, 0.0001)


class PoolAgainstASet(RuleBasedStateMachine):
    """A pool whose horizon is easily passed, and beside it the set of what must be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(lengthwise.batching.pending, "PRIORITY_HEAD_START", 3)  # so that priority and arrival mix
        self.pool = PendingSequences(horizon=4)
        self.waits: list[WaitingSequence] = []

    @rule(
        width=st.integers(1, 8).map(lambda quarter: 4 * quarter),
        deadline=st.sampled_from([float("inf"), 0.0, 0.002, 5.0]),
        priority=st.sampled_from([0, 0, 0, 1, 9]),
    )
    def add(self, width: int, deadline: float, priority: int) -> None:
        waiting = WaitingSequence(width, deadline, priority)
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
        assert all(waiting.waits for waiting in self.waits)

    @invariant()
    def the_most_urgent_is_known_however_much_waits(self) -> None:
        assert self.pool.most_urgent() is min(self.waits, key=lambda waiting: waiting.urgency, default=None)

    @invariant()
    def the_earliest_deadline_is_that_of_the_nearest(self) -> None:
        near = [waiting for width in self.pool.widths for _, _, waiting in self.pool.by_width[width]]
        hurried = [waiting for waiting in near if waiting.deadline < float("inf")]
        first = self.pool.earliest_deadline()
        assert (first is not None) == bool(hurried)
        assert first is None or first.deadline == min(waiting.deadline for waiting in hurried)

    @invariant()
    def the_nearest_stand_by_width(self) -> None:
        near = sorted(waiting.urgency for width in self.pool.widths for _, _, waiting in self.pool.by_width[width])
        assert near == sorted(waiting.urgency for waiting in self.waits)[: len(near)]
        assert len(near) >= min(4, len(self.waits))


class TestPoolAgainstASet(PoolAgainstASet.TestCase):
    settings = settings(stateful_step_count=40)


def test_priority_overtakes_those_that_came_earlier_by_its_head_start():
    pool = PendingSequences()
    first = [WaitingSequence(4) for _ in range(PRIORITY_HEAD_START + 1)]
    for waiting in first:
        pool.add(waiting)
    urgent = WaitingSequence(4, priority=1)
    pool.add(urgent)
    assert pool.most_urgent() is first[0]
    pool.remove(first[0])
    pool.remove(first[1])
    assert pool.most_urgent() is urgent


def of_equal_urgency() -> tuple[PendingSequences, list[WaitingSequence], WaitingSequence]:
    """A pool, those without priority in it, and one with it that stands where the second of them stands."""
    pool = PendingSequences()
    plain = [WaitingSequence(4) for _ in range(PRIORITY_HEAD_START + 1)]
    equal = WaitingSequence(4, priority=1)
    for waiting in (*plain, equal):
        pool.add(waiting)
    return pool, plain, equal


def test_of_equal_urgency_the_right_one_is_removed():
    pool, plain, equal = of_equal_urgency()
    assert equal.urgency == plain[1].urgency
    pool.remove(equal)
    assert equal not in list(pool)
    assert plain[1] in list(pool)


def test_a_batch_takes_the_most_urgent_of_each_width_and_the_anchor_in_the_place_of_the_last():
    pool = PendingSequences()
    narrow, wide = [WaitingSequence(4) for _ in range(4)], [WaitingSequence(8) for _ in range(3)]
    for waiting in (*narrow, *wide):
        pool.add(waiting)
    assert pool.take({4: 2, 8: 1}, anchor=narrow[3]) == [narrow[0], narrow[3], wide[0]]
    assert [waiting.waits for waiting in (*narrow, *wide)] == [False, True, True, False, False, True, True]
    assert pool.most_urgent() is narrow[1]
    assert (len(pool), pool.count(4), pool.count(8)) == (4, 2, 2)
    assert pool.take({4: 2, 8: 2}, anchor=narrow[1]) == [narrow[1], narrow[2], wide[1], wide[2]]
    assert list(pool) == []
    assert not pool


def test_a_batch_may_be_of_one_width_around_which_more_of_equal_urgency_stand():
    pool, plain, equal = of_equal_urgency()
    assert pool.take({4: 2}, anchor=equal) == [plain[0], equal]
    assert pool.take({4: 1}, anchor=plain[1]) == [plain[1]]


def test_a_withdrawn_sequence_is_not_brought_near_by_one_with_priority():
    pool = PendingSequences(horizon=2)
    near, far = [WaitingSequence(4), WaitingSequence(4)], WaitingSequence(8)
    for waiting in (*near, far):
        pool.add(waiting)
    pool.remove(far)
    pool.add(WaitingSequence(12, priority=9))
    assert [waiting.width for waiting in pool] == [4, 4, 12]


def test_the_earliest_deadline_is_of_one_that_still_waits():
    pool = PendingSequences()
    soon, later, never = WaitingSequence(4, deadline=1.0), WaitingSequence(8, deadline=2.0), WaitingSequence(4)
    for waiting in (later, never, soon):
        pool.add(waiting)
    assert pool.earliest_deadline() is soon
    pool.remove(soon)
    assert pool.earliest_deadline() is later
    pool.remove(later)
    assert pool.earliest_deadline() is None


def test_widths_around_one_reach_as_far_as_rows_are_wanted():
    pool = PendingSequences()
    for width in (4, 8, 8, 12, 16, 20, 20, 24):
        pool.add(WaitingSequence(width))
    assert pool.around(12, 0) == ([12], [1])
    assert pool.around(12, 2) == ([8, 12, 16, 20], [2, 1, 1, 2])
    assert pool.around(12, 2.5) == ([4, 8, 12, 16, 20], [1, 2, 1, 1, 2])
    assert pool.around(4, 1) == ([4, 8], [1, 2])


def test_widths_around_one_fill_batches_with_all_that_are_wider():
    pool = PendingSequences()
    for width in (4, 8, 8, 8, 12, 16, 20, 20, 24):
        pool.add(WaitingSequence(width))
    assert pool.around(16, 1, full=3) == ([8, 12, 16, 20, 24], [1, 1, 1, 2, 1])  # 24 alone would fill none
    assert pool.around(12, 1, full=4) == ([8, 12, 16, 20, 24], [3, 1, 1, 2, 1])
    assert pool.around(16, 0, full=3) == ([8, 12, 16], [1, 1, 1])
    assert pool.around(16, 0, full=2) == ([16, 20], [1, 1])
    assert pool.around(4, 1, full=2) == ([4, 8, 12], [1, 3, 1])  # the narrowest fill what they can
    assert pool.around(24, 0, full=4) == ([16, 20, 24], [1, 2, 1])


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
        assert pool.take({4: 1}, anchor=waiting) == [waiting]
        del waiting
        assert gone() is None
    assert len(pool) == 1


def test_the_heaps_drop_entries_of_sequences_that_left():
    pool = PendingSequences()
    pool.add(WaitingSequence(8, deadline=0.0, priority=9))
    for _ in range(2000):
        waiting = WaitingSequence(4, deadline=9.0)
        pool.add(waiting)
        pool.take({4: 1}, anchor=waiting)
    assert len(pool.urgent) < 200
    assert len(pool.deadlines) < 200


@pytest.mark.parametrize("horizon", [8, 100_000], ids=["far", "near"])
def test_sequences_withdrawn_under_overload_are_freed(horizon: int):
    pool = PendingSequences(horizon)
    pool.add(WaitingSequence(4, deadline=0.0))  # most urgent and first deadline, so that no order loses its first
    gone = []
    for _ in range(2000):
        waiting = Tracked(4, deadline=9.0)
        gone.append(weakref.ref(waiting))
        pool.add(waiting)
    for one in reversed(gone):
        waiting = one()
        assert waiting is not None
        pool.remove(waiting)
    del waiting
    gc.collect()
    assert sum(one() is not None for one in gone) < 200
    assert len(pool) == 1
