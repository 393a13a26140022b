"""The real vLLM scheduler without a model: for tests, and for measuring what a step costs.

`BareEngine.step` schedules, answers every call whose known tokens are all computed with one token,
and hands that back: what a model runner would do, in no time.
"""

import random
from collections.abc import Callable
from typing import Any, Final

import torch
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    KVTransferConfig,
    ModelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_TOKENS: Final = 16
STOCK: Final[Any] = Scheduler
"""What the plugin is measured against."""


class BareEngine:
    def __init__(
        self,
        scheduler: Callable[..., Any],
        *,
        model: str,
        blocks: int,
        most_calls: int = 16,
        step_tokens: int = 2048,
        context_tokens: int = 16384,
        async_scheduling: bool = False,
        window_tokens: int = 0,
        host_blocks: int = 0,
        mars: dict[str, Any] | None = None,
    ) -> None:
        """`host_blocks`: of host memory behind the KV, under vLLM's own OffloadingConnector."""
        config = VllmConfig(
            scheduler_config=SchedulerConfig(
                max_num_seqs=most_calls,
                max_num_batched_tokens=step_tokens,
                max_model_len=context_tokens,
                is_encoder_decoder=False,
                enable_chunked_prefill=True,
                async_scheduling=async_scheduling,
            ),
            model_config=ModelConfig(model=model, dtype="float32", seed=42),
            cache_config=CacheConfig(block_size=BLOCK_TOKENS, enable_prefix_caching=True),
            device_config=DeviceConfig("cpu"),
            kv_transfer_config=_offloading(host_blocks) if host_blocks else None,
            additional_config={} if mars is None else {"mars": mars},
        )
        # the CPU platform switches async scheduling off; the scheduler itself does not mind
        config.scheduler_config.async_scheduling = async_scheduling
        config.cache_config.num_gpu_blocks = blocks
        self._transfers = Transfers()
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)
        self.scheduler = scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=blocks,
                kv_cache_tensors=[],
                kv_cache_groups=_groups(window_tokens),
                prefix_cache_retention_interval=(
                    config.cache_config.prefix_cache_retention_interval if window_tokens else None
                ),
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS,
            log_stats=True,
        )

    @property
    def free_blocks(self) -> int:
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def add(
        self,
        call: str,
        prompt: list[int],
        answer_tokens: int,
        session: str | None,
        priority: int = 0,
    ) -> Any:
        request = Request(
            request_id=call,
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=answer_tokens, ignore_eos=True),
            pooling_params=None,
            block_hasher=self._hasher,
            session_id=session,
            priority=priority,
        )
        self.scheduler.add_request(request)
        return request

    def step(self) -> tuple[Any, list[Any]]:
        """One engine step; returns vLLM's SchedulerOutput and the requests that ended in it."""
        scheduler = self.scheduler
        output = scheduler.schedule()
        requests = {r: scheduler.requests[r] for r in output.num_scheduled_tokens}
        made = answer(requests)
        made.kv_connector_output = self._transfers.step(output.kv_connector_metadata)
        scheduler.update_from_output(output, made)
        return output, [q for r, q in requests.items() if r not in scheduler.requests]


class Transfers:
    """What vLLM's workers report of loads and stores: each is over with the next step."""

    def __init__(self) -> None:
        self._under_way: dict[int, str] = {}
        """Calls, by job; of stores empty."""

    def step(self, ordered: Any) -> Any:
        if ordered is None:
            return None
        done = self._under_way
        self._under_way = {job: load.req_id for job, load in ordered.load_jobs.items()}
        self._under_way |= dict.fromkeys(ordered.store_jobs, "")
        return KVConnectorOutput(
            finished_recving={call for call in done.values() if call},
            kv_connector_worker_meta=OffloadingWorkerMetadata(dict.fromkeys(done, 1)),
        )


def _offloading(blocks: int) -> KVTransferConfig:
    """A block takes a page of the machine at least, and those here are small."""
    return KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={
            "cpu_bytes_to_use": blocks * CPUOffloadingSpec.BLOCK_SIZE_ALIGNMENT
        },
    )


def _groups(window_tokens: int) -> list[KVCacheGroupSpec]:
    """Of a model whose layers all see everything, or of which the first sees a window."""
    form: Any = {
        "block_size": BLOCK_TOKENS,
        "num_kv_heads": 1,
        "head_size": 1,
        "dtype": torch.float32,
    }
    groups = [KVCacheGroupSpec(["layer"], FullAttentionSpec(**form))]
    if window_tokens:
        spec = SlidingWindowSpec(sliding_window=window_tokens, **form)
        groups.insert(0, KVCacheGroupSpec(["window"], spec))
    return groups


def answer(requests: dict[str, Any]) -> Any:
    """A model's output for one step: token 7 for each call that is not in mid-prefill."""
    made = [[] if q.is_prefill_chunk else [7] for q in requests.values()]
    index = {r: i for i, r in enumerate(requests)}
    return ModelRunnerOutput(req_ids=list(requests), req_id_to_index=index, sampled_token_ids=made)


def random_prompt(seed: int, tokens: int) -> list[int]:
    rng = random.Random(seed)  # noqa: S311
    return [rng.randrange(4000) for _ in range(tokens)]
