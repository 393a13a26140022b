"""What the tool server and its clients say to each other, by HTTP over TCP or a local socket.

    POST /run           RunRequest as JSON -> lines of JSON: Queued Started Output* Finished
    POST /shells/enter  ShellEntry -> ShellEntered, once there are cores
    POST /shells/leave  ShellExit -> nothing
    GET  /health        Health

A client that goes away cancels its command, or its place in the line for a shell. An answer of /run
without Finished: the server died.
"""

from typing import Annotated, Literal

import msgspec

from mars.core.events import ToolEnd

NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For a lease."""

    session_id: NonEmpty
    tool: str = ""
    """What durations are learned by. Empty: see `tool_name`."""
    cores: Annotated[int, msgspec.Meta(ge=1)] = 1
    memory_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """To lease; where a control group can limit it, the most it gets. None: the server's."""

    @property
    def tool_name(self) -> str:
        return self.tool


class RunRequest(Ask, frozen=True, kw_only=True):
    argv: Annotated[list[NonEmpty], msgspec.Meta(min_length=1)]
    """No shell: `["sh", "-c", text]` asks for one."""
    sandbox: bool = False
    """No network, a /tmp of its own, a system that is read-only but for `cwd`. See `sandbox.py`."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=604_800)] | None = None
    """None: the server's. Counted from the start of the command, not from the request."""
    cwd: NonEmpty | None = None
    """None: the server's."""
    env: dict[NonEmpty, str] | None = None
    """Added to the server's."""

    def __post_init__(self) -> None:
        env = self.env or {}
        if any("\0" in text for text in (*self.argv, self.cwd or "", *env, *env.values())):
            raise ValueError("argv, cwd and env cannot contain a NUL character")
        if any("=" in name for name in env):
            raise ValueError("the name of an environment variable cannot contain '='")

    @property
    def tool_name(self) -> str:
        """The program's, unless the tool was named."""
        return self.tool or self.argv[0].rstrip("/").rpartition("/")[2] or self.argv[0]


class ShellEntry(Ask, frozen=True, kw_only=True):
    """A command will be typed into a shell of the client's own, on this machine."""

    pid: Annotated[int, msgspec.Meta(ge=1)]
    """The shell's."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=604_800)] | None = None
    """None: the server's. What runs longer below the shell is ended; the shell is not."""

    @property
    def tool_name(self) -> str:
        return self.tool or "shell"


class ShellEntered(msgspec.Struct, frozen=True, kw_only=True):
    """The shell and what it starts run under the lease."""

    tool_id: str
    cores: tuple[int, ...]
    wait_s: float
    held_by: Literal["group", "affinity"]
    """Whether they are in a control group. By affinity alone a command can widen its own."""


class ShellExit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The client has its answer. The lease lasts until nothing runs in the shell's foreground."""

    tool_id: NonEmpty
    exit_code: int
    """-1: the command runs on (it was given up waiting for)."""


class _Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag=True):
    pass


class Queued(_Line, frozen=True, kw_only=True):
    tool_id: str


class Started(_Line, frozen=True, kw_only=True):
    cores: tuple[int, ...]
    """CPU numbers the command may run on."""
    wait_s: float


class Output(_Line, frozen=True, kw_only=True):
    stream: Literal["stdout", "stderr"]
    data: bytes
    skipped_bytes: int = 0
    """Dropped between the output before and this one: the server keeps the start and the end."""


class Finished(_Line, frozen=True, kw_only=True):
    exit_code: int
    """128 + n: ended by signal n. 127: not found. 126: cannot run. 143: cancelled before it ran."""
    why: ToolEnd
    wait_s: float
    run_s: float
    """Until the last process of the tree was gone."""
    cpu_s: float
    peak_memory_bytes: int
    """Of the tree's largest process; of the whole tree where a control group counts it."""
    dropped_bytes: int
    """Output beyond the server's `output_bytes`, both streams."""


Line = Queued | Started | Output | Finished


class Health(msgspec.Struct, frozen=True, kw_only=True):
    cores: tuple[int, ...]
    slots: int
    running: int
    waiting: int
    controls: str
    """What holds commands to their leases here."""


class ServerState(msgspec.Struct, frozen=True, kw_only=True):
    """The state file: how a client on the machine finds the server."""

    url: str
    token: str
    socket: str = ""
    """Name of the local socket, which is beside the state file; empty: there is none."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every answer that is not 2xx."""

    error: str
