"""How many agents make which load: a closed loop is sized by the machine, not by a number.

    N* = knee x isolated latency

is where the asymptotes of a closed loop meet (Denning, Buzen, Comput. Surv. 10, 1978, section 5):
below, the throughput of N agents is at most N / isolated latency, above, at most the knee, which
is what the scarcest of GPU, KV and cores can carry (`mars.sim.bounds`). Load L is L times N*
agents. What a call costs comes from a profile of the machine that the replay runs on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mars.bench.as_simulated import as_simulated
from mars.config import Settings
from mars.sim.bounds import Bounds, bounds
from mars.sim.profiles import Profile
from mars.tools.controls import Controls
from mars.workload.trace import Recorded


@dataclass(frozen=True, slots=True)
class Knee:
    of: Bounds

    @property
    def agents(self) -> float:
        """N*."""
        return self.of.knee_per_s * self.of.isolated_mean_s

    def agents_at(self, load: float) -> int:
        """At least one."""
        return max(1, round(load * self.agents))

    def __str__(self) -> str:
        carried = {
            "GPU": self.of.gpu_bound_per_s,
            "KV": self.of.kept_bound_per_s,
            "cores": self.of.cpu_bound_per_s,
        }
        rates = ", ".join(f"{name} {60 * rate:.0f}" for name, rate in carried.items())
        return (
            f"knee at {self.agents:.1f} agents: alone a session takes {self.of.isolated_mean_s:.1f}"
            f" s, sessions/min of {rates}"
        )


def knee_of(
    sessions: Sequence[Recorded], profile: Profile, settings: Settings, vllm_args: Sequence[str]
) -> Knee:
    """Of a stack that is started with these arguments. Raises InputError (tools' cores)."""
    cores = len(Controls.probe(settings.tools).cores)
    engine, tools = as_simulated(vllm_args, settings.tools.share, cores, profile)
    return Knee(bounds(sessions, profile.cost(), engine, tools))
