"""Give vLLM's scheduler our order and our holds without copying a line of it.

    who waits in front    RankedQueue in place of `self.waiting`
    who runs in front     the order of `self.running`, set when it can matter
    who gives up memory   Request.priority of the running (vLLM's PRIORITY rule takes the greatest)
    what stays warm       `_free_blocks` (a call ends) and `allocate_slots` (memory is short)
    what happened         the methods that vLLM calls at intake, start, preemption, end and step

`contract.py` checks each of these seams when the engine starts. Use:

    vllm serve MODEL --scheduler-cls mars.vllm_plugin.scheduler.MarsScheduler
                     --additional-config '{"mars": {"scheduling": {"policy": "mars"}}}'
"""

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from mars.core import events as ev
from mars.core.estimate import PrefillRate
from mars.policy.base import CallView, Key
from mars.policy.holds import Holds
from mars.policy.presets import build_policy
from mars.vllm_plugin.calls import Calls, Sessions
from mars.vllm_plugin.contract import check_seams, check_version
from mars.vllm_plugin.offload import host_memory
from mars.vllm_plugin.pins import Pins
from mars.vllm_plugin.queue import RankedQueue
from mars.vllm_plugin.residency import Residency
from mars.vllm_plugin.settings import read_settings
from mars.vllm_plugin.wire import Wire

logger = init_logger(__name__)

_Base: Any = object  # the mixin's parent is the vLLM scheduler that it is combined with


class MarsMixin(_Base):
    """Sits before `Scheduler` or `AsyncScheduler` in the method resolution order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = read_settings(self.vllm_config.additional_config)
        self._set = settings
        self._policy = build_policy(settings.scheduling)
        self._ordering, self._retention = self._policy.ordering, self._policy.retention
        self._clock = time.monotonic
        self._now_s = self._clock()
        self._sessions = Sessions()
        self._ranked_s = 0.0
        self._updated_s = self._now_s
        self._in_flight_s: deque[float] = deque()
        """When the steps were scheduled that are not over yet."""
        self._used_frac = 0.0
        self._short: CallView | None = None
        """The call for which memory was last short: who is preempted then makes room for it."""
        self._rate = PrefillRate()
        self._wire = Wire(settings)
        self._calls = Calls(self._emit)
        self._pool = self.kv_cache_manager.block_pool
        groups = self.kv_cache_config.kv_cache_groups
        self._host = host_memory(
            self.connector, groups, self.hash_block_size, settings.pcie_bytes_s
        )
        self._residency = Residency(self.kv_cache_manager, groups, self.hash_block_size, self._host)
        self._pins = Pins(self._residency, self._retention)
        self._holds = Holds(
            capacity_tokens=self._pool.num_gpu_blocks * self.block_size,
            retention=self._retention,
            rate=self._rate,
            running_tokens=self._running_tokens,
            emit=self._emit,
        )
        self.policy = SchedulingPolicy.PRIORITY
        self.waiting = RankedQueue(self._waiting_key)
        self._stock_allocate_slots = self.kv_cache_manager.allocate_slots
        self.kv_cache_manager.allocate_slots = self._allocate_slots
        logger.info("MARS policy %s on %s", settings.scheduling.policy, type(self).__name__)

    # -- intake and rank ------------------------------------------------------------------------

    def _enqueue_waiting_request(self, request: Request) -> None:
        if request.request_id not in self._calls:
            now_s = self._clock()
            self._hear(now_s)  # the gateway's SessionArrived comes before its first call
            self._calls.take_in(request, self._sessions, now_s)
        super()._enqueue_waiting_request(request)

    def _waiting_key(self, request: Request) -> Key:
        call = self._calls[request.request_id]
        if self._ordering.live or not call.key:
            view = call.view
            view.is_decode, view.kv_tokens = False, 0
            view.is_held = view.session_id in self._holds
            if self._ordering.live:
                view.uncached_tokens = request.num_tokens - self._residency.tokens(request)
            call.key = (*self._ordering.run_key(view, self._now_s), call.order)
        return call.key

    def _running_key(self, request: Request) -> Key:
        """A decode's key does not change (see Ordering): computed once, when it becomes one."""
        call = self._calls[request.request_id]
        view = call.view
        decode = not request.is_prefill_chunk
        if self._ordering.live and not (decode and view.is_decode):
            view.is_decode, view.kv_tokens = decode, request.num_computed_tokens
            view.uncached_tokens = request.num_tokens - request.num_computed_tokens
            call.key = (*self._ordering.run_key(view, self._now_s), call.order)
        return call.key

    def _victim_key(self, request: Request) -> Key:
        call = self._calls[request.request_id]
        call.view.kv_tokens = request.num_computed_tokens
        return (*self._ordering.victim_key(call.view, self._now_s), call.order)

    def _rank(self) -> None:
        now_s = self._now_s
        if (
            self._ordering.live
            and self.waiting
            and len(self.running) < self.max_num_running_reqs  # else nobody can be admitted
            and now_s - self._ranked_s >= self._set.rank_s
        ):
            self._ranked_s = now_s
            self.waiting.refresh()
        step_blocks = self.max_num_scheduled_tokens // self.block_size + 2 * len(self.running)
        groups = len(self.kv_cache_config.kv_cache_groups)  # each takes blocks of its own
        short = self._pool.get_num_free_blocks() < groups * step_blocks
        # The order of the running matters when a prefill competes for the step's tokens, and
        # when memory may run out within the step; else every decode gets its one token.
        if short or self._inflight_prefills:
            self.running.sort(key=self._running_key)
        if short:
            for rank, request in enumerate(sorted(self.running, key=self._victim_key)):
                request.priority = rank

    # -- the step -------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        now_s = self._now_s = self._clock()
        self._hear(now_s)
        self._holds.expire(now_s, self._sessions.is_open)
        self._rank()
        self._used_frac = self._used_blocks() / (self._pool.num_gpu_blocks - 1)
        output = super().schedule(throttle_prefills)
        if output.total_num_scheduled_tokens:
            self._in_flight_s.append(now_s)
        return output

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """The hook of vLLM for shortening a chunk; asked of every decode in every step as well."""
        if num_new_tokens <= 1 and not self.num_prefill_lookahead:
            return num_new_tokens
        tokens: int = super()._reserve_prefill_lookahead(
            request, num_computed_tokens, num_new_tokens
        )
        if tokens <= 1:
            return tokens
        most = self._ordering.chunk_tokens(self._calls[request.request_id].view, self._used_frac)
        return tokens if most is None else min(tokens, most)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        for data in scheduler_output.scheduled_new_reqs:
            self._calls.started(self.requests[data.req_id], self._now_s)
        for request_id in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
            self._calls.started(self.requests[request_id], self._now_s)
        if scheduler_output.total_num_scheduled_tokens:  # somebody runs
            self._holds.call_moved()
        super()._update_after_schedule(scheduler_output)
        self._pins.scheduled(self.requests[r] for r in scheduler_output.num_scheduled_tokens)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: Any
    ) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        now_s = self._now_s = self._clock()
        if tokens := scheduler_output.total_num_scheduled_tokens:
            # A step begins when the one before it is over; after a pause, when it is scheduled.
            began_s = max(self._in_flight_s.popleft(), self._updated_s)
            self._rate.observe(tokens, now_s - began_s)
            self._updated_s = now_s
        if now_s - self._wire.sampled_s >= self._set.sample_s or not self.has_unfinished_requests():
            self._sample(now_s)
        self._wire.flush()
        return outputs

    def _sample(self, now_s: float) -> None:
        self._wire.sampled_s = now_s
        self._wire.emit(
            ev.EngineSampled(
                at_s=now_s,
                kv_used_blocks=self._used_blocks(),
                kv_held_blocks=self._holds.blocks,
                kv_total_blocks=self._pool.num_gpu_blocks - 1,
                block_tokens=self.block_size,
                running_calls=len(self.running),
                waiting_calls=len(self.waiting) + len(self.kv_holding_waiting),
                host_total_blocks=self._host.blocks,
            )
        )

    def _used_blocks(self) -> int:
        """One block is vLLM's null block."""
        return int(self._pool.num_gpu_blocks - 1 - self._pool.get_num_free_blocks())

    def _running_tokens(self) -> int:
        return sum(request.num_computed_tokens for request in self.running)

    def _preempt_request(
        self,
        request: Request,
        timestamp: float,
        drop_stale_output: bool = False,
    ) -> None:
        self._calls.preempted(request, self._short, self._now_s)
        self._pins.drop(request)
        super()._preempt_request(request, timestamp, drop_stale_output)

    # -- memory ---------------------------------------------------------------------------------

    def _allocate_slots(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Held KV goes before a running call is preempted; a cold call waits for it a while."""
        blocks = self._stock_allocate_slots(request, *args, **kwargs)
        if blocks is None:
            self._short = self._calls[request.request_id].view
        if not self._holds:
            return blocks
        now_s, view = self._now_s, self._calls[request.request_id].view
        waits = request.status != RequestStatus.RUNNING
        if blocks is None and (
            not waits or now_s >= self._holds.opens_at_s(view, now_s, idle=not self.running)
        ):
            while blocks is None and self._holds.release_least(view.session_id, now_s):
                blocks = self._stock_allocate_slots(request, *args, **kwargs)
        if blocks is not None and waits and view.session_id in self._holds:
            self._holds.release(view.session_id, now_s, "returned")  # the call has its own
        return blocks

    def _free_blocks(self, request: Request) -> None:
        now_s = self._clock()
        ok = request.status in {
            RequestStatus.FINISHED_STOPPED,
            RequestStatus.FINISHED_LENGTH_CAPPED,
        }
        call = self._calls.left(request, now_s, ok=ok)
        self._holds.call_moved()
        session_id = call.view.session_id
        self._sessions.call_left(session_id, forget=not call.named)
        held = ok and call.named and self._residency.is_known
        if held and not self._sessions.is_open(session_id):
            running = request in self.running  # not when its last token came after a preemption
            self._holds.left(
                session_id,
                self._residency.kept(request),
                own_tokens=request.num_computed_tokens if running else 0,
                arrived_s=call.view.session_arrived_s,
                now_s=now_s,
            )
        self._pins.drop(request)
        super()._free_blocks(request)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        finished: list[Request] = super().finish_requests(request_ids, finished_status)
        self._sample(self._clock())
        self._wire.flush()  # an engine that falls idle takes no further step
        return finished

    def reset_prefix_cache(
        self,
        reset_running_requests: bool = False,
        reset_connector: bool = False,
    ) -> bool:
        self._holds.release_all(self._clock(), "reset")
        self._wire.flush()
        self._short = None
        done: bool = super().reset_prefix_cache(reset_running_requests, reset_connector)
        return done

    def shutdown(self) -> None:
        self._holds.release_all(self._clock(), "reset")
        self._wire.close()
        super().shutdown()

    # -- facts from the other processes -----------------------------------------------------

    def _emit(self, event: ev.Event) -> None:
        if isinstance(event, ev.CallStarted | ev.CallServed):
            self._policy.observe(event)
        self._wire.emit(event)

    def _hear(self, now_s: float) -> None:
        for event in self._wire.inbox():
            match event:
                case ev.ToolQueued() | ev.ToolStarted() | ev.ToolProgressed() | ev.ToolFinished():
                    self._policy.observe(event)
                    self._holds.hear(event, now_s)
                case ev.SessionArrived():
                    self._policy.observe(event)
                    self._sessions.hear_arrived(event)
                case ev.SessionEnded():
                    self._policy.observe(event)
                    self._sessions.forget(event.session_id)
                    self._holds.forget(event.session_id, now_s)
                case _:
                    pass


class MarsSyncScheduler(MarsMixin, Scheduler):
    pass


class MarsAsyncScheduler(MarsMixin, AsyncScheduler):
    pass


def MarsScheduler(*args: Any, **kwargs: Any) -> MarsSyncScheduler | MarsAsyncScheduler:  # noqa: N802
    """What --scheduler-cls names: picks the base that vLLM itself would have picked.

    Raises InputError when this vLLM is not one the plugin was built for.
    """
    check_version()
    check_seams(Scheduler, BlockPool)
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    base = MarsAsyncScheduler if config.scheduler_config.async_scheduling else MarsSyncScheduler
    return base(*args, **kwargs)
