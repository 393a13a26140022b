"""First come, first served: vLLM as it ships."""

from mars.policy.base import CallView, Key, Steady


class Fcfs(Steady):
    def run_key(self, call: CallView, now_s: float) -> Key:
        del now_s
        return (call.queued_s,)

    def victim_key(self, call: CallView, now_s: float) -> Key:
        return self.run_key(call, now_s)  # last come, first out
