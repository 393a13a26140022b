"""`mars bench-agents`: real agents, unmodified, on real repositories, under several policies.

Each round starts the agents' own process in the agents' own environment, gives every agent a fresh
repository at the same place, and checks what they leave: tests pass, all is committed, and git's
tree is the same in every round. What the model answers is forced (`forcing`), what commands do and
how long they take is not.

Side by side: agents whose commands are `leased` from the tool server, which reports them to the
scheduler, and agents that run their `own` commands, of which nobody hears.
"""

import asyncio
import os
import time
import uuid
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from mars.bench import record
from mars.bench.forcing import Answer, Forcing, Recording
from mars.bench.forcing import record as recorded
from mars.bench.interleave import Plan, Watcher, drained, interleaved, start_alike, while_alive
from mars.bench.repositories import Task
from mars.bench.turns import in_turn
from mars.clients.task import Done
from mars.core.errors import ResultError
from mars.core.ids import SessionId
from mars.serve.parts import log_end
from mars.serve.stack import Stack
from mars.stream.log import LogWriter
from mars.workload.trace import Turn

_ROUND_S: Final = 3600.0
_WARM_UP: Final = Turn(new_tokens=200, output_tokens=20)


Runner = Literal["leased", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A command of `mars` that works on tasks, and how its agent's model calls tools."""

    command: str
    tool: str
    """By which it runs a command."""
    last: tuple[str, dict[str, Any]]
    """The call that ends the conversation."""
    kv_blocks: int
    """Of the tiny model: about half of what twelve conversations have at their ends, what they
    share counted once."""
    layers: int
    """Of the tiny model: a whole context takes it a second or two."""

    def answers(self, task: Task) -> list[Answer]:
        steps = [Answer(s.says, [(self.tool, {"command": s.command})]) for s in task.steps]
        return [*steps, Answer("The tests pass, the mistake is mended.", [self.last])]


CLIENTS: Final = {
    "openhands": Client(
        command="openhands",
        tool="terminal",
        last=("finish", {"message": "Mended, tested and committed."}),
        kv_blocks=2200,
        layers=1,
    ),
    "miniswe": Client(
        command="miniswe",
        tool="bash",
        last=("bash", {"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"}),
        kv_blocks=1500,
        layers=4,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsOptions(Plan):
    client: Client
    python: Path
    """Of the agents' environment."""
    tasks: Sequence[Task]
    agents: int
    runners: Sequence[Runner]
    """Who runs agents' commands; several: each policy has a round with each, on the same stack."""
    cores: frozenset[int]
    """Where agents, and the commands that they run themselves, may run."""


async def bench_agents(options: AgentsOptions, watcher: Watcher) -> None:
    """Run it all and leave a run folder (mars.bench.record).

    Raises InputError, PartDiedError (a server failed), ResultError (a task is not done as
    recorded, or an agent failed).
    """
    options.make_folder()
    answers = {task.statement: options.client.answers(task) for task in options.tasks}
    recordings = recorded(answers, options.model)
    log = LogWriter(options.folder / "run.jsonl", _head(options))

    async def play(stack: Stack, policy: str, repeat: int) -> None:
        for runner in in_turn(options.runners, repeat):
            await _Round(options, policy, runner, repeat, log, watcher).play(stack, recordings)

    try:
        await interleaved(options, watcher, play)
    finally:
        log.close()


@dataclass(frozen=True, slots=True)
class _Round:
    options: AgentsOptions
    policy: str
    runner: Runner
    repeat: int
    log: LogWriter
    watcher: Watcher

    @property
    def name(self) -> str:
        """What figures are printed under."""
        return self.policy if self.runner == "leased" else f"{self.policy}+own"

    async def play(self, stack: Stack, recordings: dict[str, Recording]) -> None:
        tasks = self.options.tasks
        who: dict[str, Any] = {"policy": self.name, "repeat": self.repeat}
        await asyncio.to_thread(self._make)
        await start_alike(stack, self.options.model, _WARM_UP, self.repeat)
        self.watcher.round_started(self.name, self.repeat, len(tasks))
        self.log.write(
            record.RoundStarted(at_s=time.monotonic(), sessions=len(tasks), log=self.policy, **who)
        )
        forcing = Forcing(recordings)
        async with forcing.before(stack.gateway_url) as url, asyncio.timeout(_ROUND_S):
            await while_alive(stack, self._run(stack, f"{url}/v1"))
        if forcing.unknown:
            raise ResultError(f"an agent asked for what is not recorded: {forcing.unknown[0]}")
        await drained(stack)
        for task in tasks:
            tree = await asyncio.to_thread(task.check, self._folder(task))
            self.log.write(
                record.SessionAnswered(
                    at_s=time.monotonic(),
                    session_id=SessionId(str(self._session(task))),
                    recorded_id=task.name,
                    answer_tokens=sum(map(len, recordings[task.statement])),
                    answers_sha256=tree,
                    **who,
                )
            )
        self.log.write(record.RoundEnded(at_s=time.monotonic(), **who))
        self.log.flush()

    def _make(self) -> None:
        for task in self.options.tasks:
            task.make(self._folder(task))

    def _folder(self, task: Task) -> Path:
        """The same in every round: agents tell the model where they are."""
        return (self.options.folder / "work" / task.name).resolve()

    def _session(self, task: Task) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{self.name}/{self.repeat}/{task.name}")

    async def _run(self, stack: Stack, base_url: str) -> None:
        """The agents' process from its start to its end, with a bar that moves."""
        file = self.options.folder / "tasks.jsonl"
        lines = [
            {
                "task": task.statement,
                "workspace": str(self._folder(task)),
                "conversation_id": str(self._session(task)),
            }
            for task in self.options.tasks
        ]
        file.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        complaints = self.options.folder / f"agents-{self.policy}-{self.runner}-{self.repeat}.log"
        async with _process(self._argv(stack, base_url, file), complaints, self.options) as agents:
            assert agents.stdout is not None  # noqa: S101
            async for line in agents.stdout:
                done = msgspec.json.decode(line, type=Done)
                self.watcher.session_done(self.name, done.took_s)
            if code := await agents.wait():
                raise ResultError(
                    f"the agents ended with exit code {code}; their log is {complaints}\n"
                    f"{log_end(complaints)}"
                )

    def _argv(self, stack: Stack, base_url: str, tasks: Path) -> list[str]:
        options = self.options
        return [
            str(options.python), "-m", "mars", options.client.command, str(tasks),
            "--base-url", base_url, "--model", options.model, "--agents", str(options.agents),
            "--state", str(stack.tools_state),
            "--leases" if self.runner == "leased" else "--no-leases",
        ]  # fmt: skip


@asynccontextmanager
async def _process(
    argv: list[str], complaints: Path, options: AgentsOptions
) -> AsyncIterator[asyncio.subprocess.Process]:
    with complaints.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, options.cores),
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _head(options: AgentsOptions) -> dict[str, Any]:
    return {
        "client": options.client.command,
        "runners": list(options.runners),
        "sessions": len(options.tasks),
        "turns": sum(len(task.steps) + 1 for task in options.tasks),
        "load": f"closed loop, {options.agents} agents",
        **options.head(),
    }
