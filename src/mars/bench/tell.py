"""One fact of a session in plain words, and the reason that its log gives for it.

A `Teller` is told a session's facts in order of time: it remembers what a fact alone does not say,
such as the turn of a call, since when it waits, and how much KV the call before it left behind.
"""

from itertools import groupby
from typing import Final, NamedTuple, assert_never

from mars.bench.words import count, number, percent, seconds, size
from mars.core import events as ev
from mars.core.ids import CallId

_LOST_FRAC: Final = 0.1
"""The cache has lost a context when it lacks this share of a prompt that it had before: a block
that was not full is always run again."""
_AT_ONCE_S: Final = 0.005
"""What takes less is not worth words."""
_RELEASED: Final = {
    "returned": "the next call is here",
    "expired": "the time it was kept for is over, and the session is not back",
    "pressure": "others needed the memory",
    "tool": "not worth its memory for as long as this tool takes",
    "ended": "the session is over",
    "replaced": "another call of the session has ended",
    "reset": "the engine emptied its cache",
}


class Said(NamedTuple):
    what: str
    why: str = ""
    cost: bool = False
    """Work or a place was lost."""


class Teller:
    def __init__(self) -> None:
        self._turns: dict[CallId, int] = {}
        self._since_s: dict[CallId, float] = {}
        """Of an open call: when it last began to wait or to run."""
        self._gate_since_s: float | None = None
        self._kv_tokens = 0
        """What its longest call so far has left in KV, had nothing been evicted."""

    def say(self, fact: ev.SessionEvent) -> Said:
        match fact:
            case (
                ev.SessionArrived()
                | ev.SessionAdmitted()
                | ev.SessionPaused()
                | ev.SessionReturned()
                | ev.SessionEnded()
            ):
                return self._say_session(fact)
            case (
                ev.CallQueued()
                | ev.CallStarted()
                | ev.CallPreempted()
                | ev.CallServed()
                | ev.CallFinished()
            ):
                return self._say_call(fact)
            case ev.KvHeld() | ev.KvDropped() | ev.KvReleased():
                return _say_kv(fact)
            case ev.ToolQueued() | ev.ToolStarted() | ev.ToolProgressed() | ev.ToolFinished():
                return _say_tool(fact)
            case _:
                assert_never(fact)

    def _say_session(
        self,
        fact: ev.SessionArrived
        | ev.SessionAdmitted
        | ev.SessionPaused
        | ev.SessionReturned
        | ev.SessionEnded,
    ) -> Said:
        match fact:
            case ev.SessionArrived():
                self._gate_since_s = fact.at_s
                return Said(_arrived(fact), f"named by: {fact.rule}" if fact.rule else "")
            case ev.SessionReturned():
                self._gate_since_s = fact.at_s
                return Said("came back to the gate with its next call")
            case ev.SessionAdmitted():
                since_s, self._gate_since_s = self._gate_since_s, None
                if since_s is None:
                    return Said("let in again before its next call came", fact.why)
                return Said(f"let in{_after(fact.at_s - since_s)}", fact.why)
            case ev.SessionPaused():
                return Said("sent back: its next call must wait at the gate", fact.why, cost=True)
            case ev.SessionEnded():
                return Said("ended", fact.why)
            case _:
                assert_never(fact)

    def _say_call(self, fact: ev.CallEvent) -> Said:
        match fact:
            case ev.CallQueued():
                self._turns[fact.call_id] = fact.turn
                self._since_s[fact.call_id] = fact.at_s
                in_line = f"{_after(fact.waited_s)} in line" if fact.waited_s else ""
                why = "its tenant had as many calls open as it may" if in_line else ""
                return Said(f"{self._turn(fact)}: call handed to the engine{in_line}", why)
            case ev.CallStarted():
                return self._say_started(fact)
            case ev.CallPreempted():
                ran = self._took(fact)
                lost = f"KV of {count(fact.lost_tokens)} tokens given up"
                return Said(f"{self._turn(fact)}: preempted{ran}; {lost}", fact.why, cost=True)
            case ev.CallServed():
                return self._say_served(fact)
            case ev.CallFinished():
                if fact.ok:
                    return Said(f"{self._turn(fact)}: answer delivered")
                return Said(f"{self._turn(fact)}: call failed", fact.why, cost=True)
            case _:
                assert_never(fact)

    def _say_started(self, fact: ev.CallStarted) -> Said:
        cached, prompt = fact.cached_tokens, fact.prompt_tokens
        left = min(self._kv_tokens, prompt)
        has = f"{count(cached)} of its {_tokens(prompt)} cached"
        lost = left - cached > _LOST_FRAC * prompt
        why = f"its context had {_tokens(self._kv_tokens)} before" if lost else ""
        self._kv_tokens = max(self._kv_tokens, prompt)
        return Said(f"{self._turn(fact)}: on the GPU{self._took(fact)}; {has}", why, cost=lost)

    def _say_served(self, fact: ev.CallServed) -> Said:
        took = self._took(fact)
        if not fact.ok:
            return Said(f"{self._turn(fact)}: aborted in the engine{took}", cost=True)
        self._kv_tokens = max(self._kv_tokens, fact.prompt_tokens + fact.made_tokens - 1)
        made = f"{_tokens(fact.made_tokens)} made, {count(fact.computed_tokens)} run"
        return Said(f"{self._turn(fact)}: served{took}; {made}")

    def _turn(self, fact: ev.CallEvent) -> str:
        turn = self._turns.get(fact.call_id)
        return "a call" if turn is None else f"turn {turn}"

    def _took(self, fact: ev.CallEvent) -> str:
        since_s = self._since_s.get(fact.call_id)
        self._since_s[fact.call_id] = fact.at_s
        return "" if since_s is None else _after(fact.at_s - since_s)


def _arrived(fact: ev.SessionArrived) -> str:
    parent = f", started by {fact.parent_id}" if fact.parent_id else ""
    tenant = f", of tenant {fact.tenant}" if fact.tenant else ""
    waited_s = fact.at_s - fact.first_s
    moved = "" if fact.waits_since_s is None else f" from another gate{_after(waited_s)}"
    return f"arrived{moved}{parent}{tenant}"


def _after(took_s: float) -> str:
    return f" after {seconds(took_s)}" if took_s >= _AT_ONCE_S else ""


def _tokens(tokens: int) -> str:
    return f"{count(tokens)} {'token' if tokens == 1 else 'tokens'}"


def _say_kv(fact: ev.KvHeld | ev.KvDropped | ev.KvReleased) -> Said:
    kv = f"KV of {_tokens(fact.kv_tokens)}"
    match fact:
        case ev.KvHeld():
            return Said(f"{kv} kept warm, for {seconds(fact.keep_s)} at first", fact.why)
        case ev.KvDropped():
            return Said(f"{kv} not kept", fact.why)
        case ev.KvReleased():
            said = "taken up again" if fact.why == "returned" else "let go"
            lost = fact.why not in {"returned", "ended", "replaced"}
            why = fact.because or _RELEASED[fact.why]
            return Said(f"{kv} {said}{_after(fact.held_s)}", why, cost=lost)
        case _:
            assert_never(fact)


def _say_tool(fact: ev.ToolEvent) -> Said:
    match fact:
        case ev.ToolQueued():
            return Said(f"{fact.tool}: asks for {number(fact.cores, 'core')}")
        case ev.ToolStarted():
            return Said(f"{fact.tool}: runs on {_cores(fact.cores)}{_after(fact.wait_s)}")
        case ev.ToolProgressed():
            now = f"has run {seconds(fact.run_s)} (CPU {_busy(fact)})"
            return Said(f"{fact.tool}: {now}, {size(fact.memory_bytes)} in memory")
        case ev.ToolFinished():
            if fact.exit_code is None:
                return Said(f"{fact.tool}: never ran", fact.why, cost=True)
            ran = f"ran {seconds(fact.run_s)} (CPU {_busy(fact)}), exit code {fact.exit_code}"
            ended = fact.why == "ended"
            return Said(f"{fact.tool}: {ran}", "" if ended else fact.why, cost=not ended)
        case _:
            assert_never(fact)


def _cores(numbers: tuple[int, ...]) -> str:
    """`core 3`, `cores 1-7, 9`."""
    rows = [
        [number for _, number in row]
        for _, row in groupby(enumerate(sorted(numbers)), lambda item: item[1] - item[0])
    ]
    names = ", ".join(str(row[0]) if len(row) == 1 else f"{row[0]}-{row[-1]}" for row in rows)
    return f"{'core' if len(numbers) == 1 else 'cores'} {names}"


def _busy(fact: ev.ToolProgressed | ev.ToolFinished) -> str:
    return percent(fact.cpu_s / fact.run_s) if fact.run_s > 0.0 else seconds(fact.cpu_s)
