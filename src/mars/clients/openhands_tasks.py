"""`mars openhands TASKS.jsonl`: tasks worked on by OpenHands' default agent, so many at once."""

import http.client
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from mars.core.errors import InputError, ResultError

_ENDED: Final = (200, 404)  # it was there, or never got there


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of TASKS.jsonl."""

    task: str
    """What the agent is told."""
    workspace: str
    """Its folder."""
    conversation_id: uuid.UUID | None = None
    """The session's id; None: OpenHands makes one up."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    conversation_id: str
    status: str
    """OpenHands' own: `finished`, `stuck`, `error` ...; or what went wrong."""
    took_s: float


@dataclass(frozen=True, slots=True)
class AgentOptions:
    base_url: str
    """A gateway's, with /v1."""
    model: str
    api_key: str
    agents: int
    leases: bool
    """Terminals under leases of this machine's tool server; else the agent's own affair."""


def read_tasks(lines: Iterable[str]) -> list[Task]:
    """Raises InputError that names the line."""
    return [_task(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _task(number: int, line: str) -> Task:
    try:
        task = msgspec.json.decode(line, type=Task)
    except msgspec.DecodeError as error:
        raise InputError(f"task {number}: {error}") from None
    if not Path(task.workspace).is_dir():
        raise InputError(f"task {number}: workspace {task.workspace} is not a folder")
    return task


def run_tasks(tasks: list[Task], options: AgentOptions, tell: Callable[[str], None]) -> None:
    """A line of JSON (`Done`) for each as it ends.

    Raises InputError where OpenHands or the tool server is missing, ResultError in the end when a
    task did not finish.
    """
    failed = 0
    for done in _work(tasks, options):
        failed += done.status != "finished"
        tell(msgspec.json.encode(done).decode())
    if failed:
        raise ResultError(f"{failed} of {len(tasks)} tasks did not finish")


def _work(tasks: list[Task], options: AgentOptions) -> Iterator[Done]:
    # For litellm: no price list from the network. For the SDK: its banner is no line of ours.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("OPENHANDS_SUPPRESS_BANNER", "1")
    try:
        from mars.clients.openhands import lease_terminals
    except ModuleNotFoundError as error:
        raise InputError(
            f"OpenHands is not installed here ({error.name}): it needs Python 3.12 or later, and "
            "pip install 'mars[openhands]'"
        ) from None
    if options.leases:
        lease_terminals()
    with ThreadPoolExecutor(options.agents) as pool:
        for future in as_completed([pool.submit(_converse, task, options) for task in tasks]):
            yield future.result()


def _converse(task: Task, options: AgentOptions) -> Done:
    from openhands.sdk import LLM, Conversation
    from openhands.tools.preset.default import get_default_agent
    from pydantic import SecretStr

    began_s = time.monotonic()
    llm = LLM(
        model=f"openai/{options.model}",
        base_url=options.base_url,
        api_key=SecretStr(options.api_key),
        usage_id="agent",
    )
    conversation = Conversation(
        agent=get_default_agent(llm, cli_mode=True),
        workspace=task.workspace,
        conversation_id=task.conversation_id,
        visualizer=None,
    )
    try:
        conversation.send_message(task.task)
        conversation.run()
        status = conversation.state.execution_status.value
    except Exception as error:  # noqa: BLE001 - one conversation's end is not that of the others
        status = f"{type(error).__name__}: {error}"
    finally:
        conversation.close()
        _end_session(options.base_url, str(conversation.id))
    took_s = time.monotonic() - began_s
    return Done(conversation_id=str(conversation.id), status=status, took_s=took_s)


def _end_session(base_url: str, session_id: str) -> None:
    """Raises InputError when it is not a gateway that knows sessions."""
    gateway = http.client.HTTPConnection(urlsplit(base_url).netloc)
    try:
        gateway.request("DELETE", f"/mars/sessions/{session_id}")
        status = gateway.getresponse().status
    except OSError as error:
        raise InputError(f"no gateway at {base_url}: {error}") from None
    finally:
        gateway.close()
    if status not in _ENDED:
        raise InputError(f"{base_url} is not a mars gateway: HTTP {status} to the session's end")
