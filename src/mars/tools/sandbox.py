"""A sandbox for commands that are not trusted: bubblewrap, https://github.com/containers/bubblewrap

    /                       read-only; the command reads what the server's user may read
    working directory       writable
    /tmp /var/tmp /run      empty, in memory, gone with the command; no socket of the host is seen
    network, processes      none but its own
    capabilities            none, also for root; /proc/sys read-only

It ends at once, without a grace: with SIGTERM to bubblewrap its whole PID namespace is killed. A
command that is not there ends with 1 and bubblewrap's words.
"""

import functools
import shutil
import subprocess
from pathlib import Path

from mars.core.errors import InputError

_PRIVATE = ("/tmp", "/var/tmp", "/run")  # noqa: S108
_KERNEL = ("/proc/sys", "/proc/sysrq-trigger")
_PROBE_S = 10.0


def why_no_sandbox() -> str:
    """Empty: it works here, which is tried once."""
    program = shutil.which("bwrap")
    if program is None:
        return "bubblewrap (bwrap) is not installed: install your system's package `bubblewrap`"
    return _try(program)


@functools.cache
def _try(program: str) -> str:
    argv = _inside(program, ["true"], "/usr")
    try:
        tried = subprocess.run(argv, capture_output=True, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not run here: {error}"
    if tried.returncode:
        return f"bubblewrap does not run here: {tried.stderr.decode(errors='replace').strip()}"
    return ""


def sandboxed(argv: list[str], cwd: str) -> list[str]:
    """The command that runs `argv` inside, once `why_no_sandbox` has said that there is one.

    Raises InputError as it cannot have `cwd`.
    """
    folder = Path(cwd).resolve()
    if folder == Path("/"):
        raise InputError("a sandboxed command needs a working directory other than /")
    return _inside(shutil.which("bwrap") or "bwrap", argv, str(folder))


def _inside(program: str, argv: list[str], where: str) -> list[str]:
    private = [word for top in _PRIVATE if Path(top).is_dir() for word in ("--tmpfs", top)]
    # Under root, whose files they are, the kernel would take writes to these without a capability.
    kernel = [word for file in _KERNEL for word in ("--ro-bind-try", file, file)]
    return [
        program, "--unshare-all", "--unshare-user", "--cap-drop", "ALL", "--die-with-parent",
        "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", *kernel, *private,
        "--bind", where, where, "--chdir", where, "--", *argv,
    ]  # fmt: skip
