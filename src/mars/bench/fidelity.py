"""`mars fidelity RUN`: the sessions of a replay once more, simulated, beside what really happened.

The simulator gets the trace, the load, the settings and the engine's limits of the run, and a cost
profile (`mars calibrate`, on the same machine). Nothing is fitted to the run itself.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from mars.bench.as_simulated import as_simulated
from mars.bench.measure import Run, read_run
from mars.bench.rounds import Round, figures
from mars.core import events as ev
from mars.core.errors import InputError
from mars.policy.presets import Scheduling
from mars.sim.profiles import Profile
from mars.sim.run import simulate
from mars.sim.settings import SimSettings
from mars.workload.synthetic import scaled
from mars.workload.trace import Recorded, read_trace


@dataclass(frozen=True, slots=True)
class Compared:
    policy: str
    real_s: float
    """Mean session time over all rounds, s."""
    real_rounds_s: Sequence[float]
    simulated_s: float
    real_hits: float | None
    simulated_hits: float | None

    @property
    def off_frac(self) -> float:
        return self.simulated_s / self.real_s - 1.0


def compare(
    run: Run, sessions: Sequence[Recorded], profile: Profile, *, lag: int
) -> list[Compared]:
    """One line per policy of the run; `lag` as in EngineSettings, for no run tells it.

    Raises InputError when the run cannot be simulated.
    """
    agents = _agents(run.settings)
    compared = []
    for policy, rounds in run.rounds.items():
        real = figures(rounds)
        outcome = simulate(
            sessions, profile.cost(), _settings(run, policy, profile, lag), agents=agents
        )
        end_s = max(e.at_s for e in outcome.events)
        simulated = figures(
            [Round(policy=policy, repeat=0, started_s=0.0, ended_s=end_s, events=outcome.events)]
        )
        compared.append(
            Compared(
                policy=policy,
                real_s=real.mean_s,
                real_rounds_s=[figures([one]).mean_s for one in rounds],
                simulated_s=simulated.mean_s,
                real_hits=real.hit_frac,
                simulated_hits=simulated.hit_frac,
            )
        )
    return compared


def _agents(head: dict[str, Any]) -> int:
    words = str(head["load"]).split()
    if words[:2] != ["closed", "loop,"]:
        raise InputError("only closed-loop runs can be simulated again: replay with --agents")
    return int(words[2])


def _settings(run: Run, policy: str, profile: Profile, lag: int) -> SimSettings:
    head = run.settings
    scheduling = {**head["settings"]["scheduling"], "policy": policy}
    slots = {
        e.slots for r in run.rounds[policy] for e in r.events if isinstance(e, ev.ToolsSampled)
    }
    share = head["settings"]["tools"]["share"]
    cores = max(slots, default=share) // share
    engine, tools = as_simulated(head["vllm_args"], share, cores, profile, lag=lag)
    return SimSettings(
        scheduling=msgspec.convert(scheduling, Scheduling), engine=engine, tools=tools
    )


def fidelity_command(folder: Path, trace: Path, profile: Profile, *, lag: int) -> None:
    """Print real beside simulated, and whether both rank the policies alike.

    `trace`: the one that was played.
    """
    run = read_run(folder)
    played = read_trace(trace)[: run.settings["sessions"]]
    sessions = scaled(played, run.settings.get("tools_factor", 1.0))
    compared = compare(run, sessions, profile, lag=lag)
    table = Table(
        "policy", "real (s)", "rounds", "simulated (s)", "off", "real hits", "simulated hits",
        title="Mean session time",
    )  # fmt: skip
    for one in compared:
        table.add_row(
            one.policy,
            f"{one.real_s:.2f}",
            f"{min(one.real_rounds_s):.2f} to {max(one.real_rounds_s):.2f}",
            f"{one.simulated_s:.2f}",
            f"{one.off_frac:+.1%}",
            f"{one.real_hits or 0.0:.1%}",
            f"{one.simulated_hits or 0.0:.1%}",
        )
    console = Console()
    console.print(table)
    real = [c.policy for c in sorted(compared, key=lambda c: c.real_s)]
    simulated = [c.policy for c in sorted(compared, key=lambda c: c.simulated_s)]
    alike = "the same" if real == simulated else "NOT the same"
    console.print(f"ranking: real {', '.join(real)}; simulated {', '.join(simulated)}: {alike}")
    off = statistics.fmean(abs(c.off_frac) for c in compared)
    console.print(f"mean distance {off:.1%}, largest {max(abs(c.off_frac) for c in compared):.1%}")
