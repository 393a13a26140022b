"""Recorded answers for agents that know nothing of it: a proxy between them and the gateway.

    agent (unmodified) --> Forcing --> gateway --> vLLM with vllm_plugin.forced

A conversation is known by the newest task that a user message states, and a turn by the number of
answers since. (Of a conversation that the agent condenses, the forced summary can state the rest.)
The proxy adds the tokens of the recorded answer to the request, and nothing else: vLLM computes the
prompt and makes the answer step by step, parses its tool calls, and the agent gets what vLLM says,
byte by byte. So every policy sees the same conversations, whatever time and tools do.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from mars.core.errors import ResultError
from mars.gateway.settings import GatewaySettings
from mars.gateway.upstream import Upstream, request_headers, response_headers

_END: Final = "<|im_end|>"
_MOST_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn of an assistant: what it says, then the tools that it calls."""

    says: str
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()

    @property
    def text(self) -> str:
        """As models of the Hermes and Qwen families write it, and the chat template renders it."""
        return self.says + "".join(
            f'\n<tool_call>\n{{"name": "{name}", "arguments": '
            f"{json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>"
            for name, arguments in self.calls
        )


Recording = Sequence[Sequence[int]]
"""The tokens of each answer of a conversation."""


def record(answers: Mapping[str, Sequence[Answer]], model: str) -> dict[str, Recording]:
    """Conversations by the statement of their task, in the model's tokens."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds

    tokenizer = AutoTokenizer.from_pretrained(model)
    return {
        task: [tokenizer.encode(answer.text + _END, add_special_tokens=False) for answer in of]
        for task, of in answers.items()
    }


class Forcing:
    """Its recordings are by the statement of their task."""

    def __init__(self, recordings: Mapping[str, Recording]) -> None:
        self._recordings = recordings
        self.unknown: list[str] = []
        """Why requests were refused; a run with any is not valid."""

    def force(self, body: dict[str, Any]) -> None:
        """Add the recorded answer. Raises ResultError when there is none."""
        made, asked = 0, ""
        recording: Recording = ()
        for message in reversed(body["messages"]):
            if message["role"] == "assistant":
                made += 1
            elif message["role"] == "user":
                asked = _text(message)
                if stated := [task for task in self._recordings if task in asked]:
                    recording = self._recordings[max(stated, key=asked.rfind)]
                    break
        if made >= len(recording):
            turn = f"number {made + 1}" if recording else "of a task without recording"
            self.unknown.append(f"an answer {turn}: {asked[:200]!r}")
            raise ResultError(f"no recorded answer: {self.unknown[-1]}")
        forced = list(recording[made])
        body["vllm_xargs"] = {**(body.get("vllm_xargs") or {}), "forced_tokens": forced}
        body.pop("max_completion_tokens", None)
        body["max_tokens"] = len(forced)

    @asynccontextmanager
    async def before(self, gateway_url: str) -> AsyncIterator[str]:
        """Serve before this gateway, on loopback; gives the URL to tell the agents."""
        async with Upstream(gateway_url, GatewaySettings()) as upstream:
            app = web.Application(client_max_size=_MOST_BYTES)
            app.router.add_route("*", "/{path:.*}", lambda request: self._pass(request, upstream))
            runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                yield f"http://127.0.0.1:{runner.addresses[0][1]}"
            finally:
                await runner.cleanup()

    async def _pass(self, request: web.Request, upstream: Upstream) -> web.StreamResponse:
        body = await request.read()
        if request.path.endswith("/chat/completions"):
            wanted = json.loads(body)
            try:
                self.force(wanted)
            except ResultError as error:
                return web.json_response({"error": {"message": str(error)}}, status=400)
            body = json.dumps(wanted).encode()
        headers = request_headers(((k.lower(), v) for k, v in request.raw_headers), {})
        answer = await upstream.send(request.method, request.raw_path, headers, body)
        try:
            back = web.StreamResponse(status=answer.status)
            for name, value in response_headers(answer):
                back.headers.add(name.decode(), value.decode("latin-1"))
            await back.prepare(request)
            with suppress(ConnectionResetError):  # the agent has left: that is its own affair
                async for chunk in answer.content.iter_any():
                    await back.write(chunk)
                await back.write_eof()
            return back
        finally:
            answer.release()


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
