"""The terminal of OpenHands' SDK under core leases.

    from mars.clients.openhands import lease_terminals
    lease_terminals()          # before the first conversation; then everything as ever

A subclass of the SDK's own terminal tool takes the place of `terminal` in its registry, so
sub-agents get it, too. Shells stay the SDK's: the tool server lends cores to the shell for as long
as what was typed into it runs, and tells the scheduler when a call starts and ends. The session is
the conversation, whose id the SDK sends with every call of the model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from openhands.sdk.tool import register_tool
from openhands.tools.terminal import (
    TerminalAction,
    TerminalExecutor,
    TerminalObservation,
    TerminalTool,
)

from mars.clients.commands import program
from mars.clients.leases import ShellLeases
from mars.core.errors import InputError
from mars.tools.client import default_state_file
from mars.tools.wire import ShellEntry


def lease_terminals(state_file: Path | None = None) -> None:
    """Have the terminals of all conversations to come under leases.

    `state_file`: of another tool server than this user's. Raises InputError when there is none.
    """
    LeasedTerminalTool.leases = ShellLeases(state_file or default_state_file())
    register_tool(TerminalTool.name, LeasedTerminalTool)


class LeasedTerminalTool(TerminalTool):
    name = TerminalTool.name
    leases: ClassVar[ShellLeases | None] = None

    @classmethod
    def create(cls, conv_state: Any, **options: Any) -> Sequence[TerminalTool]:
        """As `TerminalTool.create`, whose options it takes. Raises InputError without leases."""
        if cls.leases is None:
            raise InputError("call mars.clients.openhands.lease_terminals() first")
        executor = LeasedTerminal(
            str(conv_state.id),
            cls.leases,
            working_dir=conv_state.workspace.working_dir,
            full_output_save_dir=conv_state.env_observation_persistence_dir,
            **options,
        )
        tools: Sequence[TerminalTool] = super().create(conv_state, executor=executor)
        return tools


class LeasedTerminal(TerminalExecutor):
    """One shell, which the SDK uses for one call at a time; `is_pooled` says so (no tmux pool)."""

    def __init__(self, session_id: str, leases: ShellLeases, **options: Any) -> None:
        super().__init__(**{**options, "terminal_type": "subprocess"})
        self._session_id = session_id
        self._leases = leases

    def __call__(self, action: TerminalAction, conversation: Any = None) -> TerminalObservation:
        """Raises InputError, PartDiedError as `ShellLeases.entered` does."""
        if action.reset:  # another shell, which then needs the cores
            reset = super().__call__(TerminalAction(command="", reset=True), conversation)
            if not action.command.strip():
                return reset
            action = action.model_copy(update={"reset": False})
        entry = ShellEntry(
            session_id=self._session_id, tool=program(action.command), pid=self._shell_pid()
        )
        with self._leases.entered(entry) as call:
            observation = super().__call__(action, conversation)
            if observation.exit_code is not None:
                call.exit_code = observation.exit_code
        return observation

    def _shell_pid(self) -> int:
        terminal = self.session.terminal
        process = getattr(terminal, "process", None)  # the SDK resets to tmux where there is one
        return process.pid if process else int(terminal.pane.pane_pid)
