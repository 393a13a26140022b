"""Values by chance: distributions, and the mixture of tools that modelled sessions run."""

import math
import random

import msgspec

from mars.workload.trace import Tool


class LogNormal(msgspec.Struct, frozen=True):
    """exp(N(ln median, sigma)); its mean is median * exp(sigma^2 / 2)."""

    median: float
    sigma: float

    @property
    def mean(self) -> float:
        return self.median * math.exp(self.sigma**2 / 2)

    def draw(self, chance: random.Random) -> float:
        return math.exp(chance.gauss(math.log(self.median), self.sigma))


class Normal(msgspec.Struct, frozen=True):
    """N(mean, sd) without what is below `least` (which is below the mean: few are drawn again)."""

    mean: float
    sd: float
    least: float

    def draw(self, chance: random.Random) -> float:
        while (value := chance.gauss(self.mean, self.sd)) < self.least:
            pass
        return value


class Uniform(msgspec.Struct, frozen=True):
    least: float
    most: float

    def draw(self, chance: random.Random) -> float:
        return chance.uniform(self.least, self.most)


Distribution = LogNormal | Normal | Uniform


class ToolClass(msgspec.Struct, frozen=True):
    """A tool runs `run_s`, on 1 to `most_cores` cores (uniform), each busy for `cpu_frac` of it."""

    name: str
    weight: int
    run_s: LogNormal
    most_cores: int
    cpu_frac: Uniform


Mixture = tuple[ToolClass, ...]
MIXTURE: Mixture = (
    ToolClass("file", 65, LogNormal(0.10, 1.0), 1, Uniform(0.0, 0.0)),
    ToolClass("shell", 24, LogNormal(1.0, 1.2), 1, Uniform(0.5, 0.9)),
    # The design names no CPU share for the last two. Ours follow what AgentCgroup's sessions show:
    # tests of 5-60 s lie between 0.07 and 0.89 (quartiles), calls beyond a minute mostly wait.
    ToolClass("build", 8, LogNormal(15.0, 1.2), 4, Uniform(0.1, 0.9)),
    ToolClass("long", 3, LogNormal(120.0, 0.8), 1, Uniform(0.0, 0.1)),
)
"""The default tool mixture of the evaluation plan."""


def mean_run_s(mixture: Mixture) -> float:
    """sum_i w_i * E[run_i] / sum_i w_i"""
    weights = sum(each.weight for each in mixture)
    return sum(each.weight * each.run_s.mean for each in mixture) / weights


def draw_tool(mixture: Mixture, chance: random.Random, most_cores: int) -> Tool:
    kind = chance.choices(mixture, [each.weight for each in mixture])[0]
    run_s = kind.run_s.draw(chance)
    cores = min(chance.randint(1, kind.most_cores), most_cores)
    cpu_s = run_s * cores * kind.cpu_frac.draw(chance)
    return Tool(name=kind.name, run_s=run_s, cpu_s=cpu_s, timing="modelled", cores=cores)


def scaled_tool(tool: Tool, factor: float) -> Tool:
    """Run and CPU seconds times `factor`, in whole microseconds: those survive a file."""
    run_s, cpu_s = round(tool.run_s * factor, 6), round(tool.cpu_s * factor, 6)
    return msgspec.structs.replace(tool, run_s=run_s, cpu_s=cpu_s)
