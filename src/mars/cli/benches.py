"""Commands that measure a part, or wear it out."""

from pathlib import Path
from typing import Any, Final

import click

from mars.cli.options import POSITIVE, fresh_folder

_ROUNDS: Final = click.option(
    "--rounds",
    default=6,
    show_default=True,
    type=click.IntRange(min=1),
    help="An even number keeps a drift of the machine out of the figures.",
)


@click.command("bench-scheduler")
@click.option("--policies", default="fcfs,session_fcfs,mars", show_default=True)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(min=3))
@click.option("--json", "as_json", is_flag=True)
def bench_scheduler(policies: str, rounds: int, as_json: bool) -> None:  # noqa: FBT001
    """What the plugin costs per scheduler step at 64 running and 256 waiting calls."""
    from mars.bench.command import bench_scheduler_command

    bench_scheduler_command(policies.split(","), rounds=rounds, as_json=as_json)


@click.command("bench-gateway")
@click.option("--engine", metavar="URL", help="A real engine. Default: a stub that costs nothing.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME=COMMAND",
    help="Another gateway in the same run: {engine} is its engine's URL, {port} its port.",
)
@click.option("--policy", default="mars", show_default=True)
@_ROUNDS
@click.option("--seconds", default=3.0, show_default=True, type=POSITIVE, help="Of each load.")
@click.option("--json", "as_json", is_flag=True)
def bench_gateway(**options: Any) -> None:
    """What the gateway adds, direct and through it in turns: latency, throughput, memory.

    The gateway has one core, the load and the stub engine the others. Example of a peer:
    --peer 'rust=vllm-router --worker-urls {engine} --port {port}'
    """
    from mars.bench.gateway_command import bench_gateway_command

    bench_gateway_command(**options)


@click.command("bench-tools")
@click.argument("model", required=False)
@click.option("--per-core", default=4, show_default=True, type=click.IntRange(1, 64))
@_ROUNDS
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="One setting.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Logs.")
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def bench_tools(**options: Any) -> None:
    """What busy tools do to engine and gateway: leased, and started beside the tool server.

    Without MODEL: the tiny model, on the CPU. What follows -- goes to vLLM.
    """
    from mars.bench.beside_tools import bench_tools_command

    folder = options.pop("folder") or fresh_folder("bench-tools")
    bench_tools_command(folder=folder, **options)


@click.command()
@click.option("--minutes", default=20.0, show_default=True, type=POSITIVE)
@click.option("--agents", default=60, show_default=True, type=click.IntRange(min=1))
@click.option("--policy", default="mars", show_default=True)
@click.option("--restart", "restart_s", default=15.0, show_default=True, help="An engine, seconds.")
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def soak(**options: Any) -> None:
    """Keep a gateway before two stub engines under churn, and see that nothing is left of it.

    Agents come, cancel, vanish; engines are killed and started again. Ends with 4 when memory,
    descriptors or sessions have grown, or a law of the event log is broken.
    """
    from mars.bench.soak_command import soak_command

    soak_command(**options)
