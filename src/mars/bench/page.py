"""The report as one HTML file: it needs no network, and a browser lets it use none.

The page's content security policy names the hashes of its own two scripts (plotly, and the
figures), so nothing that a log slips into the text can run, even if an escape were forgotten.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

from mars.bench import charts
from mars.bench.document import document
from mars.bench.grids import Grid
from mars.bench.measure import Run, Summary
from mars.bench.table import grids
from mars.bench.why import why
from mars.bench.words import number

_STYLE: Final = """
:root { color-scheme: light; --ink: #1f2933; --soft: #5b6875; --line: #e1e5ea; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 28px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 4px; }
p { margin: 6px 0; max-width: 82ch; }
.verdict { font-size: 19px; line-height: 1.45; margin: 18px 0 10px; max-width: 74ch; }
.soft, figcaption { color: var(--soft); font-size: 14px; max-width: 96ch; }
.note { border-left: 4px solid #e69f00; background: #fff8e8; padding: 8px 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 10px 0 4px; }
th, td { padding: 6px 16px 6px 0; text-align: right; border-bottom: 1px solid var(--line); }
th { font-size: 13px; font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; }
tr.reference td { font-weight: 650; }
i.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 8px; }
figure { margin: 0; }
.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; font-size: 13px;
  font-family: ui-monospace, monospace; padding-top: 3px; padding-bottom: 3px; }
.settings td:first-child { white-space: nowrap; vertical-align: top; }
"""

_DRAW: Final = """
for (const [id, figure] of Object.entries(FIGURES)) {
  Plotly.newPlot(id, figure.data, figure.layout, {displaylogo: false, responsive: true});
}
"""


class _Plot(NamedTuple):
    plot_id: str
    title: str
    reading: str
    """How to read it, one or two sentences."""
    figure: Any


def write_page(run: Run, summary: Summary, path: Path) -> None:
    colours = charts.policy_colours(summary)
    plots = list(_plots(run, summary, colours))
    body = "\n".join(
        (
            *_opening(run, summary),
            *(_table(grid, summary, colours) for grid in grids(summary)),
            *(_place(plot) for plot in plots),
            _settings(run.settings),
        )
    )
    figures = {plot.plot_id: plot.figure for plot in plots}
    path.write_text(
        document(title=run.folder.name, style=_STYLE, body=body, figures=figures, drawing=_DRAW),
        encoding="utf-8",
    )


def _plots(run: Run, summary: Summary, colours: Mapping[str, str]) -> Iterator[_Plot]:
    index = charts.representative(summary)
    chosen = f"Repetition {summary.repeats[index]}: of median mean under {summary.reference}."
    yield _Plot(
        "distribution",
        "How long sessions take",
        "All repetitions pooled. A curve further left is faster; its upper end is the slow tail.",
        charts.distribution(run, colours),
    )
    yield _Plot(
        "phases",
        "Where a session's time goes",
        "Mean over all sessions and repetitions; a bar is as long as the mean session time. Grey, "
        "orange and yellow are waiting (at the gate, for the GPU, for cores).",
        charts.time_by_phase(summary),
    )
    yield _Plot(
        "timeline",
        "Sessions, phase by phase",
        f"{chosen} One bar per session{_of_how_many(summary)}; all panels share the time axis.",
        charts.timeline(run, index),
    )
    yield _Plot(
        "pressure",
        "Pressure and the gate",
        f"{chosen} KV: pale is in use, full colour is held for a session away from the GPU. Tool "
        "calls: above 1 per slot, some wait for cores. Sessions: in colour those let in (an "
        "admission window shows as their ceiling), in grey those at the gate.",
        charts.pressure(run, index, colours),
    )


def _of_how_many(summary: Summary) -> str:
    shown, all_of_them = charts.MOST_SESSIONS, summary.sessions_per_round
    if all_of_them <= shown:
        return ""
    return f" ({shown} of {all_of_them} are shown, evenly spaced by arrival)"


def _opening(run: Run, summary: Summary) -> Iterator[str]:
    started = datetime.fromtimestamp(run.wall_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield f"<h1>{escape(run.folder.name)}</h1>"
    yield (
        f'<p class="soft">{started} &middot; {len(summary.policies)} policies &middot; '
        f"{number(summary.sessions_per_round, 'session')} &middot; "
        f"{number(len(summary.repeats), 'repetition')}</p>"
    )
    verdict, *reasons = why(summary)
    yield f'<p class="verdict">{escape(verdict)}</p>'
    for sentence in reasons:
        yield f"<p>{escape(sentence)}</p>"
    for note in summary.notes:
        yield f'<p class="note">{escape(note)}</p>'


def _table(grid: Grid, summary: Summary, colours: Mapping[str, str]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in grid.columns)
    rows = []
    for policy, *cells in grid.rows:
        kind = ' class="reference"' if policy == summary.reference else ""
        swatch = f'<i class="swatch" style="background:{colours[policy]}"></i>'
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr{kind}><td>{swatch}{escape(policy)}</td>{values}</tr>")
    return (
        f'<h2>{escape(grid.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="soft">{escape(grid.caption)}</p>'
    )


def _place(plot: _Plot) -> str:
    return (
        f"<h2>{escape(plot.title)}</h2><figure><figcaption>{escape(plot.reading)}</figcaption>"
        f'<div id="{plot.plot_id}"></div></figure>'
    )


def _settings(settings: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in _flat(settings)
    )
    return f'<h2>Settings of the run</h2><table class="settings"><tbody>{rows}</tbody></table>'


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)
