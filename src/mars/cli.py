"""The command line. Exit codes: 0 done, 2 bad input, 3 a part died, 4 a result is not valid."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mars.clients.command import miniswe, openhands
from mars.core.errors import InputError, MarsError

_Command = Callable[..., Any]
_POSITIVE = click.FloatRange(min=0, min_open=True)


def main() -> None:
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MarsError as error:
        click.echo(f"mars: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mars")
def cli() -> None:
    """Co-scheduling of GPU inference and CPU tools for fleets of LLM agents, on stock vLLM.

    `mars serve MODEL` starts everything; point any OpenAI client at the URL that it prints.
    """


cli.add_command(openhands)
cli.add_command(miniswe)


def _settings(command: _Command) -> _Command:
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="A.B=VALUE",
            help="One setting; repeatable.",
        ),
        click.option(
            "--config", type=click.Path(path_type=Path), help="Settings, a TOML or JSON file."
        ),
    ):
        command = option(command)
    return command


@cli.command(context_settings={"ignore_unknown_options": False})
@click.argument("model")
@click.option("--policy", help="Default: mars. `mars policies` lists them.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="The gateway's; 0: any free one.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="Logs. Default: runs/serve-<time>."
)
@_settings
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def serve(
    *,
    model: str,
    policy: str | None,
    host: str,
    port: int,
    folder: Path | None,
    overrides: tuple[str, ...],
    config: Path | None,
    vllm_args: tuple[str, ...],
) -> None:
    """Start vLLM with the scheduler plugin, the tool server and the gateway.

    What follows -- goes to vLLM, for example: mars serve Qwen/Qwen3-8B -- --max-model-len 32768
    """
    from mars.config import load_settings
    from mars.serve.command import serve_until_interrupted
    from mars.serve.stack import StackOptions
    from mars.tools.client import default_state_file

    folder = folder or _fresh_folder("serve")
    options = StackOptions(
        model=model,
        settings=load_settings(config, overrides, policy),
        folder=folder,
        events=folder / "events.jsonl",
        host=host,
        port=port,
        vllm_args=vllm_args,
        tools_state=default_state_file(),
    )
    serve_until_interrupted(options, click.echo)


@cli.command()
@click.option("--upstream", required=True, metavar="URL", help="vLLM, e.g. http://127.0.0.1:8001")
@click.option("--policy", help="Default: mars.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option("--events", type=click.Path(path_type=Path), help="Write the event log here.")
@click.option("--publish", metavar="ENDPOINT", help="Publish our facts, e.g. ipc:///run/mars/gw.")
@click.option("--subscribe", multiple=True, metavar="ENDPOINT", help="Hear engine and tools.")
@_settings
def gateway(
    *,
    upstream: str,
    policy: str | None,
    host: str,
    port: int,
    events: Path | None,
    publish: str | None,
    subscribe: tuple[str, ...],
    overrides: tuple[str, ...],
    config: Path | None,
) -> None:
    """The gateway alone, before a vLLM that already runs (`mars serve` starts one for you)."""
    import uvloop

    from mars.config import as_dict, load_settings
    from mars.gateway.run import serve as serve_gateway

    settings = load_settings(config, overrides, policy)
    uvloop.run(
        serve_gateway(
            host=host,
            port=port,
            upstream=upstream,
            scheduling=settings.scheduling,
            settings=settings.gateway,
            log=events,
            publish=publish,
            subscribe=subscribe,
            log_settings=as_dict(settings),
            on_listening=lambda url: click.echo(f"gateway: {url} -> {upstream}"),
        )
    )


@cli.command()
@click.option("--policy", help="Default: mars.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, help="Default: any free one.")
@click.option("--publish", metavar="ENDPOINT", help="Publish tool facts, e.g. ipc:///run/mars/tl.")
@click.option("--state", type=click.Path(path_type=Path), help="Where `mars exec` finds us.")
@_settings
def tools(
    *,
    policy: str | None,
    host: str,
    port: int,
    publish: str | None,
    state: Path | None,
    overrides: tuple[str, ...],
    config: Path | None,
) -> None:
    """The tool server alone (`mars serve` starts one for you)."""
    import secrets

    import uvloop

    from mars.config import load_settings
    from mars.policy.presets import build_tool_order
    from mars.tools.client import default_state_file
    from mars.tools.server import serve as serve_tools

    settings = load_settings(config, overrides, policy)
    uvloop.run(
        serve_tools(
            settings.tools,
            build_tool_order(settings.scheduling),
            host=host,
            port=port,
            token=secrets.token_urlsafe(32),
            publish=publish,
            state_file=state or default_state_file(),
            tell=click.echo,
        )
    )


@cli.command("exec")
@click.option("--session", default="", help="Session that the command belongs to.")
@click.option("--tool", default="", help="Name to learn durations by. Default: the command's.")
@click.option("--cores", default=1, show_default=True, help="Cores to lease.")
@click.option("--memory", "memory_bytes", type=int, help="Bytes to lease; default: the server's.")
@click.option(
    "--sandbox", is_flag=True, help="No network, own /tmp, read-only but for this folder."
)
@click.option("--timeout", "timeout_s", type=float, help="Seconds; the whole process tree ends.")
@click.option("--state", type=click.Path(path_type=Path), help="Another tool server's state file.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    *,
    session: str,
    tool: str,
    cores: int,
    memory_bytes: int | None,
    sandbox: bool,
    timeout_s: float | None,
    state: Path | None,
    argv: tuple[str, ...],
) -> None:
    """Run a command under a core lease: mars exec --session S -- pytest -q

    Ends with the command's exit code; 124 when it timed out.
    """
    from mars.tools.client import default_state_file, exec_command
    from mars.tools.wire import RunRequest

    request = RunRequest(
        argv=list(argv),
        session_id=session,
        tool=tool,
        cores=cores,
        memory_bytes=memory_bytes,
        sandbox=sandbox,
        timeout_s=timeout_s,
        cwd=str(Path.cwd()),
    )
    sys.exit(exec_command(request, state or default_state_file()))


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--policies", default="fcfs,session_fcfs,mars", show_default=True)
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--agents", type=click.IntRange(min=1), help="Closed loop: so many open sessions.")
@click.option("--rate", type=float, help="Open loop: sessions a second, Poisson.")
@click.option("--seed", default=1, show_default=True, help="Of the Poisson arrivals.")
@click.option("--sessions", type=click.IntRange(min=1), help="Only the first N of the trace.")
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Default: runs/<time>.")
@click.option("--model", help="Default: a tiny model with random weights, made on the spot.")
@click.option("--restart", is_flag=True, help="A fresh engine each round: one fits at a time.")
@_settings
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def replay(**options: Any) -> None:
    """Replay recorded sessions on a real vLLM under several policies, then report.

    TRACE is a file, or the name of a bundled one: coding, airline. What follows -- goes to vLLM.
    """
    from mars.bench.command import replay_command

    folder = options.pop("folder") or _fresh_folder("replay")
    replay_command(folder=folder, **options)


@cli.command("bench-agents")
@click.option("--client", default="openhands", show_default=True, help="Or miniswe.")
@click.option("--policies", default="fcfs,session_fcfs,mars", show_default=True)
@click.option("--agents", default=12, show_default=True, type=click.IntRange(min=1))
@click.option("--tasks", type=click.IntRange(min=1), help="Default: one an agent.")
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=1, show_default=True, help="Of the repositories and trajectories.")
@click.option("--tools", default="leased", show_default=True, help="Or own, or leased,own.")
@click.option("--python", type=click.Path(path_type=Path), help="The agents' environment's.")
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Default: runs/<time>.")
@click.option("--model", help="Default: a tiny model with random weights, made on the spot.")
@click.option("--kv-blocks", type=click.IntRange(min=1), help="Of the tiny model's KV cache.")
@click.option("--restart", is_flag=True, help="A fresh engine each round: one fits at a time.")
@_settings
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def bench_agents(**options: Any) -> None:
    """Real agents mend small repositories under several policies, then report.

    Their answers are recorded, and forced token by token on a real vLLM; commands are real: leased
    from the tool server, the agents' own, or both side by side (POLICY+own in the report). Needs an
    environment with the agents in it (make .venv-agents/.ready). What follows -- goes to vLLM.
    """
    from mars.bench.agents_command import bench_agents_command

    folder = options.pop("folder") or _fresh_folder("agents")
    bench_agents_command(folder=folder, **options)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The same figures for programs.")
@click.option("--page", type=click.Path(path_type=Path), help="Default: RUN/report.html.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Of a grid: its tables, too.")
def report(*, run: Path, as_json: bool, page: Path | None, markdown: Path | None) -> None:
    """Print a run's table and write its page. The event log is the only source of the figures.

    RUN is a folder of `mars replay`, or a grid's of `mars compare`.
    """
    from mars.compare.report import is_grid, report_grid

    if is_grid(run):
        report_grid(run, as_json=as_json, page=page, markdown=markdown)
        return
    if markdown is not None:
        raise InputError(f"--markdown: {run} is not the folder of a grid (it has no rows)")
    from mars.bench.report import report as report_run

    report_run(run, as_json=as_json, page=page)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("session", required=False)
@click.option("--policy", help="Of a replay: the rounds of one policy.")
@click.option("--repeat", type=click.IntRange(min=0), help="Of a replay: one repetition, from 0.")
@click.option("--stay", type=click.IntRange(min=1), help="Of an id that came again. Default: last.")
@click.option("--around", "around_s", type=float, help="Only the facts nearest to this second.")
@click.option("--last", type=click.IntRange(min=1), help="Only the last N facts.")
@click.option("--all", "everything", is_flag=True, help="Do not fold a long life, or cut the list.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs, never folded.")
def explain(*, policy: str | None, repeat: int | None, stay: int | None, **options: Any) -> None:
    """One session's life, fact by fact, with the reasons; without SESSION: the slowest ones.

    RUN is an event log, or the folder of `mars serve` or `mars replay`. SESSION is an id or its
    beginning.
    """
    from mars.bench.explain_command import Choice, explain_command

    explain_command(choice=Choice(policy=policy, repeat=repeat, stay=stay), **options)


@cli.command()
@click.option("--profile", required=True, help="GPU/model, for example h100-nvl/qwen3-coder-30b.")
@click.option("--workload", required=True, help="A class (swe, ...), FILE.toml or TRACE.jsonl.")
@click.option("--policy", "policies", default="mars", show_default=True, help="A,B: a column each.")
@click.option("--sessions", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--rho", type=_POSITIVE, help="Load; 1: the knee. Default: 0.9.")
@click.option("--rate", type=_POSITIVE, help="Instead: sessions a second.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--tool-cores", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--set", "overrides", multiple=True, metavar="scheduling.A.B=VALUE")
@click.option("--json", "as_json", is_flag=True, help="The figures for programs, a line a policy.")
@click.option("--events", type=click.Path(path_type=Path), help="Write the event log here.")
def simulate(**options: Any) -> None:
    """Simulate sessions on a GPU with tools on a CPU: no GPU is needed.

    The bounds that no policy can beat stand beside the figures.
    """
    from mars.compare.command import simulate_command

    simulate_command(**options)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Default: runs/NAME.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes. Default: one a core.")
def compare(config: Path, folder: Path | None, jobs: int | None) -> None:
    """Simulate a grid of cells, policies and seeds (CONFIG.toml), then report.

    The same command goes on where a stopped one ended.
    """
    from mars.compare.command import compare_command

    compare_command(config=config, folder=folder, jobs=jobs)


@cli.command()
def policies() -> None:
    """List the policies: who enters, who runs, what stays warm, who gets cores."""
    from mars.policy.presets import PRESETS

    for name, preset in PRESETS.items():
        click.echo(f"{name:27} {preset.about}")


@cli.command()
@click.argument("model", required=False)
@click.option("--upstream", metavar="URL", help="A vLLM that runs already.")
@click.option("--out", default=Path("profile.json"), type=click.Path(path_type=Path))
@click.option("--name", help="Default: the file's.")
@click.option("--step-tokens", type=click.IntRange(min=1), help="--max-num-batched-tokens of it.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Logs.")
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def calibrate(**options: Any) -> None:
    """Measure a real vLLM for a few minutes and write a cost profile for the simulator.

    Without MODEL and --upstream: the tiny model, on the CPU. What follows -- goes to vLLM.
    """
    from mars.bench.calibrating import calibrate_command

    folder = options.pop("folder") or _fresh_folder("calibrate")
    calibrate_command(folder=folder, **options)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--trace", default=Path("coding"), type=click.Path(path_type=Path), help="As played.")
@click.option("--profile", required=True, help="A cost profile: a name, or a file of calibrate.")
@click.option("--async-scheduling", is_flag=True, help="The engine's: vLLM's default on a GPU.")
def fidelity(*, run: Path, trace: Path, profile: str, async_scheduling: bool) -> None:
    """Simulate the sessions of a replay and print them beside what really happened."""
    from mars.bench.command import find_trace
    from mars.bench.fidelity import fidelity_command
    from mars.bench.measure import read_run
    from mars.sim.profiles import load_profile
    from mars.workload.trace import read_trace

    sessions = read_trace(find_trace(trace))[: read_run(run).settings["sessions"]]
    fidelity_command(run, sessions, load_profile(profile), lag=int(async_scheduling))


@cli.command("bench-scheduler")
@click.option("--policies", default="fcfs,session_fcfs,mars", show_default=True)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(min=3))
@click.option("--json", "as_json", is_flag=True)
def bench_scheduler(policies: str, rounds: int, as_json: bool) -> None:  # noqa: FBT001
    """What the plugin costs per scheduler step at 64 running and 256 waiting calls."""
    from mars.bench.command import bench_scheduler_command

    bench_scheduler_command(policies.split(","), rounds=rounds, as_json=as_json)


def _fresh_folder(kind: str) -> Path:
    import time

    folder = Path("runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists():
        raise InputError(f"{folder} exists: name another folder")
    return folder


@cli.command("bench-simulator")
@click.option("--policies", default="fcfs,mars", show_default=True)
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(min=1))
def bench_simulator(policies: str, repeat: int) -> None:
    """What a simulated run costs, by policy, number of sessions and turns."""
    from mars.compare.command import bench_simulator_command

    bench_simulator_command(policies.split(","), repeat=repeat)
