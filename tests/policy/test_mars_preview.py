"""The published preview: its levels, its quanta, its window, its order of entry."""

from math import inf, nextafter

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.policy.fleet import Fleet

from mars.core import events as ev
from mars.core.ids import CallId, SessionId, ToolId
from mars.policy.base import FOR_EVER, CallView
from mars.policy.mars_preview import PreviewLevels
from mars.policy.mars_preview_window import PreviewWindow
from mars.policy.settings import PreviewOrderSettings, PreviewWindowSettings

LEVELS = PreviewLevels(PreviewOrderSettings())


def call(
    *,
    prompt_tokens: int = 0,
    uncached_tokens: int = 0,
    kv_tokens: int = 0,
    queued_s: float = 0.0,
    is_decode: bool = False,
) -> CallView:
    return CallView(
        call_id=CallId("c"),
        session_id=SessionId("s"),
        queued_s=queued_s,
        session_arrived_s=0.0,
        prompt_tokens=prompt_tokens,
        uncached_tokens=uncached_tokens,
        kv_tokens=kv_tokens,
        is_decode=is_decode,
    )


class TestLevels:
    @pytest.mark.parametrize(
        ("tokens", "level"),
        [(1, 0), (2048, 0), (2049, 1), (8192, 1), (8193, 2), (32768, 2), (32769, 3)],
    )
    def test_a_waiting_call_is_of_the_level_of_its_full_prompt(
        self, tokens: int, level: int
    ) -> None:
        warm = call(prompt_tokens=tokens, uncached_tokens=1)
        assert LEVELS.run_key(warm, 0.0)[0] == level
        left = call(prompt_tokens=10**6, uncached_tokens=tokens, kv_tokens=1)
        assert LEVELS.run_key(left, 0.0)[0] == level, "a running one by what is left"

    def test_a_decode_is_of_level_0(self) -> None:
        decode = call(prompt_tokens=10**6, uncached_tokens=1, kv_tokens=10**6, is_decode=True)
        assert LEVELS.run_key(decode, 0.0) == (0, 0.0)
        assert LEVELS.chunk_tokens(decode, 0.0) is None

    def test_a_call_rises_a_level_each_30_s(self) -> None:
        large = call(prompt_tokens=10**6)
        at_s = [0.0, 30.0, 30.1, 60.0, 60.1, 90.1, 999.0]
        assert [LEVELS.run_key(large, now_s)[0] for now_s in at_s] == [3, 3, 2, 2, 1, 0, 0]

    @given(
        tokens=st.integers(1, 100_000),
        queued_s=st.floats(0.0, 1e6),
        ageing_s=st.floats(0.01, 1e3),
        waited=st.floats(0.0, 5.0),
    )
    def test_a_key_holds_exactly_as_long_as_it_says(
        self, tokens: int, queued_s: float, ageing_s: float, waited: float
    ) -> None:
        levels = PreviewLevels(PreviewOrderSettings(ageing_s=ageing_s))
        view = call(prompt_tokens=tokens, uncached_tokens=tokens, queued_s=queued_s)
        now_s = queued_s + waited * ageing_s
        assume(queued_s + ageing_s > queued_s)
        stays, key = levels.stays(view, now_s), levels.run_key(view, now_s)
        assert stays.uncached_tokens == inf
        view.uncached_tokens = 10**6
        assert stays.until_s >= now_s
        assert levels.run_key(view, min(stays.until_s, 1e300)) == key
        if stays == FOR_EVER:
            assert key[0] == 0
        else:
            assert levels.run_key(view, nextafter(stays.until_s, inf)) < key

    def test_the_victim_is_the_greatest_level_then_kv_then_arrival(self) -> None:
        large = call(uncached_tokens=9000, kv_tokens=10)
        fat = call(uncached_tokens=1, kv_tokens=9000)
        late = call(uncached_tokens=1, kv_tokens=9000, queued_s=1.0)
        ranked = sorted([fat, large, late], key=lambda view: LEVELS.victim_key(view, 2.0))
        assert ranked == [fat, late, large]

    def test_a_chunk_is_the_levels_quantum_and_half_of_it_when_kv_is_short(self) -> None:
        for tokens, quantum in ((1, 2048), (3000, 1024), (9000, 512), (99_000, 256)):
            view = call(uncached_tokens=tokens, kv_tokens=1)
            assert LEVELS.chunk_tokens(view, 0.89) == quantum
            assert LEVELS.chunk_tokens(view, 0.90) == quantum // 2


def fleet(**changes: object) -> Fleet:
    """KV of 1,000,000 tokens."""
    settings = msgspec.convert(changes, PreviewWindowSettings)
    return Fleet(PreviewWindow(settings), kv_tokens=1_000_000)


def sizes(it: Fleet, used_tokens: int, looks: int) -> list[int | None]:
    it.sample(used_tokens)
    seen = []
    for _ in range(looks):
        it.tick(0.2)
        seen.append(it.plane.window)
    return seen


def tools(it: Fleet, running: int, waiting: int, slots: int) -> None:
    it.tell(
        ev.ToolsSampled(at_s=it.now_s, running=running, waiting=waiting, slots=slots, wait_s=99.0)
    )


def waited(it: Fleet, wait_s: float, times: int = 1) -> None:
    for _ in range(times):
        it.tell(
            ev.ToolStarted(
                at_s=it.now_s,
                session_id=SessionId("nobody"),
                tool_id=ToolId("t"),
                tool="sh",
                cores=(0,),
                wait_s=wait_s,
            )
        )


class TestWindow:
    def test_it_grows_by_one_a_look_also_while_nobody_waits(self) -> None:
        assert sizes(fleet(), 850_000, 3) == [32, 33, 34]

    def test_it_falls_from_30_to_4_in_a_second_of_kv_overload(self) -> None:
        it = fleet(kv_reserve_frac=1.0)  # no growth at the first look
        it.sample(900_000)
        falls = []
        for _ in range(6):
            it.tick(0.2)
            falls.append(it.plane._admission._size)  # type: ignore[attr-defined]
        assert falls == [21, 14, 9, 6, 4, 4]

    def test_overload_lasts_down_to_the_low_mark(self) -> None:
        it = fleet()
        sizes(it, 900_000, 9)
        assert sizes(it, 860_000, 2) == [4, 4]
        assert sizes(it, 850_000, 2) == [5, 6]

    @pytest.mark.parametrize(
        ("used_tokens", "window"), [(850_000, 32), (860_000, 24), (875_000, 17), (899_000, 4)]
    )
    def test_kv_caps_it_between_the_marks(self, used_tokens: int, window: int) -> None:
        assert sizes(fleet(), used_tokens, 1) == [window]

    def test_a_long_line_of_tools_cuts_it(self) -> None:
        it = fleet()
        tools(it, 4, 4, 4)  # at its high mark: 2 a slot
        assert sizes(it, 0, 1) == [6], "ceil(4 * (1 + 2) / 2) cap 21"
        tools(it, 4, 1, 4)
        it.tick(0.2)
        tools(it, 4, 0, 4)  # at its low mark
        assert sizes(it, 0, 1) == [15], "31 -> 21 -> 14 -> 15"

    def test_waits_for_cores_cut_it_by_their_moving_average(self) -> None:
        it = fleet()
        waited(it, 20.0)  # 4 s: neither calm nor overloaded
        assert sizes(it, 0, 1) == [31]
        waited(it, 20.0)  # 7.2 s
        assert sizes(it, 0, 1) == [21]
        waited(it, 0.0, times=5)  # 2.4 s
        assert sizes(it, 0, 1) == [14]
        waited(it, 0.0)  # 1.9 s
        assert sizes(it, 0, 1) == [15]

    def test_an_empty_machine_takes_the_first(self) -> None:
        it = fleet()
        it.sample(870_000)
        it.arrive("long", tokens=60_000)
        it.arrive("short", tokens=10)
        assert it.phases["long"] == "acting"


class TestEntry:
    """Who enters first: `full` holds one session in, and lets the others wait."""

    def full(self) -> Fleet:
        it = fleet(first=1, least=1, grow=1, kv_reserve_frac=1.0)
        it.arrive("first")
        return it

    def entered(self, it: Fleet) -> list[str]:
        """The others enter one by one as the one before leaves."""
        order: list[str] = []
        inside = ["first"]
        while inside and len(order) < 10:
            it.end(inside[0])
            inside = [name for name, phase in it.phases.items() if phase == "acting"]
            order += inside
        return order

    def line_up(self, it: Fleet) -> None:
        for name, tokens in (("L", 60_000), ("s", 10), ("XL", 90_000), ("m", 40_000)):
            it.arrive(name, tokens=tokens)

    def test_in_order_of_arrival_while_all_is_calm(self) -> None:
        it = self.full()
        self.line_up(it)
        assert self.entered(it) == ["L", "s", "XL", "m"]

    def test_the_longest_first_while_the_cpu_is_overloaded(self) -> None:
        it = self.full()
        tools(it, 4, 9, 4)
        it.tick(0.2)
        self.line_up(it)
        assert self.entered(it) == ["XL", "L", "m", "s"]

    def test_else_the_short_first(self) -> None:
        it = self.full()
        it.sample(870_000)
        self.line_up(it)
        assert self.entered(it)[:2] == ["s", "m"]

    def test_long_ones_enter_when_no_short_one_has_waited_for_a_while(self) -> None:
        it = fleet(first=9)
        it.arrive("in", tokens=10)
        it.sample(700_000)
        tools(it, 5, 0, 4)  # not calm, not overloaded
        it.arrive("short", tokens=10)
        it.arrive("l1", "huge", "l2", "l3", tokens=60_000)
        assert it.phases["l1"] == "gated"
        it.tick(1.9)
        assert it.phases["l1"] == "gated", "a short one waited 1.9 s ago"
        it.tick(0.1)
        assert [it.phases[name] for name in ("l1", "huge", "l2")] == ["acting", "acting", "gated"]

    def test_as_many_long_ones_as_the_kv_has_room_for(self) -> None:
        it = fleet(first=9)
        it.arrive("in", tokens=10)
        it.sample(800_000)  # 100,000 are left beside the reserve
        tools(it, 5, 0, 4)
        for name, tokens in (("huge", 200_000), ("l1", 60_000), ("l2", 60_000)):
            it.arrive(name, tokens=tokens)
            it.sample(800_000 + 60_000 * (it.phases.get("l1") == "acting"))
        waiting = [name for name, phase in it.phases.items() if phase == "gated"]
        assert waiting == ["huge", "l2"]


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        (PreviewWindowSettings, {"least": 31}, "`least` must not be above `first`"),
        (PreviewWindowSettings, {"kv_low_frac": 0.95}, "`kv_low_frac` must not be above"),
        (PreviewOrderSettings, {"level_tokens": [5, 5, 6]}, "`level_tokens` must rise"),
        (PreviewOrderSettings, {"level_tokens": [5]}, "`quantum_tokens` must have one more"),
    ],
)
def test_a_wrong_setting_is_named(kind: type, given: dict[str, object], named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert(given, kind)
