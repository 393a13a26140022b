"""Tasks for agents of any kind: lines of JSON in, so many at work at once, lines of JSON out."""

import http.client
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from mars.core.errors import InputError, MarsError, ResultError

FINISHED: Final = "finished"
_ENDED: Final = (200, 404)  # it was there, or never got there


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of TASKS."""

    task: str
    """What the agent is told."""
    workspace: str
    """Its folder."""
    conversation_id: uuid.UUID = msgspec.field(default_factory=uuid.uuid4)
    """The session's id."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    conversation_id: str
    status: str
    """`finished`, another end that the agent has a word for, or what went wrong."""
    took_s: float


@dataclass(frozen=True, slots=True)
class AgentOptions:
    base_url: str
    """A gateway's, with /v1."""
    model: str
    api_key: str
    agents: int
    """At once."""
    leases: bool
    """Commands under leases of this machine's tool server; else the agent's own affair."""
    state_file: Path
    """The tool server's."""


Work = Callable[[Task, AgentOptions], str]
"""Works on one task to its end; a status."""


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


def work_on(
    tasks: list[Task], options: AgentOptions, work: Work, tell: Callable[[str], None]
) -> None:
    """Tells a line (`Done`) for each task as it ends.

    Raises ResultError in the end when one did not finish, InputError and PartDiedError at once.
    """
    failed = 0
    with ThreadPoolExecutor(options.agents) as pool:
        try:
            for ended in as_completed([pool.submit(_one, task, options, work) for task in tasks]):
                done = ended.result()
                failed += done.status != FINISHED
                tell(msgspec.json.encode(done).decode())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise ResultError(f"{failed} of {len(tasks)} tasks did not finish")


def _one(task: Task, options: AgentOptions, work: Work) -> Done:
    began_s = time.monotonic()
    try:
        status = work(task, options)
    except MarsError:
        raise
    except Exception as error:  # noqa: BLE001 - one agent's end is not that of the others
        status = f"{type(error).__name__}: {error}"
    finally:
        end_session(options.base_url, str(task.conversation_id))
    took_s = time.monotonic() - began_s
    return Done(conversation_id=str(task.conversation_id), status=status, took_s=took_s)


def end_session(base_url: str, session_id: str) -> None:
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
