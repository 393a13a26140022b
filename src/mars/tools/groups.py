"""A control group per lease: what a command cannot leave, whatever it does with its affinity.

    <our own group>/mars-<server's mark>-<tool id>      one folder (v2), or one per controller (v1)
    <our own group>/mars-<server's mark>-shell-<shell's mark>           see `shell_groups`

The command joins before it starts; its runner stays outside. Every controller is tried when the
server starts, and one that the system does not let us use is left out: `Groups.names` says which
are in force. On v2 a group exists also without controllers, for `cgroup.kill`.

A group of v2 that gives controllers to others may hold no process itself ("no internal processes",
Documentation/admin-guide/cgroup-v2.rst): where the server is alone in its group, as under systemd's
Delegate=yes, it moves into one of its own first.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from mars.tools.cgroup_tree import CgroupTree, find_tree
from mars.tools.group import Group
from mars.tools.orphans import is_alive, mark_of

_USED = ("cpu", "cpuset", "pids", "memory")
_PERIOD_US = 100_000
_PREFIX, _SHELL = "mars-", "shell-"
_OURS = re.compile(r"mars-(?P<server>\d+-\d+)-(?:shell-(?P<shell>\d+-\d+)|.+)")


@dataclass(frozen=True, kw_only=True)
class Limits:
    quota_cores: int
    """CPU time, in cores' worth; 0: no limit."""
    on: tuple[int, ...]
    """CPU numbers."""
    weight: int
    """As cgroup v2's cpu.weight: 100 is what everybody has."""
    processes: int
    memory_bytes: int
    """0: no limit."""


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
        mark = mark_of(os.getpid())
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
        limits = Limits(
            quota_cores=len(cores), on=cores, weight=100, processes=100, memory_bytes=1 << 30
        )
        try:
            self.make("probe", limits).remove()
        except OSError:
            return False
        return True

    def make(self, name: str, limits: Limits) -> Group:
        """For one command. Raises OSError when a controller refuses; then nothing is left of it."""
        v1 = self._tree.version == "v1"
        # A folder more, for nothing:
        idle = {"memory"} if v1 and not limits.memory_bytes else set()
        return self._make(name, {*self.names} - idle, limits)

    def make_for_shell(self, shell: int, limits: Limits) -> Group:
        """The same for a client's shell: every controller, since limits will change."""
        return self._make(f"{_SHELL}{mark_of(shell)}", {*self.names}, limits)

    def _make(self, name: str, names: set[str], limits: Limits) -> Group:
        wanted = {*names, "cpuacct" if self._tree.version == "v1" else ""}
        group = Group(
            {
                controller: folder / f"{_PREFIX}{self._mark}-{name}"
                for controller, folder in self._tree.folders.items()
                if controller in wanted
            }
        )
        try:
            for folder in group.folders.values():
                folder.mkdir(exist_ok=True)
            self.limit(group, limits)
        except OSError:
            group.remove()
            raise
        return group

    def limit(self, group: Group, limits: Limits) -> None:
        """Set the limits; what is in use already is left to it. Raises OSError as `make` does."""
        if limits.memory_bytes:  # v2 kills for what is beyond, v1 refuses
            memory_bytes = max(limits.memory_bytes, group.memory_in_use())
            limits = replace(limits, memory_bytes=memory_bytes)
        for controller, folder in group.folders.items():
            for file, text in self._writes(controller, limits):
                (folder / file).write_text(text)

    def home_of(self, pid: int) -> Group:
        """Where a process stands now, of the controllers that we use. Raises OSError."""
        tree = find_tree(self._tree.root, Path(f"/proc/{pid}/cgroup").read_text())
        used = {*self.names, "", "cpuacct"}
        return Group({n: folder for n, folder in tree.folders.items() if n in used} if tree else {})

    def _writes(self, controller: str, limits: Limits) -> Iterator[tuple[str, str]]:
        version = self._tree.version
        quota_us = limits.quota_cores * _PERIOD_US or None
        match controller, version:
            case "cpu", "v2":
                yield "cpu.max", f"{quota_us or 'max'} {_PERIOD_US}"
                yield "cpu.weight", str(limits.weight)
            case "cpu", "v1":
                yield "cpu.cfs_period_us", str(_PERIOD_US)
                yield "cpu.cfs_quota_us", str(quota_us or -1)
                yield "cpu.shares", str(limits.weight * 1024 // 100)
            case "cpuset", _:
                yield "cpuset.cpus", ",".join(map(str, limits.on))
                if version == "v1":  # v2 inherits its nodes
                    ours = self._tree.folders["cpuset"] / "cpuset.mems"
                    yield "cpuset.mems", ours.read_text().strip()
            case "pids", _:
                yield "pids.max", str(limits.processes)
            case "memory", "v2":
                yield "memory.max", str(limits.memory_bytes or "max")
            case "memory", "v1":
                yield "memory.limit_in_bytes", str(limits.memory_bytes or -1)
            case _:
                return  # "" and cpuacct only count

    async def end_orphans(self) -> int:
        """End the groups that servers which are gone left beside ours; how many there were.

        But for those of shells that live: they are `left_shells`.
        """
        left = [group for shell, group in self._left() if not is_alive(shell)]
        for group in left:
            await group.end()
        return len(left)

    def left_shells(self) -> dict[int, Group]:
        """By pid of the shell."""
        return {int(shell.split("-")[0]): g for shell, g in self._left() if is_alive(shell)}

    def _left(self) -> list[tuple[str, Group]]:
        """By servers that are gone; with the mark of a shell, or none."""
        left: dict[str, dict[str, Path]] = {}
        for controller, folder in self._tree.folders.items():
            for child in folder.glob(_PREFIX + "*"):
                left.setdefault(child.name, {})[controller] = child
        found = []
        for name, folders in left.items():
            ours = _OURS.fullmatch(name)
            if ours and not is_alive(ours["server"]):
                found.append((ours["shell"] or "", Group(folders)))
        return found


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
