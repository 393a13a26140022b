"""Families: a session that another one has started (a sub-agent) has that one's start.

A parent waits for its child, so whoever the parent goes before, the child goes before too: it is
ranked as if it had come when its root did (here), and it is not kept at a gate that its parent has
passed (core.control). What it takes counts like anybody's.
"""

from collections.abc import Mapping

from mars.core.events import SessionArrived
from mars.core.ids import SessionId


def start_s(event: SessionArrived, starts_s: Mapping[SessionId, float]) -> float:
    """When the root of this session came; of a parent that is not known (any more): its own time.

    `starts_s`: of the sessions that are open, found by this very function.
    """
    own_s = event.first_s
    return own_s if event.parent_id is None else starts_s.get(event.parent_id, own_s)
