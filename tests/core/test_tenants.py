"""Shares of tenants: what counts, who comes in which order, and that nobody saves up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core import events as ev
from mars.core import tenants
from mars.core.admission import GatedView
from mars.core.ids import CallId, SessionId, ToolId
from mars.core.settings import TenantSettings, TenantWeight
from mars.core.tenants import TenantShares


def shares(core_price: float = 1.0, **weights: float) -> TenantShares:
    named = tuple(TenantWeight(tenant=name, weight=of) for name, of in weights.items())
    return TenantShares(TenantSettings(weights=named, core_price=core_price))


def arrive(to: TenantShares, *names: str) -> list[GatedView]:
    """Sessions called `tenant/number`."""
    for name in names:
        to.observe(
            ev.SessionArrived(at_s=0.0, session_id=SessionId(name), tenant=name.partition("/")[0])
        )
    return [
        GatedView(session_id=SessionId(name), arrived_s=float(number), prompt_bytes=0)
        for number, name in enumerate(names)
    ]


def enter(to: TenantShares, name: str) -> None:
    to.observe(ev.SessionAdmitted(at_s=0.0, session_id=SessionId(name), why=""))


def end(to: TenantShares, name: str) -> None:
    to.observe(ev.SessionEnded(at_s=0.0, session_id=SessionId(name), why=""))


def call(to: TenantShares, name: str, took_s: float) -> None:
    session_id, call_id = SessionId(name), CallId(f"{name}'s")
    to.observe(
        ev.CallStarted(
            at_s=5.0, session_id=session_id, call_id=call_id, prompt_tokens=1, cached_tokens=0
        )
    )
    to.observe(
        ev.CallServed(
            at_s=5.0 + took_s,
            session_id=session_id,
            call_id=call_id,
            prompt_tokens=1,
            cached_tokens=0,
            computed_tokens=1,
            made_tokens=1,
            queued_s=0.0,
            ok=True,
        )
    )


def tool(to: TenantShares, name: str, run_s: float, cores: int) -> None:
    session_id, tool_id = SessionId(name), ToolId(f"{name}'s")
    to.observe(
        ev.ToolQueued(at_s=0.0, session_id=session_id, tool_id=tool_id, tool="t", cores=cores)
    )
    to.observe(
        ev.ToolFinished(
            at_s=run_s,
            session_id=session_id,
            tool_id=tool_id,
            tool="t",
            run_s=run_s,
            cpu_s=0.0,
            peak_memory_bytes=0,
            exit_code=0,
        )
    )


def turns(of: TenantShares, views: list[GatedView]) -> str:
    return "".join(view.session_id[0] for view in of.in_turn(views))


def test_calls_and_tools_count_over_the_weight() -> None:
    it = shares(core_price=0.5, a=2.0, b=1.0)
    arrive(it, "a/1", "b/1")
    call(it, "a/1", 10.0)
    tool(it, "a/1", 4.0, cores=3)
    assert it.ahead_s(SessionId("a/1")) == (10.0 + 0.5 * 12.0) / 2.0
    assert it.ahead_s(SessionId("b/1")) == it.ahead_s(SessionId("nobody")) == 0.0
    call(it, "b/1", 9.0)
    assert it.ahead_s(SessionId("b/1")) == 1.0
    assert it.ahead_s(SessionId("a/1")) == 0.0


def test_who_comes_starts_with_the_last_of_those_that_are_here() -> None:
    """The machine was a's alone: b is not given the time back, nor is a made to pay for it."""
    it = shares(a=1.0)
    arrive(it, "a/1")
    call(it, "a/1", 1000.0)
    arrive(it, "b/1")
    assert it.ahead_s(SessionId("a/1")) == it.ahead_s(SessionId("b/1")) == 0.0
    call(it, "b/1", 7.0)
    end(it, "b/1")
    call(it, "a/1", 3.0)
    arrive(it, "b/2")
    assert it.ahead_s(SessionId("b/2")) == 4.0, "an end does not wipe out what was had"


def test_sessions_enter_by_weight_before_anything_is_served() -> None:
    it = shares(a=4.0, b=1.0)
    views = arrive(it, *[f"b/{n}" for n in range(3)], *[f"a/{n}" for n in range(12)])
    assert turns(it, views) == "baaaabaaaabaaaa"


def test_those_that_are_in_count_although_nothing_of_them_is_served() -> None:
    it = shares(a=1.0, b=1.0)
    views = arrive(it, *[f"a/{n}" for n in range(4)], *[f"b/{n}" for n in range(4)])
    for view in views[:2]:
        enter(it, view.session_id)
    assert turns(it, views[2:]) == "bbabab"


def test_in_one_tenant_the_order_stays() -> None:
    it = shares(a=1.0, b=1.0)
    views = arrive(it, *[f"a/{n}" for n in range(9)])[::-1]
    assert list(it.in_turn(views)) == views


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0.0, 50.0), st.sampled_from("ectx")),
        max_size=60,
    )
)
def test_the_books_stay_even(facts: list[tuple[str, float, str]]) -> None:
    """V never falls, nobody's `ahead` is below nothing, and someone here is at nothing."""
    it = shares(a=3.0, b=1.0)
    here: list[str] = []
    for number, (tenant, size_s, what) in enumerate(facts):
        before = {name: of.v_s for name, of in it._tenants.items()}
        match what:
            case "e":
                here += [view.session_id for view in arrive(it, f"{tenant}/{number}")]
            case "x" if here:
                end(it, here.pop(int(size_s) % len(here)))
            case "c" if here:
                call(it, here[int(size_s) % len(here)], size_s)
            case "t" if here:
                tool(it, here[int(size_s) % len(here)], size_s, 1 + number % 3)
            case _:
                pass
        ahead = [it.ahead_s(SessionId(name)) for name in here]
        assert all(it._tenants[name].v_s >= v_s for name, v_s in before.items())
        assert min(ahead, default=0.0) == 0.0
    counts = {name: sum(one.startswith(name) for one in here) for name in it._tenants}
    assert {name: of.sessions for name, of in it._tenants.items()} == counts


def test_the_books_do_not_grow_with_what_nobody_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "_MOST", 50)
    it = shares(a=1.0)
    for number in range(80):
        arrive(it, f"t{number}/1")
        tool_id = ToolId(str(number))
        it.observe(
            ev.ToolQueued(at_s=0.0, session_id=SessionId("s"), tool_id=tool_id, tool="t", cores=1)
        )
    assert len(it._tenants) == len(it._guests) == len(it._cores) == 50
    end(it, "t0/1")
    assert it.ahead_s(SessionId("t0/1")) == 0.0
