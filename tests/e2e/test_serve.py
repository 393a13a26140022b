"""The promises of `mars serve`, with real clients against a real vLLM."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import httpx
import openai
import psutil
import pytest
from anthropic.types import MessageParam
from openai.types.responses import ResponseCompletedEvent
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.e2e.conftest import Serve, Served
from tests.stream.collector import Collector, value

from mars.bench.tiny import BLOCK_TOKENS, KV_BLOCKS
from mars.core import events as ev
from mars.sim.profiles import load_profile

pytestmark = pytest.mark.timeout(400)


def eventually(holds: Callable[[], bool], within_s: float = 15.0) -> None:
    end_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end_s, "it never came to hold"


def ask(served: Served, prompt: list[int], session: str, **more: str) -> list[int]:
    answer = httpx.post(
        f"{served.base_url}/completions",
        json={
            "model": served.model,
            "prompt": prompt,
            "max_tokens": 24,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        },
        headers={"X-Session-ID": session, **more},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    tokens: list[int] = answer.json()["choices"][0]["token_ids"]
    return tokens


def test_an_unmodified_openai_client_chats_streams_and_lists_models(served: Served) -> None:
    client = served.client
    assert [model.id for model in client.models.list()] == [served.model]
    plain = client.chat.completions.create(
        model=served.model, messages=[{"role": "user", "content": "hello"}], max_tokens=8,
        temperature=0, extra_body={"ignore_eos": True},
    )  # fmt: skip
    stream = client.chat.completions.create(
        model=served.model, messages=[{"role": "user", "content": "hello"}], max_tokens=8,
        temperature=0, extra_body={"ignore_eos": True}, stream=True,
    )  # fmt: skip
    chunks = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert plain.usage is not None
    assert plain.usage.completion_tokens == 8
    assert "".join(chunks) == plain.choices[0].message.content


def test_an_unmodified_anthropic_client_talks_streams_and_counts(served: Served) -> None:
    client = anthropic.Anthropic(
        base_url=served.root, api_key="none", max_retries=0, timeout=60,
        default_headers={"X-Session-ID": "messages"},
    )  # fmt: skip
    ask: list[MessageParam] = [{"role": "user", "content": "hello"}]
    how: dict[str, Any] = {
        "model": served.model, "max_tokens": 8, "extra_body": {"temperature": 0, "unknown": [1]},
    }  # fmt: skip
    plain = client.messages.create(messages=ask, **how)
    with client.messages.stream(messages=ask, **how) as stream:
        streamed = stream.get_final_text()
    assert [it.text for it in plain.content if it.type == "text"] == [streamed]
    assert client.messages.count_tokens(model=served.model, messages=ask).input_tokens > 0
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        client.messages.create(messages=ask, model="another", max_tokens=8)
    assert_accounted(served, "messages", [True, True, False])


def test_responses_are_calls_of_their_session(served: Served) -> None:
    client = served.client.with_options(default_headers={"X-Session-ID": "responses"})
    how: dict[str, Any] = {"model": served.model, "max_output_tokens": 8, "temperature": 0}
    plain = client.responses.create(input="hello", **how)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.responses.create(input="hello", model="another")
    *_, last = client.responses.create(input="hello", stream=True, **how)
    assert isinstance(last, ResponseCompletedEvent)
    assert last.response.output_text == plain.output_text
    assert_accounted(served, "responses", [True, False, True])


def test_a_client_without_an_id_is_one_session(served: Served) -> None:
    messages: list[Any] = [{"role": "user", "content": "say something of your own"}]
    for _ in range(3):
        answer = served.client.chat.completions.create(
            model=served.model, messages=messages, max_tokens=8, temperature=0,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        said = answer.choices[0].message
        messages += [said.model_dump(exclude_none=True), {"role": "user", "content": "go on"}]

    def found() -> list[ev.SessionArrived]:
        arrived = [e for e in served.events() if isinstance(e, ev.SessionArrived)]
        return [e for e in arrived if e.rule == "messages"]

    eventually(lambda: bool(found()))
    session = found()[0].session_id
    eventually(lambda: len(facts(served, session, ev.CallServed)) == 3)
    first, *more = facts(served, session, ev.CallServed)
    assert all(it.prompt_tokens > first.prompt_tokens for it in more)


def assert_accounted(served: Served, session: str, served_ones: list[bool]) -> None:
    """The engine accounted for just these calls of the session, under the gateway's names."""
    eventually(lambda: len(facts(served, session, ev.CallFinished)) == len(served_ones))
    eventually(lambda: len(facts(served, session, ev.CallServed)) >= sum(served_ones))
    queued = [e.call_id for e in facts(served, session, ev.CallQueued)]
    accounted = [e.call_id for e in facts(served, session, ev.CallServed)]
    assert accounted == [it for it, ok in zip(queued, served_ones, strict=True) if ok]


def test_the_engines_own_error_passes_unchanged(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        served.client.chat.completions.create(
            model="another", messages=[{"role": "user", "content": "hello"}]
        )


def test_a_session_is_seen_from_arrival_to_end_and_its_return_is_warm(served: Served) -> None:
    prompt = [300 + i % 3000 for i in range(1500)]
    answer = ask(served, prompt, "warm")
    prompt += [*answer, *range(400, 440)]
    warm = ask(served, prompt, "warm", **{"X-Session-Final": "1"})
    cold_prompt_again = ask(served, prompt, "same words, another session")
    assert warm == cold_prompt_again, "a warm answer is the answer"

    def ended() -> bool:
        return any(
            isinstance(e, ev.SessionEnded) and e.session_id == "warm" for e in served.events()
        )

    eventually(ended)
    eventually(lambda: len(facts(served, "warm", ev.CallServed)) == 2)
    mine = [type(e).__name__ for e in served.events() if getattr(e, "session_id", "") == "warm"]
    assert mine[:2] == ["SessionArrived", "SessionAdmitted"]
    assert mine.count("CallStarted") == mine.count("CallFinished") == 2
    assert "KvHeld" in mine
    first, second = facts(served, "warm", ev.CallServed)
    assert first.cached_tokens == 0
    assert second.cached_tokens >= 1500
    assert second.call_id == facts(served, "warm", ev.CallQueued)[1].call_id, "one id everywhere"


Kind = TypeVar("Kind", bound=ev.SessionEvent)


def facts(served: Served, session: str, kind: type[Kind]) -> list[Kind]:
    return [e for e in served.events() if isinstance(e, kind) and e.session_id == session]


def test_mars_exec_runs_a_command_for_a_session_and_the_stream_knows(served: Served) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(served.runtime)}
    ran = subprocess.run(
        [sys.executable, "-m", "mars", "exec", "--session", "tooled", "--tool", "greet", "--",
         "sh", "-c", "echo out; echo err >&2; sleep 1.5; exit 7"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, "out\n", "err\n")
    eventually(lambda: bool(facts(served, "tooled", ev.ToolFinished)))
    finished = facts(served, "tooled", ev.ToolFinished)[0]
    assert (finished.tool, finished.exit_code) == ("greet", 7)
    progress = facts(served, "tooled", ev.ToolProgressed)[0]
    assert (progress.tool_id, progress.tool) == (finished.tool_id, "greet")
    assert progress.at_s < finished.at_s


def test_calibrate_measures_a_vllm_that_runs_already(served: Served, tmp_path: Path) -> None:
    engine = psutil.Process(served.part("api_server")).cmdline()
    upstream = f"http://127.0.0.1:{engine[engine.index('--port') + 1]}"
    out = tmp_path / "mine.json"
    subprocess.run(
        [sys.executable, "-m", "mars", "calibrate", "--upstream", upstream, "--out", str(out),
         "--step-tokens", "1024"],
        check=True, cwd=tmp_path, timeout=280,
    )  # fmt: skip
    profile = load_profile(out)
    assert profile.kv_capacity_tokens() == KV_BLOCKS * BLOCK_TOKENS
    cost = profile.cost()
    assert 0.0 < cost.step_s(1, 100, ()) < cost.step_s(0, 0, [(1000, 0)])


def test_calibrate_says_when_nobody_answers(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "mars", "calibrate", "--upstream", "http://127.0.0.1:9"],
        check=False, cwd=tmp_path, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "no vLLM answers at http://127.0.0.1:9/v1/models" in ran.stderr


def test_a_client_that_leaves_in_mid_stream_frees_the_engine(served: Served) -> None:
    body = {
        "model": served.model, "prompt": list(range(300, 900)), "max_tokens": 4000,
        "ignore_eos": True, "stream": True,
    }  # fmt: skip
    headers = {"X-Session-ID": "leaver"}
    with httpx.stream(
        "POST", f"{served.base_url}/completions", json=body, headers=headers, timeout=60
    ) as stream:
        next(stream.iter_raw())
    eventually(lambda: bool(facts(served, "leaver", ev.CallServed)))
    left = facts(served, "leaver", ev.CallServed)[0]
    assert not left.ok
    assert left.made_tokens < 4000
    finished = facts(served, "leaver", ev.CallFinished)[0]
    assert not finished.ok


def test_status_says_who_is_there_and_the_endpoint_ends_a_session(served: Served) -> None:
    ask(served, [500] * 40, "stays")
    sessions = httpx.get(f"{served.root}/mars/sessions").text
    assert "stays" in sessions
    assert httpx.delete(f"{served.root}/mars/sessions/stays").status_code == 200
    assert "stays" not in httpx.get(f"{served.root}/mars/sessions").text
    assert httpx.delete(f"{served.root}/mars/sessions/stays").status_code == 404


def test_an_engine_that_dies_in_mid_stream_is_an_error_to_its_client_and_ends_serve(
    serve: Serve,
) -> None:
    served = serve()
    served.wait_until_ready()
    engine = served.part("api_server.entry")  # looked up first: beside a busy engine it takes long
    stream = served.client.completions.create(
        model=served.model, prompt=list(range(300, 900)), max_tokens=5000, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    next(iter(stream))
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(openai.OpenAIError):
        list(stream)
    said = served.rest()
    assert served.process.returncode == 3, said
    assert "the engine has ended (killed by SIGKILL)" in said
    assert "engine.log" in said


def test_ctrl_c_leaves_no_process(serve: Serve) -> None:
    served = serve()
    served.wait_until_ready()
    pids = [served.part(a) for a in ("api_server.entry", "mars tools", "mars gateway")]
    workers = subprocess.run(
        ["pgrep", "-g", ",".join(map(str, pids))],  # noqa: S607
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert len(workers) > len(pids), "vLLM has workers"
    processes = [psutil.Process(int(pid)) for pid in workers]
    served.process.send_signal(signal.SIGINT)
    said = served.rest()
    assert served.process.returncode == 0, said
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


def test_an_engine_that_cannot_start_says_why(serve: Serve) -> None:
    served = serve(vllm=("--no-such-argument",))
    said = served.rest()
    assert served.process.returncode == 3, said
    assert "no-such-argument" in said


def test_a_session_arrives_at_the_collector_with_the_engine_s_account(
    served: Served, collector: Collector
) -> None:
    ask(served, [9] * 50, "traced")
    assert httpx.delete(f"{served.root}/mars/sessions/traced").status_code == 200

    def found(name: str) -> list[Span]:
        named = collector.all_named(name)
        return [it for it in named if value(it, "gen_ai.conversation.id") == "traced"]

    eventually(lambda: bool(found("invoke_agent")))
    [session], [call] = found("invoke_agent"), found("chat")
    assert call.parent_span_id == session.span_id
    assert value(call, "gen_ai.usage.input_tokens") == 50
    assert value(call, "gen_ai.usage.output_tokens") == 24
