"""`mars soak` at a terminal."""

import asyncio

import click
import msgspec

from mars.bench.soak import Sample, soak
from mars.core.errors import InputError, ResultError
from mars.policy.presets import Scheduling


def soak_command(
    *, minutes: float, agents: int, policy: str, restart_s: float, seed: int, as_json: bool
) -> None:
    """Raises ResultError when something does not hold at the end."""
    Scheduling(policy=policy)  # refuses what is unknown
    if restart_s <= 1.0:
        raise InputError(f"--restart {restart_s}: more than the second that an engine is down")

    def tell(sample: Sample) -> None:
        if not as_json:
            click.echo(
                f"{sample.at_s:7.0f} s  {sample.turns:8} turns  {sample.restarts:4} restarts  "
                f"{sample.sessions:4} sessions  {sample.memory_mb:7.1f} MB  "
                f"{sample.descriptors:5} descriptors"
            )

    outcome = asyncio.run(
        soak(
            minutes=minutes, agents=agents, policy=policy, restart_s=restart_s, seed=seed, tell=tell
        )
    )
    if as_json:
        click.echo(msgspec.json.encode(outcome))
    else:
        met = ", ".join(f"{count} {what}" for what, count in sorted(outcome.met.items()))
        click.echo(f"agents met with: {met}")
    if outcome.broken:
        raise ResultError("; ".join(outcome.broken))
    if not as_json:
        click.echo("nothing is left, nothing has grown, no law is broken")
