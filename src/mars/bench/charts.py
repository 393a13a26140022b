"""The figures of the page. A colour means one policy, or one phase, in all of them.

Plotly reads some HTML in labels: every text that comes from a log passes through `html.escape`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mars.bench import phases
from mars.bench.measure import Run, Summary
from mars.bench.rounds import Round, session_times_s
from mars.bench.words import seconds
from mars.core import events as ev

_REFERENCE_COLOUR: Final = "#0072B2"
_COLOURS: Final = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Okabe and Ito's, told apart by every common kind of colour vision."""

_PHASE_COLOURS: Final = dict(
    zip(
        phases.PHASES,
        ("#BBBBBB", "#EE8866", "#44BB99", "#EEDD88", "#77AADD", "#F1F1F1"),  # P. Tol's "light"
        strict=True,
    )
)
MOST_SESSIONS: Final = 40
"""Bars per panel of the timeline; of more sessions, evenly spaced ones are shown."""
_ROOMY_SESSIONS: Final = 16
_GAP_PX: Final = 32
_BINS: Final = 160
_GRID_COLOUR: Final = "#E6E8EB"


def policy_colours(summary: Summary) -> dict[str, str]:
    others = [policy for policy in summary.policies if policy != summary.reference]
    colours = {p: _COLOURS[i % len(_COLOURS)] for i, p in enumerate(others)}
    return {**colours, summary.reference: _REFERENCE_COLOUR}


def representative(summary: Summary) -> int:
    """Index of the repetition whose mean under the reference is the (lower) median one."""
    means_s = [f.mean_s for f in summary.policies[summary.reference].rounds]
    return sorted(range(len(means_s)), key=means_s.__getitem__)[(len(means_s) - 1) // 2]


def distribution(run: Run, colours: Mapping[str, str]) -> Any:
    figure = go.Figure()
    pooled = {p: sorted(t for r in of for t in session_times_s(r)) for p, of in run.rounds.items()}
    longest_s = max(times_s[-1] for times_s in pooled.values())
    for policy, times_s in pooled.items():
        figure.add_scatter(
            x=[0.0, *times_s, longest_s],
            y=[*(100 * i / len(times_s) for i in range(len(times_s) + 1)), 100],
            name=escape(policy),
            mode="lines",
            line={"color": colours[policy], "width": 2.5, "shape": "hv"},
            hovertemplate="%{y:.0f} % of sessions within %{x:.1f} s",
        )
    figure.update_xaxes(title="session time, gate included (s)", rangemode="tozero")
    figure.update_yaxes(title="sessions within that time (%)", range=[0, 103])
    return _dressed(figure, height_px=360)


def time_by_phase(summary: Summary) -> Any:
    policies = list(summary.policies)
    figure = go.Figure()
    for phase in phases.PHASES:
        figure.add_bar(
            orientation="h",
            y=[escape(p) for p in policies],
            x=[summary.policies[p].phase_mean_s[phase] for p in policies],
            name=phase,
            marker=_phase_marker(phase),
            hovertemplate=f"{phase}: %{{x:.2f}} s<extra>%{{y}}</extra>",
        )
    for policy in policies:
        mean_s = summary.policies[policy].mean_s
        label = {"text": f" {seconds(mean_s)}", "showarrow": False, "xanchor": "left"}
        figure.add_annotation(x=mean_s, y=escape(policy), **label)
    figure.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    figure.update_xaxes(title="mean seconds of a session")
    figure.update_yaxes(autorange="reversed", showgrid=False, ticklabelstandoff=6)
    return _dressed(figure, height_px=150 + 44 * len(policies))


def timeline(run: Run, index: int) -> Any:
    panels = {
        policy: evenly(list(phases.fold(rounds[index].events).items()), MOST_SESSIONS)
        for policy, rounds in run.rounds.items()
    }
    most = max(len(lives) for lives in panels.values())
    panel_px = most * (15 if most <= _ROOMY_SESSIONS else 9)
    height_px = 120 + len(panels) * (panel_px + _GAP_PX)
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=_GAP_PX / height_px,
        subplot_titles=[escape(policy) for policy in panels],
    )
    named: set[str] = set()
    for row, (policy, lives) in enumerate(panels.items(), 1):
        zero_s = run.rounds[policy][index].started_s
        for phase in phases.PHASES:
            trace = _phase_bars(phase, lives, zero_s)
            trace.showlegend = bool(trace.x) and phase not in named
            if trace.x:
                named.add(phase)
            figure.add_trace(trace, row=row, col=1)
    figure.update_layout(barmode="overlay", bargap=0.18, legend_traceorder="normal")
    figure.update_xaxes(title="seconds since the repetition began", row=len(panels), col=1)
    figure.update_yaxes(title="session, by arrival", autorange="reversed", showgrid=False)
    return _dressed(figure, height_px)


def evenly(lives: Sequence[Any], most: int) -> Sequence[Any]:
    """At most `most` of them, evenly spaced, the first and the last included."""
    if len(lives) <= most:
        return lives
    return [lives[round(i * (len(lives) - 1) / (most - 1))] for i in range(most)]


def _phase_bars(phase: str, lives: Sequence[tuple[str, list[phases.Span]]], zero_s: float) -> Any:
    bars = [
        (number, sid, s)
        for number, (sid, of) in enumerate(lives, 1)
        for s in of
        if s.phase == phase
    ]
    return go.Bar(
        orientation="h",
        name=phase,
        legendgroup=phase,
        legendrank=phases.PHASES.index(phase),
        y=[number for number, _, _ in bars],
        base=[s.start_s - zero_s for _, _, s in bars],
        x=[s.end_s - s.start_s for _, _, s in bars],
        customdata=[[escape(sid), s.start_s - zero_s] for _, sid, s in bars],
        hovertemplate=f"%{{customdata[0]}}<br>{phase}: %{{x:.2f}} s, "
        "from %{customdata[1]:.1f} s<extra></extra>",
        marker=_phase_marker(phase),
    )


def pressure(run: Run, index: int, colours: Mapping[str, str]) -> Any:
    """One row per policy, one column per resource; a column has one scale."""
    policies = list(run.rounds)
    height_px = 110 + 150 * len(policies)
    figure = make_subplots(
        rows=len(policies),
        cols=3,
        shared_xaxes="all",
        shared_yaxes="columns",
        horizontal_spacing=0.06,
        vertical_spacing=_GAP_PX / height_px,
        column_titles=["KV blocks (share of all)", "tool calls per slot", "sessions"],
    )
    for row, policy in enumerate(policies, 1):
        one, colour = run.rounds[policy][index], colours[policy]
        let_in = _head_count(one, ev.SessionAdmitted, ev.SessionEnded | ev.SessionPaused)
        present = _head_count(one, ev.SessionArrived, ev.SessionEnded)
        areas = (
            (1, "KV in use", _kv_line(one, lambda e: e.kv_used_blocks), colour, 0.25),
            (1, "KV held", _kv_line(one, lambda e: e.kv_held_blocks), colour, 0.9),
            (2, "tool calls per slot", _tool_line(one), colour, 0.25),
            (3, "at the gate or let in", present, _PHASE_COLOURS["gated"], 1.0),
            (3, "let in", let_in, colour, 0.9),
        )
        for column, name, line, fill, opacity in areas:
            figure.add_trace(_area(name, line, fill, opacity), row=row, col=column)
        figure.update_yaxes(title=escape(policy), row=row, col=1)
    for column in (1, 2, 3):
        figure.update_xaxes(title="seconds", row=len(policies), col=column)
    figure.update_yaxes(rangemode="tozero", nticks=4)
    figure.update_layout(showlegend=False)
    return _dressed(figure, height_px)


_Line = tuple[list[float], list[float]]


def _area(name: str, line: _Line, colour: str, opacity: float) -> Any:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=line[0],
        y=line[1],
        name=name,
        mode="lines",
        line={"color": colour, "width": 1, "shape": "hv"},
        fill="tozeroy",
        fillcolor=f"rgba({red},{green},{blue},{opacity})",
        hovertemplate="%{y:.3~g} at %{x:.1f} s",
    )


def _kv_line(one: Round, blocks: Callable[[ev.EngineSampled], int]) -> _Line:
    samples = (e for e in one.events if isinstance(e, ev.EngineSampled))
    return _binned(one, ((e.at_s, blocks(e) / e.kv_total_blocks) for e in samples))


def _tool_line(one: Round) -> _Line:
    samples = (e for e in one.events if isinstance(e, ev.ToolsSampled))
    return _binned(one, ((e.at_s, (e.running + e.waiting) / e.slots) for e in samples))


def _binned(one: Round, samples: Iterable[tuple[float, float]]) -> _Line:
    """Mean of the samples in each of `_BINS` equal parts of the round; parts without one: none."""
    width_s = (one.ended_s - one.started_s) / _BINS
    bins: dict[int, list[float]] = {}
    for at_s, value in samples:
        bins.setdefault(math.floor((at_s - one.started_s) / width_s), []).append(value)
    return [b * width_s for b in bins], [sum(v) / len(v) for v in bins.values()]


def _head_count(one: Round, enters: type[ev.Event], leaves: Any) -> _Line:
    at_s, count = [0.0], [0.0]
    for event in one.events:
        if isinstance(event, enters | leaves):
            at_s.append(event.at_s - one.started_s)
            count.append(count[-1] + (1 if isinstance(event, enters) else -1))
    return at_s, count


def _phase_marker(phase: str) -> dict[str, object]:
    edge = {"color": "#C9CDD2", "width": 0.5} if phase == "client" else {"width": 0}
    return {"color": _PHASE_COLOURS[phase], "line": edge}


def _dressed(figure: Any, height_px: int) -> Any:
    figure.update_layout(
        template="plotly_white",
        height=height_px,
        autosize=True,
        margin={"l": 64, "r": 16, "t": 56, "b": 52},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1F2933"},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        hoverlabel={"namelength": -1},
    )
    figure.update_xaxes(gridcolor=_GRID_COLOUR, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=_GRID_COLOUR, zeroline=False, automargin=True)
    return figure
