"""Who gets the next slot: turns of connections, ranks, and who is refused where too many wait."""

from collections import Counter
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from lengthwise.connections.fair_slots import FairSlots, Job


class Named(Job):
    """A job that notes when it begins; one that is `over` cannot begin."""

    over = False

    def begin(self) -> bool:
        return not self.over


class Line(FairSlots[Named]):
    """No slot is free, unless `rest` gives one; connections have ranks."""

    def __init__(self, most_queued: int = 100) -> None:
        super().__init__(0, most_queued)
        self.ranks: dict[str, int] = {}

    def wait(self, client: str, cost: float = 1) -> tuple[Named, Named | None]:
        job = Named(client, cost, self.ranks.get(client, 1))
        return job, self.join(job)

    def rank(self, client: str, rank: int) -> None:
        self.ranks[client] = rank
        self.set_rank(client, rank)

    def rest(self) -> list[object]:
        """Whose jobs wait, in the order of their turns."""
        order = list[object]()
        self.slots = 1
        self.join(Named("slot", 0, -1))
        while self.queue:
            (running,) = self.running
            self.leave(running)
            order += [job.peer for job in self.running]
        self.leave(next(iter(self.running)))
        self.slots = 0
        return order


def join(line: Line, clients: Iterable[str]) -> list[Named]:
    pairs = [line.wait(client) for client in clients]
    assert [refused for _, refused in pairs] == [None] * len(pairs)
    return [job for job, _ in pairs]


def test_connections_take_turns_and_those_that_were_silent_come_last() -> None:
    line = Line()
    line.rank("silent", 2)
    line.rank("prompt", 0)
    join(line, ["silent", "new", "new", "new", "other", "prompt", "prompt"])
    assert len(line.queue) == 7
    assert line.rest() == ["prompt", "prompt", "new", "other", "new", "new", "silent"]
    assert not line.queue
    join(line, ["later silent", "other"])
    line.rank("later silent", 2)  # it loses the turns that it waits for
    assert line.rest() == ["other", "later silent"]


def test_a_connection_of_a_better_rank_has_its_waiting_jobs_earlier() -> None:
    line = Line()
    line.rank("late", 2)
    join(line, ["late", "late", "new", "new"])
    line.rank("late", 0)
    assert line.rest() == ["late", "late", "new", "new"]


def test_a_waiting_job_that_ends_leaves_its_line() -> None:
    line = Line()
    leaving, _, again = join(line, ["a", "b", "a"])
    line.leave(leaving)
    line.leave(leaving)
    line.leave(again)
    assert len(line.queue) == 1
    assert line.rest() == ["b"]


def test_a_connection_does_not_pay_for_jobs_that_left_without_a_slot() -> None:
    line = Line(1000)
    for job in join(line, ["a"] * 300):
        line.leave(job)
    join(line, ["b"] * 300)
    line.wait("a")
    assert line.rest().index("a") == 1


def test_a_connection_does_not_pay_for_jobs_that_could_not_begin() -> None:
    slots: FairSlots[Named] = FairSlots(2)
    slots.join(Named("busy", 1))
    for _ in range(300):
        job = Named("a", 1)
        job.over = True
        slots.join(job)
    slots.join(Named("busy", 1))
    for peer in ["b", "b", "a"]:
        slots.join(Named(peer, 1))
    assert [job.peer for _, job in slots.queue] == ["b", "a", "b"]


def test_a_job_waits_for_those_of_its_connection_though_others_left() -> None:
    line = Line()
    long, _ = line.wait("a", 100)
    waits, _ = line.wait("a", 1)
    line.leave(long)
    later, _ = line.wait("a", 1)
    assert waits.turn < later.turn
    assert line.rest() == ["a", "a"]


def test_where_too_many_wait_the_connection_with_most_of_them_is_refused() -> None:
    line = Line(4)
    greedy = join(line, ["greedy"] * 4)
    one_more, refused = line.wait("greedy")
    assert refused is one_more
    assert line.wait("honest")[1] is greedy[-1]
    assert len(line.queue) == 4
    assert sorted(map(str, line.rest())) == ["greedy", "greedy", "greedy", "honest"]


def test_of_equally_many_the_job_of_another_connection_is_refused() -> None:
    line = Line(3)
    _, _, newest = join(line, ["b", "a", "a"])
    assert line.wait("b")[1] is newest


def test_one_that_was_silent_takes_the_slot_of_none_that_was_prompt() -> None:
    line = Line(2)
    line.rank("good", 0)
    line.rank("bad", 2)
    join(line, ["good"] * 2)
    newcomer, refused = line.wait("bad")
    assert refused is newcomer


def test_a_connection_that_came_first_with_many_jobs_keeps_its_part() -> None:
    slots: FairSlots[Named] = FairSlots(1)
    for _ in range(21):
        slots.join(Named("first", 1))

    def next_ones(count: int) -> list[object]:
        order = []
        for _ in range(count):
            slots.leave(next(iter(slots.running)))
            order += [job.peer for job in slots.running]
        return order

    assert next_ones(10) == ["first"] * 10
    for _ in range(10):
        slots.join(Named("later", 1))
    assert next_ones(10).count("first") == 5


RANKED = st.tuples(st.sampled_from("abcd"), st.integers(1, 9), st.sampled_from([None, None, None, 0, 1, 2]))


@given(st.lists(RANKED, max_size=60))
def test_the_newest_of_a_connection_with_most_jobs_of_the_highest_rank_is_refused(
    sent: list[tuple[str, int, int | None]],
) -> None:
    line = Line(6)
    for peer, cost, rank in sent:
        if rank is not None:
            line.rank(peer, rank)
        before = [job for _, job in line.queue]
        job, refused = line.wait(peer, cost)
        waiting = [*before, job]
        assert len(line.queue) == len(waiting) - (refused is not None)
        if refused is not None:
            highest = max(one.turn[0] for one in waiting)
            lengths = Counter(one.peer for one in waiting if one.turn[0] == highest)
            assert lengths[refused.peer] == max(lengths.values())
            assert refused is max((one for one in waiting if one.peer == refused.peer), key=lambda one: one.turn[2])
            assert refused.turn[0] == highest
            if refused.peer == peer:  # no other connection has as many
                assert list(lengths.values()).count(max(lengths.values())) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100), st.booleans(), st.booleans()), max_size=40))
def test_no_slot_is_lost_and_the_jobs_of_a_connection_keep_their_order(
    sent: list[tuple[str, int, bool, bool]],
) -> None:
    slots: FairSlots[Named] = FairSlots(2)
    jobs = [Named(peer, cost) for peer, cost, _, _ in sent]
    for job, (_, _, is_over, _) in zip(jobs, sent, strict=True):
        job.over = is_over
        slots.join(job)
    for job, (_, _, _, leaves) in zip(jobs, sent, strict=True):
        if leaves:
            slots.leave(job)
    begun = [*slots.running]
    while slots.running:
        slots.leave(next(iter(slots.running)))
        begun += [job for job in slots.running if job not in begun]
    assert (slots.free, len(slots.queue)) == (2, 0)
    assert {job for job in jobs if not job.over and job not in begun} <= {
        job for job, (*_, leaves) in zip(jobs, sent, strict=True) if leaves
    }
    for peer in "abc":
        order = [jobs.index(job) for job in begun if job.peer == peer]
        assert order == sorted(order)
