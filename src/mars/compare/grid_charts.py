"""The charts of a grid's page, a few per scene. A colour and a sign mean one policy in all of them.

Ink and grid lines are the page's to set (light or dark): see `mars.compare.grid_page`. Plotly reads
some HTML in labels, so every name passes through `html.escape`.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final, NamedTuple

import plotly.graph_objects as go

from mars.bench.words import seconds
from mars.compare.findings import OverCells
from mars.compare.standing import REFERENCE, Cell, InCell, is_ablation

_REFERENCE_COLOUR: Final = "#1B86D6"
_COLOURS: Final = (
    "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#9A6FD0", "#A0762F", "#C23B4B",
    "#6F8F2F", "#7A8793",
)  # fmt: skip
"""Okabe and Ito's without black, and more of the same lightness: readable on white and on black."""
_SIGNS: Final = ("square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
_PHASE_COLOURS: Final = ("#97A1AD", "#EE8866", "#2FAE8F", "#DDBB33", "#77AADD", "#B79BC9")
_BOUND_COLOUR: Final = "#8A94A0"
CHOSEN_RHO: Final = 0.9
"""Where the time goes is drawn at the least load from here on, past the knee, or the largest."""
_TICKS: Final = [m * 10.0**power for power in range(-3, 7) for m in (1, 2, 5)]
"""Of a logarithmic axis; what lies outside of it is not drawn."""
_HEIGHT_PX: Final = 340


class Look(NamedTuple):
    colour: str
    sign: str
    dash: str


BOUNDS: Final[Mapping[str, Look]] = {
    "alone on the machine": Look(_BOUND_COLOUR, "line-ew", "dot"),
    "oracle (clairvoyant)": Look(_BOUND_COLOUR, "line-ew", "dash"),
}


def looks(policies: Sequence[str]) -> dict[str, Look]:
    """A policy as released looks like the calibrated one, dashed; so do ablations of another."""
    plain = [p for p in policies if p != REFERENCE and not p.endswith("-released")]
    found = {REFERENCE: Look(_REFERENCE_COLOUR, "circle", "solid")}
    for place, policy in enumerate(plain):
        colour, sign = _COLOURS[place % len(_COLOURS)], _SIGNS[place % len(_SIGNS)]
        found[policy] = Look(colour, sign, "dash" if is_ablation(policy) else "solid")
    for policy in policies:
        if policy not in found:
            colour, sign, _ = found.get(policy.removesuffix("-released"), found[REFERENCE])
            found[policy] = Look(colour, f"{sign}-open", "dash")
    return {policy: found[policy] for policy in policies}


def latency(cells: Sequence[Cell], policies: Mapping[str, Look]) -> Any:
    """Mean over load, with the bounds."""
    figure = _over_load(cells, policies, lambda of: of.mean_s, "s")
    values = ([c.isolated_mean_s for c in cells], [c.clairvoyant_mean_s for c in cells])
    for (name, look), bound in zip(BOUNDS.items(), values, strict=True):
        figure.add_trace(_line(name, look, [cell.rho for cell in cells], bound, "s"))
    return _dressed(figure, "mean session time (s)", log=True)


def tail(cells: Sequence[Cell], policies: Mapping[str, Look]) -> Any:
    figure = _over_load(cells, policies, lambda of: of.p99_s, "s")
    return _dressed(figure, "p99 session time (s)", log=True)


def goodput(cells: Sequence[Cell], policies: Mapping[str, Look]) -> Any:
    figure = _over_load(cells, policies, lambda of: of.goodput_3_per_s * 60, "per min")
    return _dressed(figure, "per min, within 3x of alone")


def ablations(found: Sequence[OverCells], policies: Mapping[str, Look]) -> Any:
    figure = go.Figure()
    for policy in dict.fromkeys(of.policy for of in found):
        own = [of for of in found if of.policy == policy]
        line = _line(policy, policies[policy], [o.rho for o in own], [o.ratio for o in own], "x")
        line.error_y = {
            "array": [of.largest - of.ratio for of in own],
            "arrayminus": [of.ratio - of.least for of in own],
            "thickness": 1,
            "width": 4,
        }
        figure.add_trace(line)
    figure.add_hline(y=1, line={"color": _BOUND_COLOUR, "width": 1, "dash": "dot"})
    figure.update_layout(showlegend=True)
    _dressed(figure, f"session time / {REFERENCE}'s", log=True)
    return figure.update_layout(margin_t=40)


def where_time_goes(cells: Sequence[Cell]) -> Any:
    cell = chosen(cells)
    policies = list(cell.policies)
    phases = dict.fromkeys(p for of in cell.policies.values() for p in of.phase_mean_s)
    figure = go.Figure()
    for place, phase in enumerate(phases):
        figure.add_bar(
            orientation="h",
            y=[escape(policy) for policy in policies],
            x=[cell.policies[policy].phase_mean_s.get(phase, 0) for policy in policies],
            name=escape(phase),
            marker={"color": _PHASE_COLOURS[place % len(_PHASE_COLOURS)], "line": {"width": 0}},
            hovertemplate=f"{escape(phase)}: %{{x:.2f}} s<extra>%{{y}}</extra>",
        )
    for policy in policies:
        total_s = sum(cell.policies[policy].phase_mean_s.values())
        text = f" {seconds(total_s)}"
        figure.add_annotation(
            x=total_s, y=escape(policy), text=text, showarrow=False, xanchor="left"
        )
    figure.update_layout(barmode="stack", bargap=0.3, legend_traceorder="normal", showlegend=True)
    _dressed(figure, None, height_px=130 + 26 * len(policies))
    figure.update_layout(margin_t=64)
    figure.update_xaxes(title=f"mean seconds of a session at rho {cell.rho:g}", type="linear")
    figure.update_yaxes(autorange="reversed", showgrid=False, ticklabelstandoff=6)
    return figure


def chosen(cells: Sequence[Cell]) -> Cell:
    past = [cell for cell in cells if cell.rho >= CHOSEN_RHO]
    return min(past, key=lambda c: c.rho) if past else max(cells, key=lambda c: c.rho)


def _over_load(
    cells: Sequence[Cell],
    policies: Mapping[str, Look],
    value: Callable[[InCell], float],
    unit: str,
) -> Any:
    figure = go.Figure()
    for policy, look in policies.items():
        points = [(c.rho, value(c.policies[policy])) for c in cells if policy in c.policies]
        if points:
            rhos, values = zip(*points, strict=True)
            figure.add_trace(_line(policy, look, rhos, values, unit))
    return figure


def _line(name: str, look: Look, x: Sequence[float], y: Sequence[float], unit: str) -> Any:
    width = 3.5 if name == REFERENCE else 1.8
    return go.Scatter(
        x=list(x),
        y=list(y),
        name=escape(name),
        mode="lines+markers",
        line={"color": look.colour, "width": width, "dash": look.dash},
        marker={"symbol": look.sign, "size": 7},
        hovertemplate=f"%{{y:.3~s}} {unit} at rho %{{x}}",
    )


def _dressed(
    figure: Any, title: str | None, *, log: bool = False, height_px: int = _HEIGHT_PX
) -> Any:
    figure.update_layout(
        template="none",
        height=height_px,
        autosize=True,
        margin={"l": 64, "r": 16, "t": 16, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        hoverlabel={"namelength": -1},
    )
    figure.update_layout(showlegend=figure.layout.showlegend or False)
    rhos = sorted({x for line in figure.data for x in line.x if line.type == "scatter"})
    figure.update_xaxes(title="rho (arrival rate / knee)", automargin=True, zeroline=False)
    figure.update_xaxes(tickvals=rhos or None)
    figure.update_yaxes(title=title, automargin=True, zeroline=False, rangemode="tozero")
    if log:
        figure.update_yaxes(type="log", tickvals=_TICKS, ticktext=[f"{tick:g}" for tick in _TICKS])
    return figure
