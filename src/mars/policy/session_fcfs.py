"""First come, first served by *session*: what stock vLLM does with priority = session start.

The strongest simple baseline: an agent that began earlier goes first in every turn, so that old
sessions end and free their KV instead of all sessions crawling together.
"""

from mars.policy.base import CallView, Key, Steady


class SessionFcfs(Steady):
    def run_key(self, call: CallView, now_s: float) -> Key:
        del now_s
        return (call.session_arrived_s, call.queued_s)

    def victim_key(self, call: CallView, now_s: float) -> Key:
        return self.run_key(call, now_s)
