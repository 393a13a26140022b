"""The page in a real browser, without a network."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from mars.bench.charts import evenly
from mars.bench.measure import measure, read_run
from mars.bench.page import write_page
from mars.bench.report import report
from mars.bench.table import grids

WriteRun = Callable[..., Path]
Stories = dict[str, tuple[Any, Sequence[float]]]

pytestmark = pytest.mark.browser


class Visit:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path) -> None:
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.querySelectorAll('.main-svg .xy').length >= 4")


@pytest.fixture
def visit() -> Iterator[Visit]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
        yield Visit(context.new_page())
        browser.close()


def test_the_page_shows_the_run(
    folder: Path, tmp_path: Path, visit: Visit, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    report(folder, as_json=False, page=path)
    assert f"page: {path}" in capsys.readouterr().out.replace("\n", "")
    visit.open(path)
    assert visit.complaints == []
    assert visit.requests == [path.as_uri()]
    assert visit.page.locator(".js-plotly-plot").count() == 4
    cells = visit.page.locator("td").all_inner_texts()
    for grid in grids(measure(read_run(folder))):
        for row in grid.rows:
            assert set(row) <= set(cells)
    assert "seed" in cells
    # spans of repetition 0: fcfs 7 + 6, mars 4 + 5 (conftest.py); a bar each
    assert visit.page.locator("#timeline .bars .point path").count() == 22


def test_a_policy_has_one_colour(folder: Path, tmp_path: Path, visit: Visit) -> None:
    run = read_run(folder)
    write_page(run, measure(run), tmp_path / "page.html")
    visit.open(tmp_path / "page.html")
    lines = visit.page.evaluate(
        "document.getElementById('distribution').data.map(t => [t.name, t.line.color])"
    )
    assert {name for name, _ in lines} == {"fcfs", "mars"}
    assert len({colour for _, colour in lines}) == 2
    for name, colour in lines:
        swatches = visit.page.locator(f"tr:has-text('{name}') i.swatch").all()
        shown = {swatch.get_attribute("style") for swatch in swatches}
        assert shown == {f"background:{colour}"}


@pytest.mark.parametrize("width_px", [1200, 800])
def test_nothing_sticks_out(folder: Path, tmp_path: Path, visit: Visit, width_px: int) -> None:
    run = read_run(folder)
    write_page(run, measure(run), tmp_path / "page.html")
    visit.page.set_viewport_size({"width": width_px, "height": 900})
    visit.open(tmp_path / "page.html")
    widest = visit.page.evaluate(
        "Math.max(...[...document.querySelectorAll('body *')].map("
        "e => e.getBoundingClientRect().right))"
    )
    assert 0.9 * width_px < widest <= width_px


def test_names_from_the_log_stay_text(
    tmp_path: Path, write_run: WriteRun, stories: Stories, visit: Visit
) -> None:
    script = "<script>window.taken=1"
    image = "<b>bold<img src=x onerror=window.taken=1>"
    told = {script: stories["fcfs"], image: stories["mars"]}
    settings = {"model": "</script><script>window.taken=1</script>", image: [script]}
    folder = write_run(tmp_path / "<b>run", told, settings)
    for log in folder.iterdir():  # a session's name as well
        log.write_text(log.read_text().replace('"a#', json.dumps(image)[:-1] + "#"))
    run = read_run(folder)
    write_page(run, measure(run), tmp_path / "page.html")
    _, figures = (tmp_path / "page.html").read_text().split("const FIGURES = ")
    assert "<" not in figures.partition("\n")[0]
    visit.open(tmp_path / "page.html")
    assert visit.complaints == []
    assert visit.page.evaluate("window.taken") is None
    assert visit.page.locator("main img, main script, h1 b").count() == 0
    assert visit.page.locator("tbody tr td:first-child").first.inner_text() == script
    legend = visit.page.locator("#distribution .legendtext").all_text_contents()
    assert legend == [script, image]
    titles = visit.page.locator("#timeline .annotation-text").all_text_contents()
    assert titles == [script, image]
    assert visit.page.locator(".settings td").nth(1).inner_text() == json.dumps(settings["model"])


def test_no_script_of_a_log_could_run(folder: Path, tmp_path: Path, visit: Visit) -> None:
    """The second wall: the page's own policy refuses what an escape might have let through."""
    run = read_run(folder)
    write_page(run, measure(run), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    broken = text.replace("<main>", "<main><script>window.taken=1</script>", 1)
    (tmp_path / "page.html").write_text(broken)
    visit.open(tmp_path / "page.html")
    assert visit.page.evaluate("window.taken") is None
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_of_many_sessions_the_first_and_the_last_are_drawn() -> None:
    shown = evenly(range(1000), 40)
    assert (len(set(shown)), shown[0], shown[-1]) == (40, 0, 999)
    assert evenly(range(3), 40) == range(3)
