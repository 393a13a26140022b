"""What holds a command to its lease on this machine: found at start, asked for each lease.

In this order, as far as the system allows: control groups v2, v1, affinity and nice. Affinity is
always set; without a cpuset a command can widen its own.
"""

import math
from dataclasses import dataclass
from typing import Self

from mars.core.errors import InputError
from mars.tools.cgroup_tree import find_tree
from mars.tools.group import Group
from mars.tools.groups import Groups, Limits
from mars.tools.sandbox import sandboxed, why_no_sandbox
from mars.tools.settings import ToolSettings, lendable
from mars.tools.wire import Ask, RunRequest

_NICE_STEP = 1.25
"""CPU time that a step of nice is worth: `sched_prio_to_weight` in Linux' kernel/sched/core.c."""


@dataclass(frozen=True)
class Controls:
    settings: ToolSettings
    cores: tuple[int, ...]
    """CPU numbers to lend."""
    groups: Groups | None
    why_no_sandbox: str
    """Empty: there is one."""

    @classmethod
    def probe(cls, settings: ToolSettings) -> Self:
        """Raises InputError on a core that is not there, or a sandbox that is asked for and not."""
        tree = find_tree()
        cores = lendable(settings, tree.quota_cores() if tree else None)
        groups = Groups.probe(tree, cores) if tree and settings.cgroups else None
        controls = cls(settings, cores, groups, why_no_sandbox())
        if settings.sandbox:
            controls.check_sandbox()
        return controls

    def __str__(self) -> str:
        """One line for people."""
        cores = ", ".join(map(str, self.cores))
        held_by = f"{self.groups}, affinity" if self.groups else "affinity and nice, no cgroups"
        sandbox = f"none, {self.why_no_sandbox}" if self.why_no_sandbox else "bubblewrap"
        return f"cores {cores} by {held_by}; sandbox: {sandbox}"

    def check_sandbox(self) -> None:
        """Raises InputError when there is none."""
        if self.why_no_sandbox:
            raise InputError(f"no sandbox: {self.why_no_sandbox}")

    def argv(self, request: RunRequest) -> list[str]:
        """The command to run. Raises InputError when it cannot be had in a sandbox."""
        if not (request.sandbox or self.settings.sandbox):
            return request.argv
        self.check_sandbox()
        return sandboxed(request.argv, request.cwd or ".")

    def memory_bytes(self, ask: Ask) -> int:
        """To lease."""
        asked = ask.memory_bytes
        return self.settings.command_memory_bytes if asked is None else asked

    def group(self, name: str, ask: Ask, cores: tuple[int, ...]) -> Group | None:
        """Raises OSError when the system refuses what it allowed at the start."""
        return self.groups.make(name, self.limits(ask, cores)) if self.groups else None

    def limits(self, ask: Ask, cores: tuple[int, ...]) -> Limits:
        """Of shared cores whatever is idle may be used; where nothing is, all have equal parts."""
        return Limits(
            quota_cores=ask.cores if self.settings.share == 1 else 0,
            on=cores,
            weight=self.settings.weight,
            processes=self.settings.processes,
            memory_bytes=self.memory_bytes(ask),
        )

    @property
    def nice(self) -> int:
        """What the weight is worth where a control group's cannot be set."""
        if self.groups is not None and "cpu" in self.groups.names:
            return 0
        return min(19, round(math.log(100 / self.settings.weight, _NICE_STEP)))
