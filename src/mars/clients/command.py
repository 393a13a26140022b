"""Agents of other projects at a terminal; in the agent's own environment, without vLLM."""

from typing import TextIO

import click


@click.command()
@click.argument("tasks", type=click.File())
@click.option("--base-url", default="http://127.0.0.1:8000/v1", show_default=True)
@click.option("--model", required=True, help="As the gateway's engine names it.")
@click.option("--api-key", default="none", show_default=True)
@click.option("--agents", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--leases/--no-leases", default=True, show_default=True, help="Of `mars tools`.")
def openhands(tasks: TextIO, **options: object) -> None:
    """Work on tasks with OpenHands' default agent, its terminals under core leases.

    TASKS has a line of JSON for each: {"task": "what to do", "workspace": "/a/folder"}. Prints a
    line for each as it ends. With --no-leases agents run their commands as they do without mars.
    """
    from mars.clients.openhands_tasks import AgentOptions, read_tasks, run_tasks

    run_tasks(read_tasks(tasks), AgentOptions(**options), click.echo)  # type: ignore[arg-type]
