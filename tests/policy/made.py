"""What retentions are asked about and told, made by hand."""

from mars.core import events as ev
from mars.core.ids import SessionId, ToolId
from mars.policy.base import IdleStage, IdleView

S = SessionId("s")


def idle(
    *,
    stage: IdleStage = "tool started",
    tool: str = "sh",
    session_arrived_s: float = 7.0,
    context_tokens: int = 10_000,
    others_tokens: int = 0,
    kv_capacity_tokens: int = 100_000,
    refill_s: float = 1.0,
    idle_s: float = 0.5,
) -> IdleView:
    """By default its context is a tenth of the KV, and takes a second to compute."""
    return IdleView(
        session_id=S,
        stage=stage,
        tool="" if stage == "left" else tool,
        session_arrived_s=session_arrived_s,
        context_tokens=context_tokens,
        others_tokens=others_tokens,
        kv_capacity_tokens=kv_capacity_tokens,
        compute_s=refill_s,
        refill_s=refill_s,
        idle_s=idle_s,
    )


def ran(tool: str, run_s: float, exit_code: int | None = 0) -> ev.ToolFinished:
    """`exit_code` None: it never started."""
    return ev.ToolFinished(
        at_s=0.0,
        session_id=S,
        tool_id=ToolId("t"),
        tool=tool,
        run_s=run_s,
        cpu_s=run_s,
        peak_memory_bytes=0,
        exit_code=exit_code,
    )
