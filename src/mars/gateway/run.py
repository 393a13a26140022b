"""The gateway as a process: listens, hears the others, keeps the log, and stops cleanly."""

import asyncio
import gc
import logging
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from mars.core.control import ControlPlane
from mars.core.errors import InputError, PartDiedError
from mars.core.events import Event
from mars.core.quotas import Quotas
from mars.core.slots import Slots
from mars.gateway.app import GateApp, build_app
from mars.gateway.desk import Desk
from mars.gateway.journal import Journal
from mars.gateway.keys import KeyRing
from mars.gateway.places import Place, read_places
from mars.gateway.protocol import GatewayProtocol
from mars.gateway.record import of_process, recording
from mars.gateway.served import LOOK_S, Served, every, one_engine, several_engines
from mars.gateway.settings import GatewaySettings
from mars.gateway.traces import tracing
from mars.gateway.upstream import base_url
from mars.policy.presets import Scheduling, build_admission
from mars.stream.link import Publisher

_log: Final = logging.getLogger(__name__)
_FLUSH_S: Final = 0.2
_GRACE_S: Final = 1.0
"""When the gateway is stopped, answers have so long to end; then their clients get an error."""
_STUCK_S: Final = 5
"""Then so long for clients that do not read; whole seconds, as uvicorn wants."""
_KEEP_S: Final = 75
"""An idle client connection is kept so long: longer than clients keep theirs, so that none of
them sends into a connection that is being closed."""


async def serve(
    *,
    host: str,
    port: int,
    upstream: Sequence[str],
    scheduling: Scheduling,
    settings: GatewaySettings,
    log: Path | None,
    publish: str | None,
    subscribe: Sequence[str],
    log_settings: dict[str, Any],
    on_listening: Callable[[str], None],
) -> None:
    """Serve until SIGINT, SIGTERM or cancellation. Meant for `uvloop.run`.

    `upstream`: the engine, URL; or several, URL or URL=ENDPOINT where its plugin publishes facts.
    `port` 0 takes a free one; `on_listening` is told the address, http://host:port. `log_settings`
    goes into the head of the log. Raises InputError when an address, the log or the keys cannot be
    used, or spans cannot be made; PartDiedError when the server stops by itself.
    """
    with ExitStack() as stack:
        places = _left_behind(log)
        traces = stack.enter_context(tracing(settings.otlp))
        record = stack.enter_context(recording(log, log_settings))
        publisher = stack.enter_context(_publishing(publish))
        ring = KeyRing(Path(settings.keys_file)) if settings.keys_file else None

        process = of_process(record, *([traces] if traces else []))
        quotas, slots = Quotas(scheduling.tenants), Slots(scheduling.tenants)

        def gate(url: str, keys: KeyRing | None) -> tuple[Desk, GateApp]:
            control = ControlPlane(build_admission(scheduling), scheduling.gate, quotas)
            desk = Desk(
                control,
                settings,
                record=record.write,
                publish=publisher,
                engine=base_url(url),
                slots=slots,
            )
            desk.read_by(Journal().observe, *([traces.observe] if traces else []))
            return desk, build_app(desk, url, settings, keys)

        served = (
            one_engine(upstream[0], subscribe, ring, gate, process)
            if len(upstream) == 1
            else several_engines(upstream, subscribe, ring, gate, settings, process=process)
        )
        for place in places:
            served.restore(place)
        record.flush()  # who kills us before the first flush shall not have ended them
        listener = stack.enter_context(_bound(host, port))
        if ring is None and not _is_loopback(listener):
            _warn(f"{host} can be reached from outside, and no key is asked for: see mars key -h")
        async with (
            every(_FLUSH_S, record.flush),
            every(LOOK_S, ring.look if ring else lambda: None),
            every(LOOK_S if traces else None, traces.look if traces else lambda: None),
            served.life,
        ):
            await _run(served, listener, on_listening)


def server_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=GatewayProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,  # the engine's own headers pass
        date_header=False,
        timeout_keep_alive=_KEEP_S,
        timeout_graceful_shutdown=_STUCK_S,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are taken by `serve`: uvicorn would raise them again before the log is closed."""
        yield


async def _run(
    served: Served, listener: socket.socket, on_listening: Callable[[str], None]
) -> None:
    gc.collect()
    gc.freeze()  # what is here now stays: to look through it again would stop every stream
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = _Server(server_config(served.app), lambda: on_listening(address))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        with _told_to_stop() as stop:
            await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            raise PartDiedError("the gateway's server stopped by itself") from serving.exception()
    finally:
        served.close("the gateway stops")
        server.should_exit = True
        stopping = asyncio.create_task(_stop(serving, served.cut))
        while not stopping.done():  # it is bounded: a second cancellation must not cut it short
            with suppress(asyncio.CancelledError):
                await asyncio.wait({stopping})


async def _stop(serving: asyncio.Task[None], cut: Callable[[], Awaitable[None]]) -> None:
    await asyncio.wait({serving}, timeout=_GRACE_S)
    await cut()  # who still gets an answer, gets an error now
    await asyncio.wait({serving})


@contextmanager
def _told_to_stop() -> Iterator[asyncio.Future[None]]:
    """A future that SIGINT or SIGTERM completes (in the main thread; others are cancelled)."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()
    in_main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if in_main else ()

    def take() -> None:
        if not stop.done():
            stop.set_result(None)

    for number in signals:
        loop.add_signal_handler(number, take)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        stop.cancel()


def _is_loopback(listener: socket.socket) -> bool:
    return ip_address(listener.getsockname()[0]).is_loopback


def _warn(text: str) -> None:
    _log.warning("%s", text)


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    with listener:
        yield listener


@contextmanager
def _publishing(endpoint: str | None) -> Iterator[Callable[[Sequence[Event]], None]]:
    if endpoint is None:
        yield lambda _: None
        return
    publisher = Publisher(endpoint)
    try:
        yield publisher.send
    finally:
        publisher.close()


def _left_behind(log: Path | None) -> list[Place]:
    """Places of sessions that a killed gateway has left in the log; a broken log has none."""
    if log is None or not log.is_file():
        return []
    try:
        return read_places(log, time.monotonic())
    except InputError as error:
        _log.warning("sessions before this start are not known: %s", error)
        return []
