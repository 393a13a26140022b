import inspect
from importlib import metadata

import pytest
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched.scheduler import Scheduler

from mars.core.errors import InputError
from mars.vllm_plugin.bare import BareEngine
from mars.vllm_plugin.calls import call_id_of
from mars.vllm_plugin.contract import check_seams, check_version
from mars.vllm_plugin.scheduler import MarsScheduler
from mars.vllm_plugin.settings import read_settings


def test_the_installed_vllm_is_supported() -> None:
    assert check_version().startswith("0.32.")
    check_seams(Scheduler, BlockPool)


@pytest.mark.parametrize(
    ("installed", "says"),
    [({"vllm": "0.33.1"}, "vLLM 0.33.1 is not supported"), ({}, "vLLM is not installed")],
)
def test_another_vllm_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], says: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(InputError, match=says) as refused:
        check_version()
    assert "0.32" in str(refused.value), "it says what to install"


def test_a_missing_or_changed_seam_is_named() -> None:
    class Changed:
        schedule = Scheduler.schedule

        def add_request(self, request: object, more: object) -> None: ...

    with pytest.raises(InputError) as refused:
        check_seams(Changed, BlockPool)
    assert "_free_blocks is missing" in str(refused.value)
    assert "add_request('request', 'more') instead of" in str(refused.value)
    assert "schedule(" not in str(refused.value).replace("schedule() lacks", "")


def test_a_rewritten_schedule_is_noticed() -> None:
    class Rewritten(Scheduler):  # type: ignore[misc]
        def schedule(self, throttle_prefills: object) -> None: ...

    assert "max(" not in inspect.getsource(Rewritten.schedule)
    with pytest.raises(InputError, match="schedule\\(\\) lacks"):
        check_seams(Rewritten, BlockPool)


@pytest.mark.parametrize(
    ("mars", "says"),
    [
        ({"scheduling": {"policy": "best"}}, "unknown policy 'best'; one of: fcfs"),
        ({"polcy": "mars"}, "unknown field `polcy`"),
        ({"scheduling": {"hold": {"most_s": -1}}}, "most_s"),
        ({"scheduling": {"window": {"kv_low_frac": 0.95}}}, "kv_low_frac"),
    ],
)
def test_bad_settings_are_named(model: str, mars: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        BareEngine(MarsScheduler, model=model, blocks=100, mars=mars)


def test_no_settings_are_the_defaults() -> None:
    assert read_settings({}).scheduling.policy == "mars"


@pytest.mark.parametrize(
    ("request_id", "call_id"),
    [
        ("chatcmpl-abc-12ab34cd", "abc"),
        ("chatcmpl-a-b-c-12ab34cd", "a-b-c"),
        ("cmpl-abc-0-12ab34cd", "abc"),
        ("resp_abc_0-12ab34cd", "resp_abc"),
        ("offline-7", "offline-7"),
    ],
)
def test_the_call_id_is_what_the_request_is_called(request_id: str, call_id: str) -> None:
    assert call_id_of(request_id) == call_id
