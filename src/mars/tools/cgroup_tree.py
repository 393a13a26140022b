"""Where this process stands in the control groups of the system, and how many cores it may use.

    v2   one tree:               ROOT/<path>/cpu.max
    v1   a tree per controller:  ROOT/cpu/<path>/cpu.cfs_quota_us

<path> comes from /proc/self/cgroup. In a container it may be the host's, which is not mounted
there: then the container's own top is ours. See cgroups(7).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class CgroupTree:
    version: Literal["v1", "v2"]
    root: Path
    folders: dict[str, Path]
    """Of this process, by controller; v2: "" is there also without any controller."""

    def quota_cores(self) -> float | None:
        """Cores' worth of CPU time that the narrowest group around us may use; None: no limit."""
        folder = self.folders.get("" if self.version == "v2" else "cpu")
        quotas = [quota for each in self._upwards(folder) if (quota := self._quota(each))]
        return min(quotas, default=None)

    def _upwards(self, folder: Path | None) -> Iterator[Path]:
        while folder is not None and folder != self.root and folder.is_relative_to(self.root):
            yield folder
            folder = folder.parent
        yield self.root

    def _quota(self, folder: Path) -> float | None:
        with contextlib.suppress(OSError, ValueError):
            if self.version == "v2":
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            return int(quota) / int(period) if int(quota) > 0 else None  # "max": ValueError
        return None


def find_tree(root: Path = ROOT, membership: str | None = None) -> CgroupTree | None:
    """None: no control groups here. `membership`: the text of /proc/self/cgroup, if not that."""
    if membership is None:
        try:
            membership = Path("/proc/self/cgroup").read_text()
        except OSError:
            return None
    lines = [line.split(":", 2) for line in membership.splitlines()]
    if (root / "cgroup.controllers").exists():
        folder = next((_below(root, path) for _, names, path in lines if not names), root)
        with contextlib.suppress(OSError):
            names = (folder / "cgroup.controllers").read_text().split()
            return CgroupTree("v2", root, dict.fromkeys(["", *names], folder))
        return None
    folders = {
        name: _below((root / name).resolve(), path)  # systemd: cpu -> cpu,cpuacct
        for _, names, path in lines
        for name in names.split(",")
        if name and (root / name).is_dir()
    }
    return CgroupTree("v1", root, folders) if folders else None


def _below(top: Path, path: str) -> Path:
    folder = top / path.lstrip("/")
    return folder if folder.is_dir() else top
