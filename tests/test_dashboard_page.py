"""The dashboard's page in a headless Chromium: curves, samples, controls, widths; skipped where there is none."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from dashboard_runs import SAMPLE, append, experts_row, make_run, training_row
from test_control import FakeSession, training
from train.dashboard import start_dashboard

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=20_000)
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=installed,
                                             args=["--no-sandbox"] if os.geteuid() == 0 else [])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_run(root, "done", 20, 20)
    session = FakeSession(make_run(root, "live", 20, 1000), 20)
    session.record = lambda row: append(session.folder.path, row)
    dashboard = start_dashboard(root)
    with training(session) as ear:
        session.publish = lambda state: ear.publish({"state": state, "step": 20, "total": 1000, "loss": 2.5})
        session.publish("running")
        yield dashboard.url, session
    dashboard.close()


@pytest.fixture
def open_page(browser, served):
    """Opens the page at a size; at the end nothing may have gone wrong in it, or been asked of another place."""
    contexts, troubles, places = [], [], set()

    def opened(width=1200, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **{"locale": "en-US", **options})
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
        page.on("request", lambda request: places.add(request.url.split("/")[2]))
        page.goto(served[0])
        page.wait_for_selector("#chart-loss path.curve", state="attached")
        page.wait_for_selector("#samples pre")
        return page

    yield opened
    hacked = [page.evaluate("window.hacked") for context in contexts for page in context.pages]
    for context in contexts:
        context.close()
    assert troubles == []
    assert places == {served[0].split("/")[2]}
    assert set(hacked) == {None}


def lines(page, chart):
    return page.locator(f"#chart-{chart} path.curve:not(.faint)").count()


def test_curves_and_samples(open_page):
    page = open_page()
    assert page.locator("nav li").count() == 2
    assert page.locator("#name").inner_text() == "live"
    assert {chart: lines(page, chart) for chart in ("loss", "val_bits_per_byte", "lr", "grad_norm", "grad_norms",
                                                    "tokens_per_second")} == {
        "loss": 2, "val_bits_per_byte": 1, "lr": 1, "grad_norm": 1, "grad_norms": 4, "tokens_per_second": 1}
    assert page.locator("#samples pre").first.text_content() == f"10: {SAMPLE}\n"
    assert page.locator("#samples script").count() == page.locator("#samples b").count() == 0


def test_several_runs_side_by_side(open_page):
    page = open_page()
    page.get_by_role("checkbox", name="done").check()
    expect(page.locator("#chart-loss path.curve")).to_have_count(4)
    assert lines(page, "val_bits_per_byte") == 2
    assert lines(page, "grad_norms") == 4
    key = page.locator("#chart-loss .key").inner_text()
    assert "live training" in key and "done training" in key
    page.locator("nav button", has_text="done").click()
    expect(page.locator("#name")).to_have_text("done")
    assert page.locator("#controls").is_hidden()
    page.get_by_role("checkbox", name="live").uncheck()
    expect(page.locator("#chart-loss path.curve")).to_have_count(2)


def test_a_curve_grows_while_one_looks(open_page, served):
    _, session = served
    page = open_page()
    shown = page.locator("#chart-lr .key b")
    assert shown.inner_text() == "0.001"
    append(session.folder.path, {**training_row(21), "lr": 7e-4})
    expect(shown).to_have_text("7e-4")


def test_the_load_of_experts_is_a_heat_map(open_page, served):
    done = served[1].folder.path.parent / "done"
    append(done, experts_row(21, [[10, 20, 30, 20], [0, 0, 8, 0]]))
    page = open_page()
    expect(page.locator("#chart-load")).to_have_count(0)
    page.locator("nav button", has_text="done").click()
    cells = page.locator("#chart-load > svg rect:not(.pick)")
    expect(cells).to_have_count(8)
    assert [cell.get_attribute("class") for cell in cells.all()] == [
        "few", "many", "many", "many", "few none", "few none", "many", "few none"]
    assert [float(cell.get_attribute("fill-opacity")) for cell in cells.all()[:2]] == [0.4, 0.0]
    assert page.locator("#chart-load .number").all_text_contents()[:3] == ["0.50", "1.00", "1.50"]
    page.locator("#chart-load .number").nth(2).hover()
    tip = page.locator("#chart-load .tip").inner_text()
    assert tip.split() == "layer 0, expert 2 choices 30 times the mean 1.50".split()
    append(done, experts_row(31, [[1 + layer + i for i in range(64)] for layer in range(12)]))
    expect(cells).to_have_count(768)
    assert "22–31" in page.locator("#chart-load .key").inner_text()
    assert page.locator("#chart-load .number").count() == 0
    page.set_viewport_size({"width": 320, "height": 844})
    expect(page.locator("#chart-load > svg")).to_have_attribute("viewBox", re.compile("0 0 [12]"))
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_values_under_the_pointer(open_page):
    page = open_page()
    page.locator("#chart-loss svg").hover(position={"x": 200, "y": 100})
    tip = page.locator("#chart-loss .tip")
    assert "training" in tip.inner_text() and "validation" in tip.inner_text()
    assert page.locator("#chart-lr .cross").get_attribute("visibility") == "visible"
    page.locator("#chart-grad_norms svg").hover(position={"x": 200, "y": 100})
    assert "layers.1" in page.locator("#chart-grad_norms .tip").inner_text()
    assert tip.is_hidden()


def test_log_smooth_axis_zoom(open_page):
    page = open_page()
    path = page.locator("#chart-loss path.curve:not(.dashed)").first
    shape = path.get_attribute("d")
    button = page.locator("#chart-loss button.log")
    button.click()
    assert button.get_attribute("aria-pressed") == "true" and path.get_attribute("d") != shape
    button.click()
    assert path.get_attribute("d") == shape
    assert page.locator("#chart-loss path.faint").count() == 0
    page.locator("#smooth").fill("0.9")
    assert page.locator("#chart-loss path.faint").count() == 1
    page.locator("#smooth").fill("0")
    page.locator("#axis").select_option("tokens")
    expect(page.locator("#chart-loss svg text", has_text="k").first).to_be_attached()
    page.locator("#axis").select_option("step")
    expect(page.locator("#chart-loss svg text", has_text="k")).to_have_count(0)
    points = path.get_attribute("d").count("L")
    svg = page.locator("#chart-loss svg")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 250, box["y"] + 80)
    page.mouse.up()
    expect(page.locator("#span")).to_have_value("zoom")
    expect(path).not_to_have_attribute("d", re.compile(f"(L[^L]*){{{points}}}"))
    svg.dblclick()
    expect(page.locator("#span")).to_have_value("0")
    expect(path).to_have_attribute("d", re.compile(f"(L[^L]*){{{points}}}"))


def test_buttons_steer_the_run(open_page, served):
    _, session = served
    page = open_page()
    told = page.locator("#answer")

    def answers(text):
        expect(told).to_contain_text(text)

    page.get_by_role("button", name="Pause").click()
    answers("paused after step 20")
    assert session.paused
    session.publish("paused")
    page.get_by_role("button", name="Resume").click()
    answers("goes on with step 21")
    session.publish("running")
    page.locator("#value").fill("1e-4")
    page.locator("#over").fill("500")
    page.get_by_role("button", name="Set", exact=True).click()
    answers("there at step 520")
    assert session.steering.value("lr", 21) == 1e-4
    session.record(session.steering.changes_at(21)[0])
    page.locator("#events button", has_text="Undo").click()
    answers("change 1 (lr=0.0001) is undone")
    page.locator("#key").select_option("batch_tokens")
    assert page.locator("#over").is_hidden()
    page.locator("#value").fill("1000")
    page.get_by_role("button", name="Set", exact=True).click()
    answers("data.batch_tokens must be a multiple of data.seq_len (256): got 1000")
    assert "bad" in told.get_attribute("class")
    page.locator("#prompt").fill("从前<img src=x onerror=window.hacked=1>")
    page.get_by_role("button", name="Sample", exact=True).click()
    expect(page.locator("#continued")).to_be_visible()
    assert page.locator("#continued").text_content() == "从前<img src=x onerror=window.hacked=1> 你好\x1b[31m"
    page.get_by_role("button", name="Stop").click()
    assert not session.stopping
    page.get_by_role("button", name="Stop it? Press again").click()
    answers("saves step 20 and ends")
    assert session.stopping


@pytest.mark.parametrize("width, locale", [(390, "en-US"), (390, "zh-CN"), (320, "en-US"), (1400, "zh-CN")])
def test_nothing_is_wider_than_the_window(open_page, width, locale):
    page = open_page(width, 844, locale=locale, has_touch=width < 1000)
    page.get_by_role("checkbox", name="done").check()
    expect(page.locator("#chart-loss path.curve")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.locator("#chart-loss svg").bounding_box()
    assert 0 <= box["x"] and box["x"] + box["width"] <= width and box["width"] >= min(width, 500) - 40
    assert ("损失" in page.locator("#chart-loss b").first.inner_text()) == (locale == "zh-CN")
    if width < 1000:
        page.locator("#chart-loss svg").tap(position={"x": 150, "y": 100})
        assert page.locator("#chart-loss .tip").is_visible()


def test_light_and_dark(open_page):
    page = open_page(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.locator("#theme").click()
    light = page.evaluate(background)
    assert sum(map(int, dark[4:-1].split(","))) < 150 < 600 < sum(map(int, light[4:-1].split(",")))
    page.reload()
    page.wait_for_selector("#chart-loss path.curve", state="attached")
    assert page.evaluate(background) == light


def test_without_the_token_the_page_is_not_shown(browser, served):
    page = browser.new_page()
    answer = page.goto(served[0].split("?")[0])
    assert answer.status == 401 and "it ends with the token" in page.content()
    page.close()
