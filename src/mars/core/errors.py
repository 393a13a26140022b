"""Errors that can leave the package, and the exit code `mars` ends with.

* MarsError                  1
  + InputError               2  what the user gave cannot be run; the text says what to change
  + PartDiedError            3  a process that the run needs has ended
  + ResultError              4  a run ended, but its result is not valid
  + IllegalMoveError         1  events came in an impossible order: a bug of ours
"""


class MarsError(Exception):
    exit_code = 1


class InputError(MarsError):
    exit_code = 2


class PartDiedError(MarsError):
    exit_code = 3


class ResultError(MarsError):
    exit_code = 4


class IllegalMoveError(MarsError):
    def __init__(self, session_id: str, phase: str, event: str) -> None:
        super().__init__(f"session {session_id}: {event} cannot happen while {phase}")
