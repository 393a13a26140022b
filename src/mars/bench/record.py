"""What a replay leaves behind: a folder with one log per policy and the driver's own.

    RUN/run.jsonl        head: the resolved settings; then one line per driver event (below)
    RUN/<policy>.jsonl   the event log of that policy's gateway, all rounds of it (mars.stream.log);
                         of a run with an engine per round: RUN/<policy>-<repeat>.jsonl

A *round* is one repetition of the whole workload under one policy. Rounds are interleaved
(mars.bench.turns); between two rounds of a policy its engine's prefix cache is emptied. An event of
`<policy>.jsonl` belongs to the round of that policy whose [RoundStarted.at_s, RoundEnded.at_s]
holds its `at_s`.
"""

import msgspec

from mars.core.ids import SessionId


class _Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    at_s: float
    policy: str
    repeat: int


class RoundStarted(_Record, frozen=True, kw_only=True):
    sessions: int
    log: str = ""
    """Of a policy that is one arm of several on one stack: whose event log has its rounds."""


class SessionAnswered(_Record, frozen=True, kw_only=True):
    """One agent is through: all its answers, in order, as the driver received them."""

    session_id: SessionId
    """As the gateway knows it: `<recorded id>#<repeat>`."""
    recorded_id: str
    answer_tokens: int
    answers_sha256: str
    """What must be equal under every policy, or the run is invalid: of a replayed session a digest
    over all answer token ids, of a real agent git's name of the tree that it has left."""


class RoundEnded(_Record, frozen=True, kw_only=True):
    pass


Record = RoundStarted | SessionAnswered | RoundEnded
