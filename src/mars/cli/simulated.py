"""Commands that simulate."""

from pathlib import Path
from typing import Any

import click

from mars.cli.options import POSITIVE
from mars.core.leases import LEASES_A_CORE


@click.command()
@click.option("--profile", required=True, help="GPU/model, for example h100-nvl/qwen3-coder-30b.")
@click.option("--workload", required=True, help="A class (swe, ...), FILE.toml or TRACE.jsonl.")
@click.option("--policy", "policies", default="mars", show_default=True, help="A,B: a column each.")
@click.option("--sessions", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--rho", type=POSITIVE, help="Load; 1: the knee. Default: 0.9.")
@click.option("--rate", type=POSITIVE, help="Instead: sessions a second.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--tool-cores", default=16, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--tool-share",
    default=LEASES_A_CORE,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Leases on one core at once (tools.share).",
)
@click.option(
    "--host-gib",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0.0, 1e5),
    help="Host memory behind the KV (--kv-offloading-size).",
)
@click.option("--set", "overrides", multiple=True, metavar="scheduling.A.B=VALUE")
@click.option("--json", "as_json", is_flag=True, help="The figures for programs, a line a policy.")
@click.option("--events", type=click.Path(path_type=Path), help="Write the event log here.")
def simulate(**options: Any) -> None:
    """Simulate sessions on a GPU with tools on a CPU: no GPU is needed.

    The bounds that no policy can beat stand beside the figures.
    """
    from mars.compare.command import simulate_command

    simulate_command(**options)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Default: runs/NAME.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes. Default: one a core.")
def compare(config: Path, folder: Path | None, jobs: int | None) -> None:
    """Simulate a grid of cells, policies and seeds (CONFIG.toml), then report.

    The same command goes on where a stopped one ended.
    """
    from mars.compare.command import compare_command

    compare_command(config=config, folder=folder, jobs=jobs)


@click.command("bench-simulator")
@click.option("--policies", default="fcfs,mars", show_default=True)
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(min=1))
def bench_simulator(policies: str, repeat: int) -> None:
    """What a simulated run costs, by policy, number of sessions and turns."""
    from mars.compare.command import bench_simulator_command

    bench_simulator_command(policies.split(","), repeat=repeat)
