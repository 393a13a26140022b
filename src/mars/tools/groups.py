"""A control group per lease: what a command cannot leave, whatever it does with its affinity.

    <our own group>/mars-<server's mark>-<tool id>      one folder (v2), or one per controller (v1)

The command joins before it starts; its runner stays outside. Every controller is tried when the
server starts, and one that the system does not let us use is left out: `Groups.names` says which
are in force. On v2 a group exists also without controllers, for `cgroup.kill`.

A group of v2 that gives controllers to others may hold no process itself ("no internal processes",
Documentation/admin-guide/cgroup-v2.rst): where the server is alone in its group, as under systemd's
Delegate=yes, it moves into one of its own first.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mars.tools.cgroup_tree import CgroupTree
from mars.tools.orphans import is_alive, server_mark

_USED = ("cpu", "cpuset", "pids", "memory")
_PERIOD_US = 100_000
_PREFIX = "mars-"
_GONE_S, _LOOK_AGAIN_S = 5.0, 0.01


@dataclass(frozen=True, kw_only=True)
class Limits:
    cores: tuple[int, ...]
    weight: int
    """As cgroup v2's cpu.weight: 100 is what everybody has."""
    processes: int
    memory_bytes: int
    """0: no limit."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """By everybody who was ever in the group; 0: not known."""

    cpu_s: float
    peak_memory_bytes: int
    """Of all together."""
    out_of_memory: bool


@dataclass(frozen=True)
class Group:
    folders: dict[str, Path]
    """By controller, see `CgroupTree`."""

    @property
    def joins(self) -> list[str]:
        """The folders a process has to enter."""
        return sorted({str(folder) for folder in self.folders.values()})

    def pids(self) -> list[int]:
        found: set[int] = set()
        for folder in self.folders.values():
            with contextlib.suppress(OSError):
                found.update(map(int, (folder / "cgroup.procs").read_text().split()))
        return sorted(found)

    def kill(self) -> None:
        for folder in self.folders.values():
            with contextlib.suppress(OSError):  # v1, and v2 before Linux 5.14, have no such file
                (folder / "cgroup.kill").write_text("1")
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    async def end(self) -> Used:
        """Kill whoever is in it and remove it, unless the kernel does not let somebody die."""
        killed: set[int] = set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GONE_S):
                while pids := self.pids():
                    self.kill()
                    killed.update(pids)
                    await asyncio.sleep(_LOOK_AGAIN_S)
                for pid in killed:
                    with contextlib.suppress(ChildProcessError):  # most are not our children
                        os.waitpid(pid, 0)  # noqa: ASYNC222 - it is dead
                used = self.used()
                while not self.remove():  # noqa: ASYNC110 - a folder has no event
                    await asyncio.sleep(_LOOK_AGAIN_S)
                return used
        return self.used()

    def remove(self) -> bool:
        """False: somebody is still in it."""
        for folder in {*self.folders.values()}:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True

    def used(self) -> Used:
        return Used(
            cpu_s=self._number("cpuacct", "cpuacct.usage") / 1e9
            or self._number("", "cpu.stat", "usage_usec") / 1e6,
            peak_memory_bytes=self._number("memory", "memory.peak")
            or self._number("memory", "memory.max_usage_in_bytes"),
            out_of_memory=self._number("memory", "memory.events", "oom_kill")
            + self._number("memory", "memory.oom_control", "oom_kill")
            > 0,
        )

    def _number(self, controller: str, file: str, key: str = "") -> int:
        """The file's, or that of the line which starts with `key`; 0: not there."""
        with contextlib.suppress(KeyError, OSError, ValueError):
            for line in (self.folders[controller] / file).read_text().splitlines():
                *name, number = line.split()
                if name == ([key] if key else []):
                    return int(number)
        return 0


class Groups:
    def __init__(self, tree: CgroupTree, mark: str, names: tuple[str, ...]) -> None:
        self._tree = tree
        self._mark = mark
        self.names = names
        """Controllers in force."""

    @classmethod
    def probe(cls, tree: CgroupTree, cores: tuple[int, ...]) -> Self | None:
        """What works here for a lease of `cores`, found by doing it; None: not even an empty group.

        The widest lease has to fit: v1 refuses a quota beyond that of the groups around.
        """
        mark = server_mark(os.getpid())
        if tree.version == "v2":
            _delegate(tree.folders[""], mark)
        names = tuple(
            name for name in _USED if name in tree.folders and cls(tree, mark, (name,)).works(cores)
        )
        groups = cls(tree, mark, names)
        return groups if names or groups.works(cores) else None

    def __str__(self) -> str:
        return f"cgroup {self._tree.version}: {', '.join(self.names) or 'no controllers'}"

    def works(self, cores: tuple[int, ...]) -> bool:
        limits = Limits(cores=cores, weight=100, processes=100, memory_bytes=1 << 30)
        try:
            self.make("probe", limits).remove()
        except OSError:
            return False
        return True

    def make(self, name: str, limits: Limits) -> Group:
        """Raises OSError when a controller refuses; then nothing is left of it."""
        v1 = self._tree.version == "v1"
        wanted = {*self.names, "cpuacct" if v1 else ""}
        if v1 and not limits.memory_bytes:  # a folder more, for nothing
            wanted.discard("memory")
        group = Group(
            {
                controller: folder / f"{_PREFIX}{self._mark}-{name}"
                for controller, folder in self._tree.folders.items()
                if controller in wanted
            }
        )
        try:
            for controller, folder in group.folders.items():
                folder.mkdir(exist_ok=True)
                for file, text in self._writes(controller, limits):
                    (folder / file).write_text(text)
        except OSError:
            group.remove()
            raise
        return group

    def _writes(self, controller: str, limits: Limits) -> Iterator[tuple[str, str]]:
        version = self._tree.version
        quota_us = len(limits.cores) * _PERIOD_US
        match controller, version:
            case "cpu", "v2":
                yield "cpu.max", f"{quota_us} {_PERIOD_US}"
                yield "cpu.weight", str(limits.weight)
            case "cpu", "v1":
                yield "cpu.cfs_period_us", str(_PERIOD_US)
                yield "cpu.cfs_quota_us", str(quota_us)
                yield "cpu.shares", str(limits.weight * 1024 // 100)
            case "cpuset", _:
                yield "cpuset.cpus", ",".join(map(str, limits.cores))
                if version == "v1":  # v2 inherits its nodes
                    ours = self._tree.folders["cpuset"] / "cpuset.mems"
                    yield "cpuset.mems", ours.read_text().strip()
            case "pids", _:
                yield "pids.max", str(limits.processes)
            case "memory", "v2":
                yield "memory.max", str(limits.memory_bytes or "max")
            case "memory", "v1":
                yield "memory.limit_in_bytes", str(limits.memory_bytes)
            case _:
                return  # "" and cpuacct only count

    async def end_orphans(self) -> int:
        """End the groups that servers which are gone left beside ours; how many there were."""
        left: dict[str, dict[str, Path]] = {}
        for controller, folder in self._tree.folders.items():
            for child in folder.glob(_PREFIX + "*"):
                mark = "-".join(child.name.removeprefix(_PREFIX).split("-")[:2])
                if not is_alive(mark):
                    left.setdefault(child.name, {})[controller] = child
        for folders in left.values():
            await Group(folders).end()
        return len(left)


def _delegate(folder: Path, mark: str) -> None:
    """Give the controllers of v2 to the groups below `folder`, one by one, as far as they go."""
    alone = _read_words(folder / "cgroup.procs") == [str(os.getpid())]
    if alone:
        with contextlib.suppress(OSError):
            ours = folder / f"{_PREFIX}{mark}-server"
            ours.mkdir()
            (ours / "cgroup.procs").write_text(str(os.getpid()))
    for name in set(_USED) & {*_read_words(folder / "cgroup.controllers")}:
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{name}")


def _read_words(file: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return file.read_text().split()
    return []
