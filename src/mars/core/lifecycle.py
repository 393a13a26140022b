"""docs/lifecycle.md, drawn from the table that the code obeys.

    python -m mars.core.lifecycle > docs/lifecycle.md
"""

import sys
from collections.abc import Mapping
from typing import Final

from mars.core import events as ev
from mars.core.session import MOVES, Phase

_MEANING: Final[Mapping[Phase, str]] = {
    Phase.GATED: "it has arrived; the control plane has not let it in",
    Phase.QUEUED: "a call waits in the engine",
    Phase.RUNNING: "a call is on the GPU",
    Phase.ACTING: "off the GPU: a tool runs or waits for cores, or the client thinks",
    Phase.ENDED: "it has left; nothing moves it any more",
}

_PAGE: Final = """\
# The life of a session

Generated from `MOVES` in `src/mars/core/session.py` by `python -m mars.core.lifecycle`; do not edit.

{phases}

```mermaid
stateDiagram-v2
{arrows}
```

What each event leads to. A dot is an illegal move: it raises `IllegalMoveError` and changes nothing.

{table}

When a session has several calls open, each of them walks from the resting phase on its own, and the
session shows the busiest: running before queued before the phase at rest. An event that is not
about a call moves the resting phase, so a tool may run while another call is on the GPU.
"""


def diagram() -> str:
    """The page: what the phases mean, the state diagram, and the table of moves."""
    phases = "\n".join(f"* **{phase.value}**: {_MEANING[phase]}" for phase in Phase)
    return _PAGE.format(phases=phases, arrows="\n".join(_arrows()), table="\n".join(_table()))


def _arrows() -> list[str]:
    """One arrow for each pair of phases, with every event that takes it."""
    labels: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, event), after in MOVES.items():
        labels.setdefault((phase, after), []).append(event.__name__)
    return [
        f"    [*] --> {Phase.GATED.value} : {ev.SessionArrived.__name__}",
        *(
            f"    {phase.value} --> {after.value} : {', '.join(events)}"
            for (phase, after), events in labels.items()
        ),
        f"    {Phase.ENDED.value} --> [*]",
    ]


def _table() -> list[str]:
    """One row for each event, one column for each phase that anything leaves."""
    events = list(dict.fromkeys(event for _, event in MOVES))
    phases = [phase for phase in Phase if any(phase is before for before, _ in MOVES)]
    rows = [["event", *(phase.value for phase in phases)], ["---"] * (1 + len(phases))]
    for event in events:
        moves = (MOVES.get((phase, event)) for phase in phases)
        rows.append([f"`{event.__name__}`", *(after.value if after else "·" for after in moves)])
    return [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    sys.stdout.write(diagram())
