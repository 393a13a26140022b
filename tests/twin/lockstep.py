"""The simulator's Batcher and the real vLLM scheduler under our plugin, side by side in lock-step.

Both are given the same calls, tool facts, aborts and virtual time; after each step they must agree
in the tokens of every call, in who was preempted, who ended, in the number of free blocks, and in
the reasons that they give for what they did with memory.
"""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mars.core import events as ev
from mars.core.estimate import PrefillRate
from mars.core.family import start_s
from mars.core.ids import CallId, SessionId, ToolId
from mars.policy.base import CallView, EngineEvent
from mars.policy.presets import Scheduling, build_policy
from mars.sim.call import Batch, Call
from mars.sim.groups import make_batcher
from mars.sim.kv import Chain, Prefix
from mars.sim.settings import EngineSettings
from mars.sim.strides import Strides
from mars.vllm_plugin.bare import BLOCK_TOKENS, BareEngine, answer, random_prompt
from mars.vllm_plugin.scheduler import MarsScheduler

from .link import Link

STEP_TOKENS = 2048
MOST_CALLS = 8
MOST_STEPS = 20_000
HOST_BLOCK_S = 0.0003  # a context of 1,600 tokens: three steps
SHARED_TOKENS = 1000  # 62 whole blocks and a piece


@dataclass
class Turn:
    new_tokens: int
    output_tokens: int
    tool: str
    tool_s: float
    reset: bool
    patience_steps: int
    """Its client leaves after so many steps; 0: it does not."""


@dataclass
class Script:
    session_id: SessionId
    arrives_s: float
    parent_id: SessionId | None
    group: int
    """Sessions of a group begin with the same system prompt; 0: with none."""
    turns: list[Turn]
    turn: int = 0
    context: list[int] = field(default_factory=list)
    chain: Chain = field(default_factory=Chain)


def scripts(seed: int, *, shared: bool) -> list[Script]:
    rng = random.Random(seed)
    # Every third workload is of long answers, which outgrow the memory: preemptions.
    prompts = (1, 40, 300) if seed % 3 == 0 else (1, 40, 300, 1500, 5000)
    answers = (150, 300, 600) if seed % 3 == 0 else (1, 5, 40, 200)
    return [
        Script(
            session_id=SessionId(f"s{number}"),
            arrives_s=rng.uniform(0.0, 3.0),
            parent_id=SessionId(f"s{number - 1}") if number % 3 == seed % 3 else None,
            group=rng.choice((1, 1, 2, 0)) if shared else 0,
            turns=[
                Turn(
                    new_tokens=rng.choice(prompts) + rng.randrange(60),
                    output_tokens=rng.choice(answers) + rng.randrange(8),
                    tool=rng.choice(("ls", "make", "")),
                    tool_s=rng.choice((0.1, 2.0, 15.0)) * rng.random(),
                    reset=rng.random() < 0.1,
                    patience_steps=rng.randrange(1, 60) if rng.random() < 0.05 else 0,
                )
                for _ in range(rng.randrange(1, 5))
            ],
        )
        for number in range(rng.randrange(4, 14))
    ]


class Clock:
    now_s = 0.0


class Reasons:
    """Why memory was kept, dropped, released and taken."""

    def __init__(self) -> None:
        self._heard: list[str] = []

    def hear(self, event: ev.Event) -> None:
        match event:
            case ev.CallPreempted() | ev.KvHeld() | ev.KvDropped():
                assert event.why
                self._heard.append(f"{type(event).__name__} {event.session_id}: {event.why}")
            case ev.KvReleased():
                why = f"{event.why} {event.because}"
                self._heard.append(f"{type(event).__name__} {event.session_id}: {why}")
            case _:
                pass

    def take(self) -> list[str]:
        """Those since it was last asked, in an order of their own."""
        heard, self._heard = sorted(self._heard), []
        return heard


class Real:
    """vLLM's scheduler with our plugin, driven step by step; `lag` steps are in flight."""

    def __init__(
        self, model: str, scheduling: Scheduling, engine: EngineSettings, clock: Clock
    ) -> None:
        self.engine = BareEngine(
            MarsScheduler,
            model=model,
            blocks=engine.kv_blocks + 1,  # one is vLLM's null block
            most_calls=MOST_CALLS,
            step_tokens=STEP_TOKENS,
            context_tokens=100_000,
            async_scheduling=bool(engine.lag),
            window_tokens=engine.window_tokens,
            host_blocks=engine.host_blocks,
            mars={
                "scheduling": msgspec.to_builtins(scheduling),
                "rank_s": 0.0,
                "pcie_bytes_s": 2 * 4 * BLOCK_TOKENS / HOST_BLOCK_S,  # K and V, one head of size 1
            },
        )
        self.scheduler: Any = self.engine.scheduler
        self.scheduler._clock = lambda: clock.now_s
        self.scheduler._now_s = self.scheduler._updated_s = clock.now_s
        self.inbox: list[ev.Event] = []
        self.scheduler._wire.inbox = self._drain
        self.reasons = Reasons()
        self.scheduler._wire.emit = self.reasons.hear
        self.clock = clock
        self.link = Link(engine.host_block_s) if engine.host_blocks else None

    def _drain(self) -> list[ev.Event]:
        heard, self.inbox = self.inbox, []
        return heard

    def schedule(self) -> tuple[Any, Any]:
        """A step of vLLM, and what a model runner will answer to it."""
        output = self.scheduler.schedule()
        if self.link is not None:
            self.link.order(output.kv_connector_metadata, self.clock.now_s)
        return output, answer({r: self.scheduler.requests[r] for r in output.num_scheduled_tokens})

    def update(self, output: Any, answers: Any) -> set[str]:
        alive = set(output.num_scheduled_tokens) & set(self.scheduler.requests)
        if self.link is not None:
            answers.kv_connector_output = self.link.over(self.clock.now_s)
        self.scheduler.update_from_output(output, answers)
        return alive - set(self.scheduler.requests)


class Simulated:
    """The same, of the simulator."""

    def __init__(self, scheduling: Scheduling, engine: EngineSettings) -> None:
        self.rate, policy = PrefillRate(), build_policy(scheduling)
        self.batcher = make_batcher(engine, policy, self.rate, self._hear, keep_tokens=True)
        self.pool = self.batcher.pool
        self.strides = Strides(self.batcher, policy)
        self.left: list[ev.CallServed] = []
        self.reasons = Reasons()

    def _hear(self, event: ev.Event) -> None:
        self.reasons.hear(event)
        if isinstance(event, ev.CallServed):
            self.left.append(event)


@dataclass
class Step:
    """What both must agree in."""

    tokens: dict[str, int]
    preempted: list[str]
    ended: list[str]
    free: int
    reasons: list[str]


class Twin:
    def __init__(
        self,
        model: str,
        scheduling: Scheduling,
        seed: int,
        *,
        blocks: int,
        shared: bool,
        lag: int,
        window_tokens: int = 0,
        host_blocks: int = 0,
    ) -> None:
        self.clock = Clock()
        self.lag = lag
        engine = EngineSettings(
            kv_blocks=blocks,
            block_tokens=BLOCK_TOKENS,
            step_tokens=STEP_TOKENS,
            most_calls=MOST_CALLS,
            lag=lag,
            window_tokens=window_tokens,
            host_blocks=host_blocks,
            host_block_s=HOST_BLOCK_S,
        )
        self.real = Real(model, scheduling, engine, self.clock)
        self.sim = Simulated(scheduling, engine)
        self.scripts = {s.session_id: s for s in scripts(seed, shared=shared)}
        self.rng = random.Random(-seed)
        self.prefixes = {group: Prefix(SHARED_TOKENS // BLOCK_TOKENS) for group in (1, 2)}
        self.due: dict[SessionId, float] = {}
        for script in self.scripts.values():
            self.due[script.session_id] = script.arrives_s
            self._new_chain(script)
        self.tools: dict[SessionId, list[tuple[float, ev.Event]]] = {}
        self.open: dict[SessionId, tuple[Call, str, int]] = {}
        self.heard: list[EngineEvent] = []
        self.starts_s: dict[SessionId, float] = {}
        self.capacity_tokens = engine.longest_context_tokens
        self.seed = seed
        self.updated_s = 0.0
        self.steps = self.preemptions = self.holds = 0
        self.ended_real: set[str] = set()

    def _new_chain(self, script: Script) -> None:
        script.chain = Chain(self.prefixes[script.group]) if script.group else Chain()

    def play(self) -> None:
        """Raises AssertionError at the first step in which they differ."""
        in_flight: deque[tuple[Any, Any, Batch, float]] = deque()
        while self.due or self.open or in_flight or not self.sim.batcher.is_idle:
            now_s = self.clock.now_s
            self._come(now_s)
            if not self.open and not in_flight and self.sim.batcher.is_idle:
                self.clock.now_s = min(self.due.values(), default=now_s)
                continue
            self._leave(now_s)
            self._tell()
            output, answers, batch = self._schedule(now_s)
            if output.num_scheduled_tokens:
                in_flight.append((output, answers, batch, now_s))
            if in_flight and (len(in_flight) > self.lag or not output.num_scheduled_tokens):
                self._update(*in_flight.popleft())
            elif not in_flight:
                self.clock.now_s = self._next_s(now_s)
                self.real.update(output, answers)  # a step of vLLM without a token
            self.steps += 1
            assert self.steps < MOST_STEPS, "livelock"
        assert self.sim.batcher.is_idle

    def _next_s(self, now_s: float) -> float:
        """When something next happens in an engine in which nothing runs, though calls wait."""
        told_s = (at_s for facts in self.tools.values() for at_s, _ in facts[:1])
        return min([self.sim.strides.next_try_s(now_s), *self.due.values(), *told_s])

    def _come(self, now_s: float) -> None:
        for session_id in sorted(s for s, at_s in self.due.items() if at_s <= now_s):
            del self.due[session_id]
            self._ask(self.scripts[session_id], now_s)

    def _ask(self, script: Script, now_s: float) -> None:
        turn, session_id = script.turns[script.turn], script.session_id
        if turn.reset and script.turn:
            script.context = []
            self._new_chain(script)
        fresh = random_prompt(hash((self.seed, session_id, script.turn)), turn.new_tokens)
        if not script.context and script.group:
            script.context = random_prompt(script.group, SHARED_TOKENS)
        script.context = script.context + fresh
        if len(script.context) + turn.output_tokens + BLOCK_TOKENS > self.capacity_tokens:
            self._end(script)  # vLLM refuses what can never fit
            return
        if script.turn == 0:
            arrived = ev.SessionArrived(
                at_s=script.arrives_s,
                session_id=session_id,
                parent_id=script.parent_id,
                tenant=str(script.group),
            )
            self.starts_s[session_id] = start_s(arrived, self.starts_s)
            self._both(arrived)
        self._tell()
        name = f"{session_id}/{script.turn}"
        self.real.engine.add(name, list(script.context), turn.output_tokens, session_id)
        view = CallView(
            call_id=CallId(name),
            session_id=session_id,
            queued_s=now_s,
            session_arrived_s=self.starts_s[session_id],
            prompt_tokens=len(script.context),
        )
        call = self.sim.batcher.add(view, script.chain, turn.output_tokens)
        self.open[session_id] = (call, name, self.steps + turn.patience_steps)

    def _both(self, event: EngineEvent) -> None:
        self.real.inbox.append(event)
        self.heard.append(event)

    def _tell(self) -> None:
        """Tool facts that are due: the plugin reads its inbox at intake and at each step."""
        now_s = self.clock.now_s
        for session_id in sorted(self.tools):
            facts = self.tools[session_id]
            while facts and facts[0][0] <= now_s:
                self._both(facts.pop(0)[1])  # type: ignore[arg-type]
        self.real.scheduler._hear(now_s)
        for event in self.heard:
            self.sim.batcher.hear(event, now_s)
        self.heard.clear()

    def _leave(self, now_s: float) -> None:
        for session_id, (call, name, leaves) in list(self.open.items()):
            script = self.scripts[session_id]
            if script.turns[script.turn].patience_steps and self.steps >= leaves:
                from vllm.v1.request import RequestStatus  # noqa: PLC0415

                self.real.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
                self.sim.batcher.abort(call, now_s)
                del self.open[session_id]
                script.context = script.context[: -1 - self.rng.randrange(10)] or [1]
                self._new_chain(script)  # the answer is lost: another context
                self._end(script)

    def _schedule(self, now_s: float) -> tuple[Any, Any, Batch]:
        output, answers = self.real.schedule()
        batch = self.sim.batcher.schedule(now_s)
        self.sim.batcher.check()
        real = Step(
            dict(output.num_scheduled_tokens),
            sorted(output.preempted_req_ids or ()),
            [],
            self.real.engine.free_blocks,
            self.real.reasons.take(),
        )
        simulated = Step(
            batch.tokens,
            sorted(str(c.view.call_id) for c in batch.preempted),
            [],
            self.sim.pool.free,
            self.sim.reasons.take(),
        )
        assert simulated == real, (
            f"step {self.steps} at {now_s}: scheduled: {simulated}, vLLM: {real}"
        )
        self.preemptions += len(batch.preempted)
        return output, answers, batch

    def _update(self, output: Any, answers: Any, batch: Batch, scheduled_s: float) -> None:
        took_s = 0.01 + 1e-4 * sum(output.num_scheduled_tokens.values())
        self.clock.now_s += took_s
        now_s = self.clock.now_s
        began_s, self.updated_s = max(scheduled_s, self.updated_s), now_s
        ended = self.real.update(output, answers)
        self.sim.left.clear()
        self.sim.batcher.update(batch, now_s)
        self.sim.rate.observe(batch.all_tokens, now_s - began_s)
        self.holds = max(self.holds, len(list(self.sim.batcher.holds)))
        left = sorted(str(e.call_id) for e in self.sim.left)
        real = Step({}, [], sorted(ended), self.real.engine.free_blocks, self.real.reasons.take())
        simulated = Step({}, [], left, self.sim.pool.free, self.sim.reasons.take())
        where = f"step {self.steps} at {now_s}, over"
        assert simulated == real, f"{where}: {simulated}, vLLM: {real}"
        assert sorted(self.sim.batcher.holds) == sorted(self.real.scheduler._holds)
        for name in sorted(ended):
            session_id = SessionId(name.split("/")[0])
            del self.open[session_id]
            self._acted(self.scripts[session_id], now_s)

    def _acted(self, script: Script, now_s: float) -> None:
        """An answer: its tool starts, or the session is over."""
        turn, session_id = script.turns[script.turn], script.session_id
        script.context = script.context + [7] * turn.output_tokens
        script.turn += 1
        if script.turn == len(script.turns):
            self._end(script)
            return
        back_s = now_s + turn.tool_s
        self.due[session_id] = back_s
        if turn.tool:
            who: dict[str, Any] = {
                "session_id": session_id,
                "tool_id": ToolId(f"{session_id}.{script.turn}"),
                "tool": turn.tool,
            }
            started_s = now_s + turn.tool_s * 0.2
            self.tools[session_id] = [
                (now_s, ev.ToolQueued(at_s=now_s, cores=1, **who)),
                (started_s, ev.ToolStarted(at_s=started_s, cores=(1,), wait_s=0.0, **who)),
                (
                    back_s,
                    ev.ToolFinished(
                        at_s=back_s,
                        run_s=back_s - started_s,
                        cpu_s=0.0,
                        peak_memory_bytes=0,
                        exit_code=0,
                        **who,
                    ),
                ),
            ]

    def _end(self, script: Script) -> None:
        script.turn = len(script.turns)
        self.due.pop(script.session_id, None)
        self.starts_s.pop(script.session_id, None)
        self._both(ev.SessionEnded(at_s=self.clock.now_s, session_id=script.session_id, why=""))
