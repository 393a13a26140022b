"""One control group, by its folders: who is in it, what they have used, their end."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_GONE_S, _LOOK_AGAIN_S = 5.0, 0.01


@dataclass(frozen=True, kw_only=True)
class Used:
    """By everybody who was ever in the group; 0: not known."""

    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    """Of all together."""
    oom_kills: int = 0


@dataclass(frozen=True)
class Group:
    folders: dict[str, Path]
    """By controller, see `CgroupTree`."""

    @property
    def joins(self) -> list[str]:
        """The folders a process has to enter."""
        return sorted({str(folder) for folder in self.folders.values()})

    @property
    def counts_cpu(self) -> bool:
        return bool({"", "cpuacct"} & {*self.folders})

    def pids(self) -> list[int]:
        found: set[int] = set()
        for folder in self.folders.values():
            with contextlib.suppress(OSError):
                found.update(map(int, (folder / "cgroup.procs").read_text().split()))
        return sorted(found)

    def take_in(self, pids: Iterable[int]) -> None:
        """Raises OSError when one may not be moved."""
        for folder in self.joins:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    Path(folder, "cgroup.procs").write_text(str(pid))

    def forbid_forks(self) -> None:
        """Until its limits are set again. Who forks and exits is never caught otherwise."""
        with (
            contextlib.suppress(KeyError, OSError),
            (self.folders["pids"] / "pids.max").open("r+") as file,
        ):
            file.write("0")

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
        self.forbid_forks()
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
            oom_kills=self._number("memory", "memory.events", "oom_kill")
            + self._number("memory", "memory.oom_control", "oom_kill"),
        )

    def memory_in_use(self) -> int:
        """Bytes; 0: not known."""
        return self._number("memory", "memory.current") or self._number(
            "memory", "memory.usage_in_bytes"
        )

    def _number(self, controller: str, file: str, key: str = "") -> int:
        """The file's, or that of the line which starts with `key`; 0: not there."""
        with contextlib.suppress(KeyError, OSError, ValueError):
            for line in (self.folders[controller] / file).read_text().splitlines():
                *name, number = line.split()
                if name == ([key] if key else []):
                    return int(number)
        return 0
