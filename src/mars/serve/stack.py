"""What `mars serve` starts, and with which words.

    engine   vLLM's API server with our scheduler    publishes what the engine sees
    tools    `mars tools`                            publishes what the tool runtime sees
    gateway  `mars gateway`                          publishes what the gateway sees, writes the log

Each hears the other two over ipc sockets in a private folder.
"""

import contextlib
import json
import random
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from mars.config import Settings, save_settings
from mars.core.errors import InputError
from mars.gateway.traces import check_otel
from mars.serve.parts import Part, Parts
from mars.tools.client import find_server

_OURS: Final = ("--scheduler-cls", "--additional-config", "--port", "--host", "--model")
_GIVEN_TO_CLIENTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT: Final = 10_000


@dataclass(frozen=True, slots=True)
class StackOptions:
    model: str
    settings: Settings
    folder: Path
    """Logs of the parts, the event log, the tool server's state file."""
    events: Path
    """The event log."""
    host: str = "127.0.0.1"
    port: int = 8000
    """The gateway's; 0: any free one."""
    vllm_args: Sequence[str] = ()
    engine_env: Mapping[str, str] = field(default_factory=dict)
    tools_state: Path | None = None
    """Where clients of the tool server find it; None: in `folder`."""
    ready_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Stack:
    parts: Parts
    base_url: str
    """What a client is given: the gateway's `/v1`."""
    gateway_url: str
    engine_url: str
    tools_url: str
    tools_token: str
    tools_state: Path
    """Where clients of the tool server find it."""


@asynccontextmanager
async def running_stack(options: StackOptions, tell: Callable[[str], None]) -> AsyncIterator[Stack]:
    """Everything is ready inside, and gone after. Raises InputError, PartDiedError."""
    taken = [arg for arg in options.vllm_args if arg.split("=")[0] in _OURS]
    if taken:
        raise InputError(f"mars sets {', '.join(taken)} itself: leave it out of the vLLM arguments")
    check_otel(options.settings.gateway.otlp)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.port:
        check_free(options.host, options.port)
    engine_port, tools_port, any_port = free_ports(3)
    port = options.port or any_port
    state = options.tools_state or options.folder / "tools.json"
    with tempfile.TemporaryDirectory(prefix="mars-") as links:  # ipc paths must be short
        async with Parts() as parts:
            tell(f"starting vLLM with {options.model} (log: {options.folder / 'engine.log'})")
            for part in _parts(options, Path(links), (engine_port, tools_port, port), state):
                await parts.start(part)
            await parts.ready(options.ready_s, tell)
            tools_url, token = find_server(state)
            gateway_url = f"http://{options.host}:{port}"
            yield Stack(
                parts=parts,
                base_url=f"{gateway_url}/v1",
                gateway_url=gateway_url,
                engine_url=f"http://127.0.0.1:{engine_port}",
                tools_url=tools_url,
                tools_token=token,
                tools_state=state,
            )


def _parts(
    options: StackOptions, links: Path, ports: tuple[int, int, int], state: Path
) -> list[Part]:
    engine, tools, gateway = (f"ipc://{links}/{name}" for name in ("engine", "tools", "gateway"))
    config = options.folder / "settings.json"
    save_settings(options.settings, config)
    engine_port, tools_port, port = ports
    engine_url, tools_url = f"http://127.0.0.1:{engine_port}", f"http://127.0.0.1:{tools_port}"
    mars = [sys.executable, "-m", "mars"]
    return [
        Part(
            name="engine",
            argv=engine_argv(
                options,
                engine_port,
                {
                    "scheduling": msgspec.to_builtins(options.settings.scheduling),
                    "publish": engine,
                    "subscribe": [tools, gateway],
                },
            ),
            ready_url=f"{engine_url}/health",
            log=options.folder / "engine.log",
            env=options.engine_env,
            end_s=20.0,
        ),
        Part(
            name="tool server",
            argv=[
                *mars, "tools", "--config", str(config), "--port", str(tools_port),
                "--publish", tools, "--state", str(state),
            ],
            ready_url=f"{tools_url}/health",
            log=options.folder / "tools.log",
        ),
        Part(
            name="gateway",
            argv=[
                *mars, "gateway", "--config", str(config), "--upstream", engine_url,
                "--host", options.host, "--port", str(port), "--events", str(options.events),
                "--publish", gateway, "--subscribe", engine, "--subscribe", tools,
            ],
            ready_url=f"http://{options.host}:{port}/health",
            log=options.folder / "gateway.log",
        ),
    ]  # fmt: skip


def engine_argv(options: StackOptions, port: int, plugin: Mapping[str, Any]) -> list[str]:
    """The entry point in vLLM: its script refuses to start under the CPU distribution's name."""
    return [
        sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry",
        "--model", options.model,
        "--host", "127.0.0.1",
        "--port", str(port),
        "--scheduler-cls", "mars.vllm_plugin.scheduler.MarsScheduler",
        "--additional-config", json.dumps({"mars": plugin}),
        *options.vllm_args,
    ]  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now.

    Below those that the system gives to connections: a part takes half a minute to listen on its
    port, and any client on the machine could be given it meanwhile.
    """
    first = int(_GIVEN_TO_CLIENTS.read_text().split()[0])
    candidates = list(range(_FIRST_PORT, max(first, _FIRST_PORT + 10 * count)))
    random.SystemRandom().shuffle(candidates)
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            probe = stack.enter_context(contextlib.closing(socket.socket()))
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", candidates[-1]))
                found.append(candidates[-1])
            candidates.pop()
    return found


def check_free(host: str, port: int) -> None:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another with --port"
            ) from None
