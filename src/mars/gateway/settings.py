"""The gateway's settings."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0.0)]


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    idle_s: Seconds = 120.0
    """An admitted session without an open call that is silent this long has ended."""
    tool_idle_s: Seconds = 3600.0
    """A tool known to be queued or running keeps its session from being silent, so long at most."""
    gone_s: Seconds = 10.0
    """A client that cut a call has so long to come back; then its session has ended."""
    body_bytes: Annotated[int, Meta(ge=1)] = 64 << 20
    """Largest request body; more is answered with 413. Agent prompts are some 100 KB."""
    connect_s: Seconds = 5.0
    """Longest wait for a connection to the engine."""
    tenant_header: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]*$")] = ""
    """Header of a request that says whose its session is (for `scheduling.tenants`), such as
    `X-Tenant`; empty: none. It is believed: let a proxy that knows its clients set it."""
    keys_file: str = ""
    """API keys of clients and their tenants (`mars key` makes them); empty: everybody may come in.
    With keys the tenant is the key's, whatever `tenant_header` says."""
    engine_key_file: str = ""
    """With `keys_file`: its first line is the key that the engine wants (vllm --api-key); empty:
    none. Without `keys_file` the client's own key goes on to the engine."""
    queue_limit: Annotated[int, Meta(ge=1)] | None = None
    """So many sessions may wait at the gate; a new one beyond that gets a 429 with Retry-After.
    None: no limit, which agents take best (OpenHands does not read Retry-After, and gives up after
    5 attempts)."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What the gateway's log says at least (gateway.journal); `debug`: each session as well."""
    keepalive_s: Seconds = 10.0
    """A streaming request at the gate is sent an SSE comment this often, so that its client does
    not give up. OpenAI's and litellm's read time-outs are minutes; proxies cut at 30 s and more."""
    infer_sessions: bool = True
    """A request without any id goes on with the session whose answer it repeats (gateway.thread).
    On, because agents without ids gain most from being known, no two conversations are ever taken
    for one, and requests that name their session in a header pay nothing for it."""
    health_s: Seconds = 2.0
    """Of several engines, each is asked so often how it is; two failures in a row, or one after a
    call that failed, and its sessions go on elsewhere."""
    slow_start_s: Seconds = 30.0
    """An engine that has come up gets its full part of new sessions after so long: its caches are
    empty."""
    otlp: Annotated[str, Meta(pattern=r"^(https?://.+)?$")] = ""
    """URL of an OpenTelemetry collector that is sent spans of sessions, calls and tools as they
    end (gateway.traces), such as http://127.0.0.1:4318; empty: none. Wants `mars[otel]`."""
