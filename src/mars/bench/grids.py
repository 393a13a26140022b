"""A report's tables, for whoever draws them: a terminal, a page, a Markdown file.

A line break in a cell is kept by all three.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text


class Grid(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


def numeric(grid: Grid, place: int) -> bool:
    """Whether a column holds figures, which are read best from the right."""
    cells = [row[place] for row in grid.rows]
    return bool(cells) and all(cell == "-" or cell[:1].isdigit() for cell in cells)


def drawn(grid: Grid) -> Table:
    """For a rich console."""
    table = Table(title=grid.title, caption=grid.caption, title_justify="left", box=box.SIMPLE)
    table.padding = (0, 1, 0, 0)
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    for place, column in enumerate(grid.columns):
        side: Literal["right", "left"] = "right" if numeric(grid, place) else "left"
        words = " ".join((column, *(row[place] for row in grid.rows))).split()
        longest = max((len(word) for word in words), default=0)  # wrap at blanks, or lose nothing
        table.add_column(column, justify=side, min_width=longest, overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a name is no markup
    return table


def in_markdown(grid: Grid, level: str) -> Iterator[str]:
    """Lines: a heading of this level ("##"), the table, its caption."""
    yield ""
    yield f"{level} {as_text(grid.title)}"
    yield ""
    if grid.rows:
        sides = ["---:" if numeric(grid, place) else "---" for place in range(len(grid.columns))]
        for row in (grid.columns, sides, *grid.rows):
            yield f"| {' | '.join(as_text(cell) for cell in row)} |"
    else:
        yield "None."
    yield ""
    yield as_text(grid.caption)


def as_text(text: str) -> str:
    """For Markdown: nothing in it is markup."""
    for sign in "\\|<*[`":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", "<br>")
