"""The engine's APIs as their clients read them: what an error looks like, who names a call.

    API                  an error in JSON                        an error within a stream
    chat, completions    {"error": {...}}                        data: {"error": {...}}
    responses            the same                                event: response.failed
    messages             {"type": "error", "error": {...}}       event: error

While a stream waits at the gate it is sent SSE comments (`: queued`), which all of them read past.
Events would also reset the idle time-outs of clients that count those (Codex), but one before
`response.created` breaks others (the stream helper of `openai`).
"""

from typing import Final

import msgspec

_SAID_CHARS: Final = 2000

_ANTHROPICS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Types of errors by HTTP status, as Anthropic documents them; others are an `api_error`."""

Error = dict[str, object]
"""A JSON object with an `error` in it."""


class Wire:
    """Chat completions and completions, and every path that has no form of its own."""

    keeps_call_id = True
    """The engine names the call by our `X-Request-Id`; else it has a name of its own (ADR 13)."""
    answers_are_named = False
    """A later call may go on from an answer by its id (`previous_response_id`)."""

    def error(self, status: int, kind: str, message: str) -> Error:
        return {"error": {"message": message, "type": kind, "code": status}}

    def event(self, error: Error) -> bytes:
        """The error as an event of a stream, the last one."""
        return b"data: " + msgspec.json.encode(error) + b"\n\n"

    def retold(self, status: int, said: bytes) -> Error:
        """What the engine said instead of a stream."""
        try:
            known = msgspec.json.decode(said, type=Error)
        except (ValueError, RecursionError):
            known = {}
        if known.get("error"):
            return known
        text = said[:_SAID_CHARS].decode("utf-8", "replace")
        return self.error(status, "engine_error", text)


class Responses(Wire):
    keeps_call_id = False
    answers_are_named = True

    def event(self, error: Error) -> bytes:
        """Codex looks into a failed `response`, openai's clients raise at any `error`."""
        failed = {"object": "response", "status": "failed", "error": _coded(error["error"])}
        event = {"type": "response.failed", "sequence_number": 0, "response": failed, **error}
        return b"event: response.failed\ndata: " + msgspec.json.encode(event) + b"\n\n"


class Messages(Wire):
    """Anthropic's."""

    def error(self, status: int, kind: str, message: str) -> Error:
        kind = _ANTHROPICS.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}

    def event(self, error: Error) -> bytes:
        return b"event: error\ndata: " + msgspec.json.encode({"type": "error"} | error) + b"\n\n"


def _coded(error: object) -> dict[str, str]:
    """As a response has it: its `code` is a word."""
    if not isinstance(error, dict):
        return {"code": "server_error", "message": str(error)}
    kind, message = error.get("type"), error.get("message")
    return {"code": str(kind or "server_error"), "message": str(message or error)}


_OPENAI: Final = Wire()
_RESPONSES: Final = Responses()
_MESSAGES: Final = Messages()


def wire_of(path: str) -> Wire:
    """Of a request's path; of one below messages (to count tokens) theirs, too."""
    if path == "/v1/responses":
        return _RESPONSES
    return _MESSAGES if path.startswith("/v1/messages") else _OPENAI
