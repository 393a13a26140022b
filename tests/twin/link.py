"""What the workers of vLLM's OffloadingConnector would report, in the twin's time.

Loads take the link one after the other; stores, which go the other way, take no time. Both as
mars.sim.host_batcher has it.
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.v1.outputs import KVConnectorOutput


class Link:
    def __init__(self, block_s: float) -> None:
        self._block_s, self._free_s = block_s, 0.0
        self._under_way: dict[int, tuple[float, str]] = {}
        """By job when it is over, and the call whose KV is loaded; of stores empty."""
        self.loaded_blocks = 0

    def order(self, jobs: Any, now_s: float) -> None:
        for job, load in jobs.load_jobs.items():
            blocks = len(load.dst_spec.block_ids)
            self.loaded_blocks += blocks
            self._free_s = max(self._free_s, now_s) + blocks * self._block_s
            self._under_way[job] = self._free_s, load.req_id
        self._under_way |= dict.fromkeys(jobs.store_jobs, (now_s, ""))

    def over(self, now_s: float) -> Any:
        over = [job for job, (end_s, _) in self._under_way.items() if end_s <= now_s]
        calls = {self._under_way.pop(job)[1] for job in over}
        return KVConnectorOutput(
            finished_recving=calls - {""},
            kv_connector_worker_meta=OffloadingWorkerMetadata(dict.fromkeys(over, 1)),
        )
