"""A grid's page in a real browser, without a network."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Page, sync_playwright
from tests.compare.made import FACTORS, rows, texts, written

from mars.compare.grid_page import write_page
from mars.compare.report import report_grid
from mars.compare.summary import summarise

pytestmark = pytest.mark.browser


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "grid", rows())


class Visit:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path) -> None:
        """And look at every chart: they are drawn when they come near."""
        self.page.goto(path.as_uri())
        for place in self.page.locator(".chart").all():
            place.scroll_into_view_if_needed()
            place.locator(".main-svg .xy").first.wait_for(state="attached")


@pytest.fixture
def visit() -> Iterator[Callable[..., Visit]]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )

        def made(width_px: int = 1200, scheme: Any = "light") -> Visit:
            size: Any = {"width": width_px, "height": 900}
            return Visit(
                browser.new_context(offline=True, viewport=size, color_scheme=scheme).new_page()
            )

        yield made
        browser.close()


def test_the_page_shows_the_grid(folder: Path, tmp_path: Path, visit: Callable[..., Visit]) -> None:
    path, summary = tmp_path / "page.html", summarise(folder, rows())
    report_grid(folder, as_json=True, page=path)
    seen = visit()
    seen.open(path)
    assert seen.complaints == []
    assert seen.requests == [path.as_uri()]
    assert seen.page.locator(".js-plotly-plot").count() == 1 + 2 * 4
    cells = {text.strip() for text in seen.page.locator("td").all_inner_texts()}
    assert set(filter(None, texts(summary))) <= cells
    assert seen.page.locator("td.lost").count() == 2, "once with the verdicts, once with causes"
    lines = seen.page.evaluate(
        "document.getElementById('latency-0').data.map(t => [t.name, t.x, t.line.color])"
    )
    baselines = {p for p in FACTORS if not p.startswith("mars-")}
    assert {name for name, _, _ in lines} == baselines | {
        "alone on the machine",
        "oracle (clairvoyant)",
    }
    assert all(rhos == [0.5, 0.9] for _, rhos, _ in lines)
    phases = seen.page.evaluate("document.getElementById('phases-0').data.map(t => t.name)")
    assert phases[:3] == ["gated", "queued", "running"]
    entries = seen.page.locator(".legend span").all_inner_texts()
    assert {entry.strip() for entry in entries} == {name for name, _, _ in lines}


@pytest.mark.parametrize("width_px", [1200, 700])
def test_nothing_sticks_out(
    folder: Path, tmp_path: Path, visit: Callable[..., Visit], width_px: int
) -> None:
    write_page(summarise(folder, rows()), tmp_path / "page.html")
    seen = visit(width_px)
    seen.open(tmp_path / "page.html")
    widest = seen.page.evaluate("document.documentElement.scrollWidth")
    assert widest <= width_px
    charts_px = seen.page.evaluate(
        "[...document.querySelectorAll('.chart .main-svg')].map("
        "e => e.getBoundingClientRect().right - e.closest('figure').getBoundingClientRect().right)"
    )
    assert max(charts_px) <= 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_paper(
    folder: Path, tmp_path: Path, visit: Callable[..., Visit], scheme: str
) -> None:
    """WCAG's contrast of 4.5 for body text, legends, table heads and the labels of charts."""
    write_page(summarise(folder, rows()), tmp_path / "page.html")
    seen = visit(scheme=scheme)
    seen.open(tmp_path / "page.html")
    paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (_luminance(paper) < 0.1) == (scheme == "dark")
    for place in ("p.soft", "td", "td.lost", "td.won", "th", ".legend span", ".xtick text"):
        of = "fill" if place.endswith("text") else "color"
        ink = seen.page.evaluate(f"getComputedStyle(document.querySelector('{place}')).{of}")
        assert _contrast(paper, ink) > 4.5, (place, ink)


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    """Of rgb(r, g, b), 0 to 1 (WCAG 2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_names_from_the_grid_stay_text(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    evil = "<img src=x onerror=window.taken=1></script><script>window.taken=1</script>"
    some = [
        msgspec.structs.replace(r, workload=evil, policy=evil if r.policy == "fcfs" else r.policy)
        for r in rows(("swe",))
    ]
    write_page(summarise(tmp_path, some), tmp_path / "page.html")
    seen = visit()
    seen.open(tmp_path / "page.html")
    assert seen.complaints == []
    assert seen.page.evaluate("window.taken") is None
    assert seen.page.locator("main img, main script").count() == 0
