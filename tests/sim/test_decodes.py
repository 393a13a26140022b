"""Running decodes as numbers."""

from mars.core.ids import CallId, SessionId
from mars.policy.base import CallView
from mars.sim.call import Call
from mars.sim.decodes import Decodes
from mars.sim.kv import Chain, Prefix


def test_a_call_that_left_and_came_back_to_the_same_end_ends_once() -> None:
    """Preempted, and computed again in no more steps than it had lost."""
    view = CallView(CallId("c"), SessionId("s"), queued_s=0.0, session_arrived_s=0.0)
    call = Call(view, Chain(Prefix(0)), 1, output_tokens=5, tokens=40)
    call.last = 9
    decodes = Decodes(block_tokens=16)
    decodes.join(call, 40)
    decodes.leave(call, 41)
    decodes.join(call, 41)
    assert decodes.ended_by(8) == []
    assert decodes.ended_by(9) == [call]
    decodes.leave(call, 45)
    assert decodes.count == 0
