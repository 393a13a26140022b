"""One command under a lease: `python -I -S runner.py SPEC_FD RESULT_FD`. Standard library only.

    tool server                     lends cores, streams output
     +- runner (this file)          one per command; every descendant stays its descendant
         +- command                 own session, on the leased cores
             +- ...                 double-forked, setsid'ed: orphans come back to the runner

A lease is over when the last process of the tree is. The runner is a child subreaper, so it has no
child left exactly when the tree is gone, and the CPU time of its waited-for children is the tree's.

SPEC_FD holds JSON: argv, cwd (null: the server's), env (added to the server's), cores, nice, groups
(control groups to enter), timeout_s, grace_s, parent_pid. RESULT_FD gets JSON, once the tree is
gone:

    exit_code           of the command; 128 + n: ended by signal n; 127: not found; 126: cannot run
    why                 ended | timeout | cancelled (SIGTERM to the runner)
    run_s               from the command's start to the end of its tree
    cpu_s               user + system, the whole tree, but for children of who ignores SIGCHLD
    peak_memory_bytes   of the tree's largest process; never less than the runner's own (10 MB)

The death of the server is a SIGTERM too (PR_SET_PDEATHSIG).

A command waits for this file to be compiled and its imports to be loaded: `typing` alone would add
half as much again, and tearing the interpreter down as well (hence `os._exit`).
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_WATCHED = (signal.SIGCHLD, signal.SIGTERM)
_NOT_FOUND, _CANNOT_RUN = 127, 126
_LOOK_AGAIN_S = 0.05  # for processes that a tree forks while it is being ended


def main() -> None:
    spec_fd, result_fd = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(result_fd, False)  # noqa: FBT003
    with open(spec_fd, "rb") as file:
        spec = json.load(file)
    # Blocked signals wait for sigtimedwait: from here on a cancel can be late, never lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != spec["parent_pid"]:
        _remove(spec["groups"])
        return  # the server died before it could be watched
    started_s = time.monotonic()
    command = os.fork()
    if command == 0:
        os._exit(
            _take_place(spec["groups"], spec["cores"], spec["nice"])
            or _become(spec["argv"], spec["cwd"], spec["env"])
        )
    why, status = _watch(command, started_s + spec["timeout_s"])
    status = _end_tree(command, status, spec["grace_s"])
    code = os.waitstatus_to_exitcode(status)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "exit_code": code if code >= 0 else 128 - code,
        "why": why,
        "run_s": time.monotonic() - started_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_memory_bytes": usage.ru_maxrss * 1024,
    }
    os.write(result_fd, json.dumps(result).encode())
    if os.getppid() != spec["parent_pid"]:
        _remove(spec["groups"])  # there is no server any more that would


def _take_place(groups: list[str], cores: list[int], nice: int) -> int:
    """Enter a session of our own and what the lease allows; 0, or an exit code."""
    try:
        os.setsid()
        for group in groups:
            # v1: moving one thread takes no lock of all thread groups, which costs milliseconds.
            entrance = "tasks" if os.path.exists(f"{group}/tasks") else "cgroup.procs"  # noqa: PTH110
            with open(f"{group}/{entrance}", "w") as file:  # noqa: PTH123
                file.write("0")  # whoever writes
        os.sched_setaffinity(0, cores)
        os.nice(nice)
    except OSError as error:
        return _complain(f"cannot take up the lease: {error}", _CANNOT_RUN)
    if nice:
        _be_nice_to_other_sessions(nice)
    return 0


def _be_nice_to_other_sessions(nice: int) -> None:
    """As far as the system lets us: where a session is a scheduling group of its own (sched(7),
    autogroup), `nice` counts inside it only.
    """
    try:
        with open("/proc/self/autogroup", "w") as file:  # noqa: PTH123
            file.write(str(nice))
    except OSError:
        return  # there are none; or another was told a moment ago, and we are not root


def _become(argv: list[str], cwd: str | None, env: dict[str, str]) -> int:
    """Turn this process into the command. Returns only when it cannot: an exit code."""
    try:
        if cwd is not None:
            os.chdir(cwd.encode())
        # Python ignores some signals, `nohup mars serve` others: a command must not inherit that.
        for number in signal.valid_signals():
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        whole_env = _environment(env)
    except OSError as error:
        return _complain(f"cannot run {argv[0]}: {error}", _CANNOT_RUN)
    try:
        os.execvpe(argv[0].encode(), [word.encode() for word in argv], whole_env)  # noqa: S606
    except FileNotFoundError:
        return _complain(f"{argv[0]}: command not found", _NOT_FOUND)
    except OSError as error:
        return _complain(f"cannot run {argv[0]}: {error.strerror}", _CANNOT_RUN)


def _environment(added: dict[str, str]) -> dict[bytes, bytes]:
    # Not os.environ: in the C locale Python puts an LC_CTYPE of its own there.
    with open("/proc/self/environ", "rb") as file:  # noqa: PTH123
        pairs = (line.partition(b"=") for line in file.read().split(b"\0") if b"=" in line)
        env = {name: value for name, _, value in pairs}
    env.update((name.encode(), value.encode()) for name, value in added.items())
    return env


def _complain(text: str, code: int) -> int:
    os.write(2, f"mars: {text}\n".encode())
    return code


def _remove(groups: list[str]) -> None:
    for group in groups:
        try:  # noqa: SIM105 - contextlib takes time to import
            os.rmdir(group)  # noqa: PTH106
        except OSError:
            pass  # the next server's to find


def _watch(command: int, until_s: float) -> tuple[str, int | None]:
    """Wait for the command; why it is over, and its wait status if it ended on its own."""
    while True:
        for pid, status in _reap():
            if pid == command:
                return "ended", status
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return "timeout", None
        heard = signal.sigtimedwait(_WATCHED, left_s)
        if heard is not None and heard.si_signo == signal.SIGTERM:
            return "cancelled", None


def _end_tree(command: int, status: int | None, grace_s: float) -> int:
    """SIGTERM once to every process, after `grace_s` SIGKILL, until there is none."""
    kill_at_s = time.monotonic() + grace_s
    told: set[int] = set()
    while True:
        for pid, ended in _reap():
            if pid == command:
                status = ended
        if not _has_children():
            # Without a status somebody else has waited for our child, which cannot be.
            return status if status is not None else signal.SIGKILL
        left_s = kill_at_s - time.monotonic()
        for pid in _descendants():
            if left_s <= 0:
                _signal(pid, signal.SIGKILL)
            elif pid not in told:
                _signal(pid, signal.SIGTERM)
                told.add(pid)
        pause_s = min(left_s, _LOOK_AGAIN_S) if left_s > 0 else _LOOK_AGAIN_S
        signal.sigtimedwait((signal.SIGCHLD,), pause_s)


def _reap() -> list[tuple[int, int]]:
    """Wait for every child that has ended: pid and wait status."""
    ended = []
    while _has_children():
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            break
        ended.append((pid, status))
    return ended


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue  # it has ended
            children.setdefault(parent, []).append(int(name))
    found = children.get(os.getpid(), [])
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, ()))
    return found


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        pass  # it changed its user: nothing a server without privileges can do


if __name__ == "__main__":
    main()
    os._exit(0)
