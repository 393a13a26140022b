"""Commands that run the system, and those for who runs it."""

import sys
from pathlib import Path

import click

from mars.cli.options import POSITIVE, fresh_folder, otlp_option, settings_options, with_otlp


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("model")
@click.option("--policy", help="Default: mars. `mars policies` lists them.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="The gateway's; 0: any free one.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="Logs. Default: runs/serve-<time>."
)
@otlp_option
@settings_options
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def serve(
    *,
    model: str,
    policy: str | None,
    host: str,
    port: int,
    folder: Path | None,
    otlp: str | None,
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

    folder = folder or fresh_folder("serve")
    options = StackOptions(
        model=model,
        settings=load_settings(config, with_otlp(overrides, otlp), policy),
        folder=folder,
        events=folder / "events.jsonl",
        host=host,
        port=port,
        vllm_args=vllm_args,
        tools_state=default_state_file(),
    )
    serve_until_interrupted(options, click.echo)


@click.command()
@click.option(
    "--upstream",
    required=True,
    multiple=True,
    metavar="URL",
    help="vLLM, e.g. http://127.0.0.1:8001; several: URL, or URL=ENDPOINT of its plugin's facts.",
)
@click.option("--policy", help="Default: mars.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option("--events", type=click.Path(path_type=Path), help="Write the event log here.")
@click.option("--log", "log_file", type=click.Path(path_type=Path), help="Default: stderr.")
@click.option("--publish", metavar="ENDPOINT", help="Publish our facts, e.g. ipc:///run/mars/gw.")
@click.option("--subscribe", multiple=True, metavar="ENDPOINT", help="Hear engine and tools.")
@otlp_option
@settings_options
def gateway(
    *,
    upstream: tuple[str, ...],
    policy: str | None,
    host: str,
    port: int,
    events: Path | None,
    log_file: Path | None,
    publish: str | None,
    subscribe: tuple[str, ...],
    otlp: str | None,
    overrides: tuple[str, ...],
    config: Path | None,
) -> None:
    """The gateway alone, before a vLLM that already runs (`mars serve` starts one for you).

    Its log is JSON lines on stderr, or in the file of --log.
    """
    import uvloop

    from mars.config import as_dict, load_settings
    from mars.gateway.journal import log_json
    from mars.gateway.run import serve as serve_gateway

    settings = load_settings(config, with_otlp(overrides, otlp), policy)
    log_json(settings.gateway.log_level, log_file)
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
            on_listening=lambda url: click.echo(f"gateway: {url} -> {', '.join(upstream)}"),
        )
    )


@click.command()
@click.option("--policy", help="Default: mars.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, help="Default: any free one.")
@click.option("--publish", metavar="ENDPOINT", help="Publish tool facts, e.g. ipc:///run/mars/tl.")
@click.option("--state", type=click.Path(path_type=Path), help="Where `mars exec` finds us.")
@settings_options
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


@click.command("exec")
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


@click.command()
@click.argument("name")
@click.option("--file", "path", required=True, type=click.Path(path_type=Path))
@click.option("--tenant", default="", help="Whose the sessions are that it opens.")
@click.option("--admin", is_flag=True, help="May use /mars/... and /metrics.")
def key(*, name: str, path: Path, tenant: str, admin: bool) -> None:
    """Make an API key for the gateway, show it once, and add its hash to a file.

    The gateway asks for keys when it is given that file: --set gateway.keys_file=FILE. To take a
    key back, delete its line; a gateway that runs sees that.
    """
    from mars.gateway.keys import make_key

    click.echo(make_key(path, name=name, tenant=tenant, admin=admin))


@click.command()
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--every", "every_s", default=1.0, show_default=True, type=POSITIVE, help="Seconds.")
@click.option("--once", is_flag=True, help="Print one frame with every session, and end.")
@click.option(
    "--key-file", type=click.Path(path_type=Path), help="An admin's key, if one is asked."
)
@click.option("--engine", help="URL of one of several engines: that one alone.")
def top(*, url: str, every_s: float, once: bool, key_file: Path | None, engine: str | None) -> None:
    """Watch a gateway live: sessions by phase, window, pressure, who waits and why.

    URL is the gateway's. q or Ctrl-C leaves.
    """
    from mars.bench.top import top_command

    top_command(url, every_s=every_s, once=once, key_file=key_file, engine=engine)


@click.command()
def policies() -> None:
    """List the policies: who enters, who runs, what stays warm, who gets cores."""
    from mars.policy.presets import PRESETS

    for name, preset in PRESETS.items():
        click.echo(f"{name:27} {preset.about}")
