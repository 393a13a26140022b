"""InferCept (arXiv 2402.01869): keep the KV of an idle session while that wastes less memory-time.

    C, C_other  context of the session; KV of the calls that run beside it (tokens)
    t_int       how long it is idle; unknown, so: as long as it has been idle
    t_fwd(C)    time to compute the context again

    waste of keeping     t_int * C
    waste of letting go  t_fwd(C) * (C + C_other), while it is computed again; half of it in chunks

The least waste wins. With t_int the time so far this is a time to live, as the MARS paper's preview
code ran it (calls in order of arrival, no swap; the InferCept paper halves the first term only):

    tau = t_fwd(C) * (C + C_other) / (2 * C)

Ours: it counts from the end of the call, and C_other is read anew when a tool starts or ends, not
in every step.
"""

from math import inf

from mars.policy.base import CallView, EngineEvent, Hold, IdleView
from mars.policy.settings import InferceptSettings


class LeastWaste:
    def __init__(self, settings: InferceptSettings) -> None:
        self._set = settings

    def observe(self, event: EngineEvent) -> None:
        del event

    def hold(self, idle: IdleView) -> Hold:
        context_tokens, price = idle.context_tokens, self._set.reload_s_per_token
        if context_tokens <= 0:
            return Hold(keep_s=0.0, why="nothing to keep")
        refill_s = idle.refill_s if price is None else price * context_tokens
        live_s = refill_s * (context_tokens + idle.others_tokens) / (2 * context_tokens)
        left_s = max(0.0, live_s - idle.idle_s)
        return Hold(keep_s=left_s, value=left_s, why=f"least waste for {live_s:.1f} s")

    def takes_held_at_s(self, call: CallView) -> float:
        """Never: what is preserved is pinned until its time is over, or nothing runs."""
        del call
        return inf
