"""Agents of other projects, unmodified, in their own environment, against a whole `mars serve`."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from tests.e2e.conftest import Served, start

from mars.bench.forcing import Answer, Forcing, record
from mars.bench.tiny import tiny_engine_for_agents
from mars.core import events as ev

PYTHON = Path(__file__).parents[2] / ".venv-agents" / "bin" / "python"
E = TypeVar("E", bound=ev.SessionEvent)
F = TypeVar("F", bound=ev.Event)


@dataclass(frozen=True)
class Ran:
    code: int
    said: str
    complained: str


class Fleet:
    """Agents before a server, their answers known beforehand."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def of(self, kind: type[E], session_id: str) -> list[E]:
        """What the event log says of a session."""
        events = (event for event in self.served.events() if isinstance(event, kind))
        return [event for event in events if event.session_id == session_id]

    def last(self, kind: type[F]) -> F:
        """The newest of a kind."""
        return [event for event in self.served.events() if isinstance(event, kind)][-1]

    @asynccontextmanager
    async def forcing(self, answers: Mapping[str, Sequence[Answer]]) -> AsyncIterator[str]:
        """Gives the base URL for agents; `answers` by the statement of their task."""
        forcing = Forcing(record(answers, self.served.model))
        async with forcing.before(self.served.root) as url:
            yield f"{url}/v1"
        assert forcing.unknown == []

    async def python(self, *arguments: str, cwd: Path) -> Ran:
        """Run the agents' Python; it finds the tool server as a user's does."""
        process = await asyncio.create_subprocess_exec(
            str(PYTHON),
            *arguments,
            cwd=cwd,
            env={
                **os.environ,
                "XDG_RUNTIME_DIR": str(self.served.runtime),
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no list of prices from the network
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await process.communicate()
        assert process.returncode is not None
        return Ran(process.returncode, said.decode(), complained.decode())


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    assert PYTHON.exists(), "the agents' environment is missing: make .venv-agents/.ready"
    engine = tiny_engine_for_agents(kv_blocks=1500)
    served = start(tmp_path_factory.mktemp("fleet"), "--set", "tools.share=2", engine=engine)
    try:
        served.wait_until_ready()
        yield Fleet(served)
    finally:
        served.process.send_signal(signal.SIGINT)
        said = served.rest()
    assert served.process.returncode == 0, said
