"""The information stream: facts, in the past tense, stamped by whoever saw them.

An event is at once the in-process value, the wire message and the line in the event log.
Handlers switch on `Event` with `match`, and mypy proves that no case was forgotten.

Who stamps what (each fact has exactly one source):

    gateway       SessionArrived SessionAdmitted SessionPaused SessionReturned SessionEnded
    gateway       CallQueued CallFinished GateShut FailOpenChanged SessionRefused
    engine        CallStarted CallPreempted CallServed KvHeld KvDropped KvReleased EngineSampled
    tool runtime  ToolQueued ToolStarted ToolProgressed ToolFinished ToolsSampled

`at_s` is in seconds on the machine's monotonic clock, which all processes of a machine share.
"""

from typing import Final, Literal, get_args

import msgspec

from mars.core.ids import CallId, SessionId, ToolId


class Fact(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True, gc=False):
    """Points at nothing that could point back: a long log is no work for the garbage collector."""

    at_s: float


class SessionArrived(Fact, frozen=True, kw_only=True):
    session_id: SessionId
    rule: str = ""
    """Which rule of `gateway.identity` named the session."""
    prompt_bytes: int = 0
    patience_s: float | None = None
    """So long after this its client gives up; None: it has not told."""
    parent_id: SessionId | None = None
    """The session that started this one, and waits for it (core.family)."""
    tenant: str = ""
    """Whose it is (core.tenants); empty: nobody said."""
    was_in: bool = False
    """It was past the gate of a gateway that is gone, and keeps its place; `at_s` is of then."""
    turn: int = 0
    """Of such a one: calls that it has made."""
    engine: str = ""
    """URL of the engine whose gate it came to."""
    waits_since_s: float | None = None
    """Of one that was moved here from another engine's gate: when it came to that."""

    @property
    def first_s(self) -> float:
        """When it came, to whichever gate."""
        return self.at_s if self.waits_since_s is None else self.waits_since_s


Outage = Literal["", "no samples", "fault"]
"""What makes the control plane unable to judge (core.failsafe); empty: nothing."""
OUTAGES: Final[tuple[Outage, ...]] = get_args(Outage)[1:]
Entry = Literal["admission", "parent", "overdue", "restart", "no samples", "fault"]
"""What let a session in, by kind: the policy's admission, a parent that is in, the longest wait,
its place before a restart of the gateway, or an outage."""


class SessionAdmitted(Fact, frozen=True, kw_only=True):
    session_id: SessionId
    why: str
    by: Entry = "admission"


class SessionPaused(Fact, frozen=True, kw_only=True):
    """A session without an open call was sent back to the gate."""

    session_id: SessionId
    why: str


Limit = Literal[
    "",
    "room in KV",
    "KV capacity unknown",
    "KV pressure",
    "tool pressure",
    "window",
    "tenant limit",
]
"""What keeps sessions out, by kind; empty: an admission that names none. `tenant limit`: nobody
waits but those whose tenant has as many in as it may."""
LIMITS: Final[tuple[Limit, ...]] = get_args(Limit)


class GateShut(Fact, frozen=True, kw_only=True):
    """Why those at the gate are not let in.

    Told of the first that has to wait, and again when the reason changes in kind (core.sign).
    """

    limit: Limit
    why: str
    waiting: int
    """Sessions at the gate."""


class SessionRefused(Fact, frozen=True, kw_only=True):
    """It came when the queue at the gate was full, and was told to come again."""

    session_id: SessionId
    waiting: int
    """Sessions at the gate."""
    retry_after_s: int


class FailOpenChanged(Fact, frozen=True, kw_only=True):
    """From now on the gate is open for all, or it is one again."""

    cause: Outage
    """Why it is open; empty: it is a gate again."""
    why: str


class SessionReturned(Fact, frozen=True, kw_only=True):
    """The next call of a paused session is at the gate."""

    session_id: SessionId
    prompt_bytes: int = 0
    patience_s: float | None = None


class CallQueued(Fact, frozen=True, kw_only=True):
    """A call was handed to the engine."""

    session_id: SessionId
    call_id: CallId
    turn: int
    prompt_bytes: int = 0
    waited_s: float = 0.0
    """In line past the gate, since its tenant had as many calls open as it may (core.slots)."""


class CallStarted(Fact, frozen=True, kw_only=True):
    """The engine gave a call its first memory and tokens (again, after a preemption)."""

    session_id: SessionId
    call_id: CallId
    prompt_tokens: int
    """Tokens to be in KV before the next one is made (after a preemption: its answer too)."""
    cached_tokens: int
    """Of those, the ones found in the prefix cache."""


class CallPreempted(Fact, frozen=True, kw_only=True):
    session_id: SessionId
    call_id: CallId
    lost_tokens: int
    """KV of this many tokens was given up (what stays hashed may yet be found again)."""
    why: str = ""
    """Who needed the room."""


class CallServed(Fact, frozen=True, kw_only=True):
    """The engine's account of one call, when the call leaves it."""

    session_id: SessionId
    call_id: CallId
    prompt_tokens: int
    cached_tokens: int
    """Prefix-cache hits when the call first started, those from host memory among them."""
    computed_tokens: int
    """Tokens the model was run on for this call, prefill and decode, recomputation included."""
    made_tokens: int
    queued_s: float
    """Seconds between the engine's intake and the first start."""
    ok: bool
    """False when the call was aborted."""
    loaded_tokens: int = 0
    """KV that came from host memory. Told by the simulator; the plugin does not ask for it."""


class CallFinished(Fact, frozen=True, kw_only=True):
    """The answer has left the gateway, or the call has failed."""

    session_id: SessionId
    call_id: CallId
    ok: bool
    why: str = ""
    """Of a call that did not end well: what happened."""
    gone: bool = False
    """Its client cut it."""
    status: int | None = None
    """Of HTTP, as the client got it; None: it got none."""
    first_byte_s: float | None = None
    """Seconds from `CallQueued` to the first byte of the engine's answer; None: there was none."""


class KvHeld(Fact, frozen=True, kw_only=True):
    session_id: SessionId
    kv_tokens: int
    keep_s: float
    why: str


class KvDropped(Fact, frozen=True, kw_only=True):
    """A call has ended, and its KV was not held: it is there until somebody needs the room."""

    session_id: SessionId
    kv_tokens: int
    why: str


class KvReleased(Fact, frozen=True, kw_only=True):
    session_id: SessionId
    kv_tokens: int
    held_s: float
    why: Literal["returned", "expired", "pressure", "tool", "ended", "replaced", "reset"]
    because: str = ""
    """Of `pressure`: who needed the room; of `tool`: the policy's reason."""


class ToolQueued(Fact, frozen=True, kw_only=True):
    session_id: SessionId
    tool_id: ToolId
    tool: str
    """Name of the tool: what durations are learned by."""
    cores: int
    """That it asks for."""


class ToolStarted(Fact, frozen=True, kw_only=True):
    session_id: SessionId
    tool_id: ToolId
    tool: str
    cores: tuple[int, ...]
    """CPU numbers it may run on: its own, or where leases share them all that are lent."""
    wait_s: float
    """Seconds the tool call waited for its cores."""


class ToolProgressed(Fact, frozen=True, kw_only=True):
    """It runs on: told after 1, 2, 4, 8, ... seconds."""

    session_id: SessionId
    tool_id: ToolId
    tool: str
    run_s: float
    """Since `ToolStarted`."""
    cpu_s: float
    """Of its processes so far; never less than was told before."""
    memory_bytes: int
    """In use now. A control group counts cached files too, else shared pages count in each."""


ToolEnd = Literal["ended", "timeout", "cancelled", "out of memory"]
"""How a tool came to its end; `out of memory`: it failed, and the kernel had ended it, or
something in it, for having more than its lease says."""


class ToolFinished(Fact, frozen=True, kw_only=True):
    session_id: SessionId
    tool_id: ToolId
    tool: str
    run_s: float
    cpu_s: float
    peak_memory_bytes: int
    exit_code: int | None
    """None when it never ran: cancelled while it waited for its cores."""
    why: ToolEnd = "ended"


End = Literal[
    "final request", "asked for", "silence", "client gone", "client left", "moved", "stop"
]
"""What ended a session, by kind: `client gone` cut a call and did not come back; `client left` at
the gate; `moved`: it waits on at another engine's gate."""


class SessionEnded(Fact, frozen=True, kw_only=True):
    session_id: SessionId
    why: str
    by: End = "final request"


class EngineSampled(Fact, frozen=True, kw_only=True):
    kv_used_blocks: int
    """Blocks referenced by calls and holds; KV that is only cached counts as free."""
    kv_held_blocks: int
    kv_total_blocks: int
    block_tokens: int
    running_calls: int
    waiting_calls: int
    host_total_blocks: int = 0
    """Of host memory behind the KV; 0: there is none, or none that the plugin knows."""


class ToolsSampled(Fact, frozen=True, kw_only=True):
    running: int
    waiting: int
    slots: int
    wait_s: float
    """Smoothed time a tool call spends waiting for its cores."""
    controls: str = ""
    """What holds commands to their leases, for people to read."""


CallEvent = CallQueued | CallStarted | CallPreempted | CallServed | CallFinished
ToolEvent = ToolQueued | ToolStarted | ToolProgressed | ToolFinished
SessionEvent = (
    SessionArrived
    | SessionAdmitted
    | SessionPaused
    | SessionReturned
    | CallEvent
    | KvHeld
    | KvDropped
    | KvReleased
    | ToolEvent
    | SessionEnded
)
OfNoSession = SessionRefused | GateShut | FailOpenChanged | EngineSampled | ToolsSampled
"""Of the machine, and of one who never came to be a session."""
Event = SessionEvent | OfNoSession
OF_GATEWAY: Final[frozenset[type[Event]]] = frozenset(
    {
        SessionArrived,
        SessionAdmitted,
        SessionPaused,
        SessionReturned,
        CallQueued,
        CallFinished,
        SessionEnded,
        SessionRefused,
        GateShut,
        FailOpenChanged,
    }
)
"""The facts of which the gateway is the source."""
