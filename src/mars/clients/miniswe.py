"""mini-swe-agent's commands under leases, and its calls in sessions: classes for its configuration.

    model:
      model_class: mars.clients.miniswe.SessionModel
    environment:
      environment_class: mars.clients.miniswe.LeasedEnvironment

Its model and its environment know nothing of each other, but an agent uses both in one thread: a
command is of the session whose model was asked last there.
"""

import asyncio
import os
import threading
import uuid
from pathlib import Path
from typing import Any

from minisweagent.environments.local import LocalEnvironment, LocalEnvironmentConfig
from minisweagent.models.litellm_model import LitellmModel, LitellmModelConfig

from mars.clients.commands import program
from mars.core.errors import InputError
from mars.tools.client import ToolClient, default_state_file, find_server
from mars.tools.wire import Finished, Output, RunRequest


class _Here(threading.local):
    session_id: str = ""
    """Of the model that was asked last in this thread."""


_here = _Here()


class SessionModelConfig(LitellmModelConfig):
    session_id: str = ""
    """Empty: one is made up."""


class SessionModel(LitellmModel):
    def __init__(self, **options: Any) -> None:
        super().__init__(config_class=SessionModelConfig, **options)
        self.session_id = self.config.session_id or uuid.uuid4().hex

    def _query(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        _here.session_id = self.session_id
        headers = {**self.config.model_kwargs.get("extra_headers", {})}
        headers["X-Session-ID"] = self.session_id
        return super()._query(messages, **{**options, "extra_headers": headers})


class LeasedEnvironmentConfig(LocalEnvironmentConfig):
    state_file: str = ""
    """The tool server's; empty: this user's."""


class LeasedEnvironment(LocalEnvironment):
    def __init__(self, **options: Any) -> None:
        """Raises InputError when no tool server is there."""
        super().__init__(config_class=LeasedEnvironmentConfig, **options)
        given = self.config.state_file
        self._server = find_server(Path(given) if given else default_state_file())

    def execute(
        self, action: dict[str, Any], cwd: str = "", *, timeout: int | None = None
    ) -> dict[str, Any]:
        """As `LocalEnvironment.execute`. Raises InputError, PartDiedError."""
        if not _here.session_id:
            raise InputError("LeasedEnvironment goes with model_class SessionModel")
        command = action.get("command", "")
        timeout_s = timeout or self.config.timeout
        output = bytearray()
        request = RunRequest(
            # what a shell makes of both streams, in the order in which they come
            argv=["/bin/sh", "-c", 'exec /bin/sh -c "$0" 2>&1', command],
            session_id=_here.session_id,
            tool=program(command),
            timeout_s=timeout_s,
            cwd=cwd or self.config.cwd or str(Path.cwd()),
            env={**os.environ, **self.config.env},
        )
        finished = asyncio.run(self._run(request, output))
        result: dict[str, Any] = {
            "output": output.decode(errors="replace"),
            "returncode": finished.exit_code,
            "exception_info": "",
        }
        if finished.why == "timeout":
            said = f"The command was ended after {timeout_s} s"
            result |= {
                "returncode": -1,
                "exception_info": said,
                "extra": {"exception_type": "TimeoutExpired", "exception": said},
            }
        self._check_finished(result)
        return result

    async def _run(self, request: RunRequest, output: bytearray) -> Finished:
        def take(piece: Output) -> None:
            if piece.skipped_bytes:
                output.extend(f"\n[{piece.skipped_bytes} bytes are left out here]\n".encode())
            output.extend(piece.data)

        async with ToolClient(*self._server) as client:
            return await client.run(request, take)
