"""No core is lent twice, none is lost, and nobody who waits is overtaken from behind its rank."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mars.core.decisions import Grant
from mars.core.errors import InputError
from mars.core.ids import ToolId
from mars.core.leases import LeaseBook


def ids(grants: Sequence[Grant]) -> list[str]:
    return [grant.tool_id for grant in grants]


def tool(name: str) -> ToolId:
    return ToolId(name)


class Book(RuleBasedStateMachine):
    """The book beside a list of who waits and a list of who runs, told only by its grants."""

    ranked = False

    @initialize(cores=st.integers(1, 5), share=st.integers(1, 3))
    def open(self, cores: int, share: int) -> None:
        self.cores, self.share = cores, share
        self.ranks: dict[ToolId, float] = {}
        rank = (lambda tool_id: (self.ranks[tool_id],)) if self.ranked else None
        self.book = LeaseBook(range(cores), share, rank=rank)
        self.asked = 0
        self.queue: list[tuple[ToolId, int]] = []
        self.lent: dict[ToolId, tuple[int, tuple[int, ...]]] = {}

    @rule(cores=st.integers(1, 5), rank=st.integers(0, 3))
    def ask(self, cores: int, rank: int) -> None:
        self.asked += 1
        tool_id = tool(str(self.asked))
        self.ranks[tool_id] = rank
        if cores > self.cores:
            with pytest.raises(InputError):
                self.book.ask(tool_id, cores)
        else:
            self.queue.append((tool_id, cores))
            self.carry_out(self.book.ask(tool_id, cores))

    @precondition(lambda self: self.queue or self.lent)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        known = [tool_id for tool_id, _ in self.queue] + list(self.lent)
        with pytest.raises(InputError, match="already known"):
            self.book.ask(data.draw(st.sampled_from(known)), 1)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        tool_id = data.draw(st.sampled_from(list(self.lent)))
        del self.lent[tool_id]
        self.carry_out(self.book.give_back(tool_id))

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.queue))
        self.queue.remove(item)
        self.carry_out(self.book.give_back(item[0]))

    @precondition(lambda self: self.queue)
    @rule(data=st.data(), rank=st.integers(0, 3))
    def rank_anew(self, data: st.DataObject, rank: int) -> None:
        """It takes effect when somebody next asks or gives back."""
        tool_id, _ = data.draw(st.sampled_from(self.queue))
        self.ranks[tool_id] = rank
        self.carry_out(self.book.give_back(tool("unknown")))

    @rule()
    def give_back_what_nobody_knows(self) -> None:
        assert self.book.give_back(tool("unknown")) == []

    def carry_out(self, grants: list[Grant]) -> None:
        for grant in grants:
            tool_id, cores = self.first()
            self.queue.remove((tool_id, cores))
            assert grant.tool_id == tool_id, "somebody was overtaken"
            assert cores <= self.free()
            if self.share == 1:
                others = {core for _, own in self.lent.values() for core in own}
                assert len(set(grant.cores)) == len(grant.cores) == cores
                assert not others & set(grant.cores), "a core was lent twice"
            else:
                assert grant.cores == tuple(range(self.cores)), "a core that is idle is anybody's"
            self.lent[tool_id] = cores, grant.cores

    def first(self) -> tuple[ToolId, int]:
        """Of the least rank; among equals who asked first."""
        if not self.ranked:
            return self.queue[0]
        return min(self.queue, key=lambda item: self.ranks[item[0]])

    def free(self) -> int:
        return self.cores * self.share - sum(cores for cores, _ in self.lent.values())

    @invariant()
    def the_book_adds_up(self) -> None:
        self.book.check()
        assert self.book.running == len(self.lent)
        assert self.book.waiting == len(self.queue)
        assert self.book.slots == self.cores * self.share

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        assert not self.queue or self.first()[1] > self.free()

    def teardown(self) -> None:
        """Everybody who waits gets cores in the end."""
        if not hasattr(self, "book"):
            return  # hypothesis tears down a machine that was never opened, too
        while self.lent:
            tool_id, _ = self.lent.popitem()
            self.carry_out(self.book.give_back(tool_id))
            self.book.check()
        assert not self.queue
        assert (self.book.running, self.book.waiting) == (0, 0)


class RankedBook(Book):
    """The same under a rank that changes while calls wait."""

    ranked = True


TestBook = Book.TestCase
TestRankedBook = RankedBook.TestCase


def test_the_least_rank_is_first_and_the_rank_is_asked_only_for_a_choice() -> None:
    ranks = {tool("long"): 9.0, tool("short"): 1.0, tool("middle"): 5.0}
    asked: list[ToolId] = []

    def rank(tool_id: ToolId) -> tuple[float, ...]:
        asked.append(tool_id)
        return (ranks[tool_id],)

    book = LeaseBook([0], rank=rank)
    assert ids(book.ask(tool("first"), 1)) == ["first"]
    for name in ranks:
        assert book.ask(name, 1) == []
    assert asked == [], "nobody alone and nobody without a core is ranked"
    assert ids(book.give_back(tool("first"))) == ["short"]
    assert ids(book.give_back(tool("short"))) == ["middle"]
    asked.clear()
    assert ids(book.give_back(tool("middle"))) == ["long"]
    assert asked == []


def test_a_wide_call_that_ranks_first_is_not_overtaken() -> None:
    ranks = {tool("wide"): 1.0, tool("late"): 2.0, tool("before"): 0.0}
    book = LeaseBook(range(2), rank=lambda tool_id: (ranks[tool_id],))
    for name in ("a", "b"):
        book.ask(tool(name), 1)
    assert book.ask(tool("wide"), 2) == book.ask(tool("late"), 1) == []
    assert book.give_back(tool("a")) == [], "a core is free, but who is first needs two"
    assert ids(book.ask(tool("before"), 1)) == ["before"], "who ranks before it may pass"
    assert book.give_back(tool("before")) == []
    assert ids(book.give_back(tool("b"))) == ["wide"]
    assert ids(book.give_back(tool("wide"))) == ["late"]


def test_what_is_checked_is_not_queued() -> None:
    book = LeaseBook([0, 1])
    book.check_ask(tool("a"), 2)
    assert (book.running, book.waiting) == (0, 0)
    with pytest.raises(InputError, match="this server lends 2"):
        book.check_ask(tool("a"), 3)


def test_a_call_for_two_cores_is_not_starved_by_calls_for_one() -> None:
    book = LeaseBook(range(2))
    assert ids(book.ask(tool("a"), 1)) == ["a"]
    assert ids(book.ask(tool("b"), 1)) == ["b"]
    assert book.ask(tool("wide"), 2) == []
    assert book.ask(tool("c"), 1) == []
    assert book.give_back(tool("a")) == [], "a core is free, but the wide call is first in line"
    assert ids(book.give_back(tool("b"))) == ["wide"]
    assert ids(book.give_back(tool("wide"))) == ["c"]


def test_a_wide_call_that_leaves_the_queue_lets_the_next_one_in() -> None:
    book = LeaseBook(range(2))
    book.ask(tool("a"), 1)
    book.ask(tool("wide"), 2)
    book.ask(tool("b"), 1)
    assert ids(book.give_back(tool("wide"))) == ["b"]


def test_a_call_has_its_cores_to_itself() -> None:
    book = LeaseBook([4, 6, 8, 9])
    grants = [book.ask(tool(str(n)), cores)[0].cores for n, cores in enumerate((1, 2, 1))]
    assert grants == [(4,), (6, 8), (9,)]
    assert book.ask(tool("more"), 1) == []
    assert book.give_back(tool("1"))[0].cores == (6,)


def test_shared_cores_are_everybodys_up_to_so_many_leases() -> None:
    book = LeaseBook([4, 6], share=4)
    grants = [book.ask(tool(str(n)), cores)[0].cores for n, cores in enumerate((1, 2, 2, 2, 1))]
    assert grants == [(4, 6)] * 5
    assert book.ask(tool("more"), 1) == []
    with pytest.raises(InputError, match="asked for 3 cores; this server lends 2"):
        book.ask(tool("too many"), 3)


@pytest.mark.parametrize("cores", [0, -1, 3])
def test_an_ask_that_could_never_be_granted_is_refused_at_once(cores: int) -> None:
    book = LeaseBook([0, 1])
    with pytest.raises(InputError):
        book.ask(tool("a"), cores)
    assert (book.running, book.waiting) == (0, 0)


def test_a_book_without_a_slot_is_refused() -> None:
    with pytest.raises(InputError, match="no cores"):
        LeaseBook([])
    with pytest.raises(InputError, match="shared by 0"):
        LeaseBook([0], share=0)


def test_check_sees_a_book_that_was_cooked() -> None:
    book = LeaseBook([0, 1])
    book.ask(tool("a"), 1)
    book._own.add(1)
    with pytest.raises(AssertionError, match="no lease names"):
        book.check()
    book._own.remove(1)
    book._used = 3
    with pytest.raises(AssertionError, match="no lease names"):
        book.check()
    book._leases[tool("b")] = replace(book._leases[tool("a")], cores=2)
    with pytest.raises(AssertionError, match="more is lent than there is"):
        book.check()
    book._leases[tool("b")] = book._leases[tool("a")]
    book._used = 2
    with pytest.raises(AssertionError, match="lent twice"):
        book.check()


def test_memory_is_a_second_limit_and_comes_back() -> None:
    book = LeaseBook(range(4), memory_bytes=100)
    assert [g.tool_id for g in book.ask(tool("a"), 1, 60)] == [tool("a")]
    assert book.ask(tool("b"), 1, 60) == [], "cores are free, memory is not"
    assert book.ask(tool("c"), 1, 10) == [], "nobody is overtaken"
    book.check()
    assert [g.tool_id for g in book.give_back(tool("a"))] == [tool("b"), tool("c")]
    book.check()
    with pytest.raises(InputError, match="101 bytes; this server lends 100"):
        book.ask(tool("d"), 1, 101)
