"""A grid's report as one HTML file, light or dark as its reader's system is; it needs no network.

The page's content security policy names the hashes of its own two scripts, as that of
`mars.bench.page` does. A chart is drawn when it comes near the window: a grid has hundreds.
"""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

from mars.bench.document import document
from mars.bench.grids import Grid, numeric
from mars.compare import grid_charts as charts
from mars.compare.provenance import told
from mars.compare.standing import by_scene, is_ablation
from mars.compare.summary import Summary
from mars.compare.tables import means, tables

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2933; --soft: #5b6875;
  --line: #dfe3e8; --note: #fff8e8; --won: #0b7a53; --lost: #b3361b; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e4e8ec; --soft: #9aa5b1;
  --line: #333b44; --note: #2c2615; --won: #5fd0a3; --lost: #ff8f73; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 28px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 48px 0 4px; }
h3 { font-size: 16px; margin: 28px 0 4px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 96ch; }
.soft, figcaption { color: var(--soft); font-size: 14px; }
.note { border-left: 4px solid #e69f00; background: var(--note); padding: 8px 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 10px 0 4px;
  font-size: 14px; }
th, td { padding: 6px 16px 6px 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: pre-line; }
th { font-size: 13px; color: var(--soft); vertical-align: bottom; }
.number { text-align: right; }
.won, .holds { color: var(--won); font-weight: 650; }
.lost, .not { color: var(--lost); font-weight: 650; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px 24px; }
@media (max-width: 900px) { .charts { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0; min-width: 0; }
.legend { position: sticky; top: 0; z-index: 5; background: var(--paper); padding: 8px 0;
  border-bottom: 1px solid var(--line); font-size: 13px; }
.legend span { white-space: nowrap; margin-right: 14px; }
.legend i { display: inline-block; width: 26px; margin-right: 6px; vertical-align: middle;
  border-top: 3px solid; }
"""

_DRAW: Final = """
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function inked(layout) {
  layout.font.color = style('--ink');
  for (const axis of Object.keys(layout).filter(key => /^[xy]axis/.test(key))) {
    layout[axis].gridcolor = layout[axis].linecolor = style('--line');
  }
  return layout;
}
function draw(place) {
  const figure = FIGURES[place.id];
  Plotly.react(place, figure.data, inked(figure.layout), {displaylogo: false, responsive: true});
}
const near = new IntersectionObserver(seen => {
  for (const one of seen.filter(one => one.isIntersecting)) {
    near.unobserve(one.target);
    draw(one.target);
  }
}, {rootMargin: '600px'});
document.querySelectorAll('.chart').forEach(place => near.observe(place));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () =>
  document.querySelectorAll('.js-plotly-plot').forEach(draw));
"""

_CLASSES: Final = {
    "won": "won", "holds": "holds", "lost": "lost", "does not hold": "not",
}  # fmt: skip


class _Chart(NamedTuple):
    chart_id: str
    title: str
    figure: Any


def write_page(summary: Summary, path: Path) -> None:
    looks = charts.looks(summary.policies)
    scenes = {scene: list(_scene(n, summary, scene, looks)) for n, scene in _numbered(summary)}
    whole = _whole(summary, looks)
    body = "\n".join(
        (
            *_opening(summary),
            *(_table(grid) for grid in tables(summary)),
            *(_place(chart) for chart in whole),
            "<h2>Over load</h2>",
            _legend(looks),
            *(_section(scene, some) for scene, some in scenes.items()),
            "<h2>Every policy</h2>",
            *(_table(grid, "h3") for grid in means(summary)),
        )
    )
    figures = {c.chart_id: c.figure for group in (whole, *scenes.values()) for c in group}
    path.write_text(
        document(
            title=summary.provenance.grid,
            style=_STYLE,
            body=body,
            figures=figures,
            drawing=_DRAW,
        ),
        encoding="utf-8",
    )


def _numbered(summary: Summary) -> Iterator[tuple[int, str]]:
    yield from enumerate(by_scene(summary.cells))


def _whole(summary: Summary, looks: Mapping[str, charts.Look]) -> list[_Chart]:
    if not summary.ablations:
        return []
    title = "Ablations over load (mean over cells; bars: least and largest cell)"
    return [_Chart("ablations", title, charts.ablations(summary.ablations, looks))]


def _scene(
    number: int, summary: Summary, scene: str, looks: Mapping[str, charts.Look]
) -> Iterator[_Chart]:
    cells = by_scene(summary.cells)[scene]
    shown = {policy: look for policy, look in looks.items() if not is_ablation(policy)}
    yield _Chart(f"latency-{number}", "Mean session time", charts.latency(cells, shown))
    yield _Chart(f"tail-{number}", "P99 session time", charts.tail(cells, shown))
    title = "Goodput: sessions that end within 3x of their time alone"
    yield _Chart(f"goodput-{number}", title, charts.goodput(cells, shown))
    title = "Where the time goes (arithmetic mean over sessions and seeds)"
    yield _Chart(f"phases-{number}", title, charts.where_time_goes(cells))


def _opening(summary: Summary) -> Iterator[str]:
    yield f"<h1>{escape(summary.provenance.grid)}</h1>"
    yield "<p>Simulated, not measured on a GPU.</p>"
    for name, value in told(summary.provenance, summary.rows, len(summary.cells)).items():
        yield f'<p class="soft">{escape(name)}: {escape(value)}</p>'
    for note in summary.notes:
        yield f'<p class="note">{escape(note)}</p>'


def _table(grid: Grid, heading: str = "h2") -> str:
    kinds = [' class="number"' if numeric(grid, n) else "" for n in range(len(grid.columns))]
    columns = zip(kinds, grid.columns, strict=True)
    head = "".join(f"<th{kind}>{escape(column)}</th>" for kind, column in columns)
    rows = "".join(
        f"<tr>{''.join(_cell(kind, cell) for kind, cell in zip(kinds, row, strict=True))}</tr>"
        for row in grid.rows
    )
    return (
        f'<{heading}>{escape(grid.title)}</{heading}><div class="scroll"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<p class="soft">{escape(grid.caption)}</p>'
    )


def _cell(kind: str, text: str) -> str:
    if text in _CLASSES:
        kind = f' class="{_CLASSES[text]}"'
    return f"<td{kind}>{escape(text)}</td>"


def _legend(looks: Mapping[str, charts.Look]) -> str:
    """One for all charts: a dozen lines need more room than a chart has."""
    lines = {"solid": "solid", "dash": "dashed", "dot": "dotted"}
    shown = {policy: look for policy, look in looks.items() if not is_ablation(policy)}
    entries = (
        f'<span><i style="border-color:{look.colour};border-top-style:{lines[look.dash]}"></i>'
        f"{escape(name)}</span>"
        for name, look in {**shown, **charts.BOUNDS}.items()
    )
    return f'<div class="legend">{" ".join(entries)}</div>'


def _section(scene: str, some: list[_Chart]) -> str:
    return f'<h3>{escape(scene)}</h3><div class="charts">{"".join(map(_place, some))}</div>'


def _place(chart: _Chart) -> str:
    height_px = chart.figure.layout.height
    return (
        f"<figure><figcaption>{escape(chart.title)}</figcaption>"
        f'<div class="chart" id="{chart.chart_id}" style="min-height:{height_px}px"></div></figure>'
    )
