"""Which simulated session starts and awaits which: sub-agents."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mars.core.errors import InputError
from mars.core.ids import SessionId
from mars.sim.play import Play


class Spawn(NamedTuple):
    """When the tools of a turn have ended, the parent starts a child; when all children of the turn
    have ended, it thinks and goes on. The `arrives_s` of a child says nothing.
    """

    parent: str
    turn: int
    """From 0; not the last one, after which the parent has ended."""
    child: str


class Families:
    def __init__(self, spawns: Sequence[Spawn], plays: Mapping[SessionId, Play]) -> None:
        """Raises InputError where that is no family."""
        self._parents: dict[SessionId, Play] = {}
        self._of_turn: dict[tuple[SessionId, int], list[Play]] = {}
        self._awaited: dict[SessionId, int] = {}
        """Children that a session still waits for."""
        for spawn in spawns:
            self._add(spawn, plays)
        for session_id in self._parents:
            self._check_root(session_id)

    def _add(self, spawn: Spawn, plays: Mapping[SessionId, Play]) -> None:
        parent_id, child_id = SessionId(spawn.parent), SessionId(spawn.child)
        for session_id in (parent_id, child_id):
            if session_id not in plays:
                raise InputError(f"{spawn}: there is no session {session_id!r}")
        if child_id in self._parents:
            raise InputError(f"{spawn}: session {child_id!r} is started twice")
        parent = plays[parent_id]
        if not 0 <= spawn.turn < len(parent.recorded.turns) - 1:
            raise InputError(f"{spawn}: the parent is not there after this turn")
        self._parents[child_id] = parent
        self._of_turn.setdefault((parent_id, spawn.turn), []).append(plays[child_id])

    def _check_root(self, session_id: SessionId) -> None:
        seen = {session_id}
        while (parent := self._parents.get(session_id)) is not None:
            session_id = parent.session_id
            if session_id in seen:
                raise InputError(f"session {session_id!r} is among those that started it")
            seen.add(session_id)

    def parent_of(self, play: Play) -> Play | None:
        return self._parents.get(play.session_id)

    def of_turn(self, play: Play) -> list[Play]:
        """The children of its present turn, which it waits for from now on."""
        children = self._of_turn.get((play.session_id, play.number), [])
        if children:
            self._awaited[play.session_id] = len(children)
        return children

    def all_of(self, play: Play) -> list[Play]:
        turns = range(len(play.recorded.turns))
        return [c for turn in turns for c in self._of_turn.get((play.session_id, turn), ())]

    def ended(self, child: Play) -> Play | None:
        """Its parent, if that waited for this one alone."""
        parent = self.parent_of(child)
        if parent is None:
            return None
        self._awaited[parent.session_id] -= 1
        return None if self._awaited[parent.session_id] else parent
