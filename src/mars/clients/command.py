"""Agents of other projects at a terminal; in the agent's own environment, without vLLM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import click

_Command = Callable[..., Any]


def _of_agents(command: _Command) -> _Command:
    for option in (
        click.argument("tasks", type=click.File()),
        click.option("--base-url", default="http://127.0.0.1:8000/v1", show_default=True),
        click.option("--model", required=True, help="As the gateway's engine names it."),
        click.option("--api-key", default="none", show_default=True),
        click.option("--agents", default=1, show_default=True, type=click.IntRange(min=1)),
        click.option("--leases/--no-leases", default=True, help="Of `mars tools`; default: with."),
        click.option("--state", type=click.Path(path_type=Path), help="Another tool server's."),
    ):
        command = option(command)
    return command


@click.command()
@_of_agents
def openhands(**options: Any) -> None:
    """Work on tasks with OpenHands' default agent, its terminals under core leases.

    TASKS has a line of JSON for each: {"task": "what to do", "workspace": "/a/folder"}. Prints a
    line for each as it ends. With --no-leases agents run their commands as they do without mars.
    """
    from mars.clients.openhands_tasks import openhands_work

    _work(openhands_work, **options)


@click.command()
@_of_agents
def miniswe(**options: Any) -> None:
    """Work on tasks with mini-swe-agent's default agent, its commands under core leases.

    TASKS and options are as those of `mars openhands`.
    """
    from mars.clients.miniswe_tasks import miniswe_work

    _work(miniswe_work, **options)


def _work(of: Callable[[Any], Any], *, tasks: TextIO, state: Path | None, **options: Any) -> None:
    from mars.clients.task import AgentOptions, read_tasks, work_on
    from mars.tools.client import default_state_file

    agents = AgentOptions(state_file=state or default_state_file(), **options)
    work_on(read_tasks(tasks), agents, of(agents), click.echo)
